// Linear layers with narrow weights: y[m, n] = sum over k of x[m, k] w[n, k] + bias[n], `rows` by
// `columns` by `depth`; rows of x and y lie `step` apart. Weights come in panels of 16 columns and
// quads of 4 along the depth, where sizes are rounded up and what is missing is 0:
//   int8   [columns / 16][depth / 4][16][4]: w[n, k], of -127 to 127, at
//          [n / 16][k / 4][n % 16][k % 4].
//   int4   [columns / 16][depth / 8][16][4], two in a byte: w[n, k] + 8, of -8 to 7 before that, at
//          [n / 16][k / 8][n % 16][k % 4], in its low half where k % 8 < 4, else in its high half.
//   scales of int4, and zeros: [columns / 16][depth / group][16]; of int8: [columns].
// A block of rows stays in the second cache while panels go by, a slice of a panel in the first.
#pragma once

#include "loops.h"
#include "quantized_isa.h"

namespace rw {
namespace quantized {

// Neighbouring lanes of the first N registers added: half as many registers.
template <int N, class C> RW_INLINE void add_pairs(C* c) {
  RW_UNROLL for (int i = 0; i < N / 2; ++i) {
    const C even = shuffled<0, 2>(c[2 * i], c[2 * i + 1], count<SIZE<C>>{});
    const C odd = shuffled<1, 2>(c[2 * i], c[2 * i + 1], count<SIZE<C>>{});
    c[i] = even + odd;
  }
}

template <class T> inline T* allocated(i64 number) {
  const u64 nbytes = static_cast<u64>(number) * sizeof(T);
  return static_cast<T*>(aligned_alloc(64, (nbytes + 63) / 64 * 64));
}

// ---- rows of x ----------------------------------------------------------------------------------
// Blocks of at most High rows, the last of those that are left: [quad][row of the block][4].
template <class T, int High> struct Quads {
  T* to;
  i64 rows, quads;

  i64 high(i64 m) const { return size_min(High, rows - m / High * High); }

  // The 16 values from depth k on, of which n count.
  void put(i64 m, i64 k, compute<T> x, int n) const {
    const i64 block = m / High * High, high = this->high(m);
    T each[W];
    store(each, x);
    T* at = to + block * quads * 4 + (k * high + (m - block) * 4);
    for (int i = 0; i < n; i += 4, at += 4 * high) __builtin_memcpy(at, each + i, 4 * sizeof(T));
  }
};

inline i64 in_quads(i64 depth) { return (depth + 3) / 4; }

RW_INLINE i32v swapped(i32v x) {
  i32 lanes[W];
  store(lanes, x);
  for (int i = 0; i < W; i += 4) {
    const i32 one = lanes[i + 1];
    lanes[i + 1] = lanes[i + 2];
    lanes[i + 2] = one;
  }
  return load(lanes);
}

template <class X> inline f32 largest(const X* x, i64 depth) {
  f32v most{};
  steps<1>(0, depth, [&](i64 k, auto n) { most = maximum(most, abs(load(x + k, n))); });
  return hmax(most);
}

// Row m as -127 to 127, nearest and half to even, plus `bias`. Returns the size of a unit: NaN if
// any of the row is. tally(k, q): told of every step.
template <class X, class T, int High, class Tally>
inline f32 quantize(const X* x, i64 depth, i64 m, Quads<T, High> to, int bias, Tally tally) {
  const f32 most = largest(x, depth);
  f32 per = most > 0 ? 127 / most : 0;
  // 0 by infinity and infinity by 0 would be no numbers.
  if (most > 0) per = per < 0x1p-126f ? 0x1p-126f : per > 0x1p127f ? 0x1p127f : per;
  steps<1>(0, depth, [&](i64 k, auto n) {
    const f32v x_k = round(mul(load(x + k, n), splat(per)));
    i32v q = to_i32(fmin(fmax(x_k, splat(-127.f)), splat(127.f)));
    tally(k, q);
#if defined RW_SWAPPED
    q = swapped(q);
#endif
    to.put(m, k, rw::add(q, splat(bias)), n);
  });
  return most / 127;
}

constexpr i64 ENOUGH = 1 << 17;  // products, for a thread

inline i64 grain_of(i64 work) { return 1 + ENOUGH / (work + 1); }

// ---- blocks -------------------------------------------------------------------------------------
// Rows of a block, of `nbytes` each: 48 to 96 that take 256 KB if they can, or all there are, as
// many in all blocks and a multiple of `high`.
inline i64 block_of(i64 rows, i64 high, i64 nbytes) {
  const i64 most = size_max(48, size_min(96, (256 << 10) / size_max(nbytes, 1)));
  const i64 blocks = size_max(1, (rows + most - 1) / most);
  return size_max(1, ((rows + blocks - 1) / blocks + high - 1) / high) * high;
}

// unit(first, count, panel, panels, scratch) for each block of rows by `wide` panels of columns.
template <class Unit>
void each_block(i64 rows, i64 block, i64 columns, i64 wide, i64 depth, i64 nbytes, Unit unit) {
  const i64 panels = (columns + W - 1) / W, groups = (panels + wide - 1) / wide;
  const i64 blocks = (rows + block - 1) / block;
  const i64 work = size_min(block, rows) * wide * W * depth;
  parallel_units(blocks * groups, grain_of(work), [=](i64 begin, i64 end) {
    char* const scratch = allocated<char>(nbytes);
    for (i64 at = begin; at < end; ++at) {
      const i64 first = at / groups * block, panel = at % groups * wide;
      unit(first, size_min(block, rows - first), panel, size_min(wide, panels - panel), scratch);
    }
    free(scratch);
  });
}

// y of a block: sums[m, n] (of `step` columns) by unit[m] scales[n], or by one of them, plus bias.
template <class T> struct Result {
  T* to;
  i64 step, columns;
  const f32 *units, *scales, *bias;

  template <class Sum, class Fix>
  void give(i64 first, i64 count, i64 panel, i64 panels, const Sum* sums, Fix fix) const {
    const i64 left = panel * W, stop = size_min(columns, left + panels * W);
    steps<1>(left, stop, [&](i64 n, auto some) {
      const f32v scale = scales ? load(scales + n, some) : splat(1.f);
      const f32v shift = bias ? load(bias + n, some) : f32v{};
      const auto fixed = fix(n, some);
      for (i64 m = 0; m < count; ++m) {
        const auto sum = rw::sub(load(sums + m * panels * W + (n - left)), fixed);
        const f32v by = units ? mul(splat(units[first + m]), scale) : scale;
        f32v y;
        if constexpr (same<Sum, i32>) {
          y = mul(to_f32(sum), by);
        } else {
          y = mul(sum, by);
        }
        store(to + (first + m) * step + n, rw::add(y, shift), some);
      }
    });
  }
};

// ---- int8 by int8 -------------------------------------------------------------------------------
constexpr i64 SLICE = 128;  // quads

// to[m, n] = sum over k of q[m, k] w[n, k], or that added to it, for M rows and the columns that C
// registers of each of N panels hold; the panels lie `apart`.
template <int M, int N, int C>
RW_INLINE void multiply_quads(const Q* q, const i8* w, i64 apart, i64 quads, i32* to, bool add) {
  constexpr int BYTES = 4 * W / PARTS, KEPT = C * i32v::K / PARTS;
  I sum[M][N * C] = {};
#pragma GCC unroll 2
  for (i64 k = 0; k < quads; ++k, q += 4 * M, w += 4 * W) {
    Right part[N * C];
    RW_UNROLL for (int i = 0; i < N * C; ++i) part[i] = right(w + i / C * apart + i % C * BYTES);
    RW_UNROLL for (int m = 0; m < M; ++m) {
      const Left row = left(q + 4 * m);
      RW_UNROLL for (int i = 0; i < N * C; ++i) sum[m][i] = dot(sum[m][i], row, part[i]);
    }
  }
  RW_UNROLL for (int m = 0; m < M; ++m) {
    if constexpr (PARTS > i32v::K) add_pairs<N * C>(sum[m]);
    RW_UNROLL for (int i = 0; i < N * KEPT; ++i) {
      auto* const at = reinterpret_cast<vec_of<i32, LANES>::unaligned*>(
          to + (m * N + i / KEPT) * W + i % KEPT * LANES);
      *at = add ? *at + sum[m][i] : sum[m][i];
    }
  }
}

template <int M, int N>
inline void multiply_some(i64 rows, const Q* q, const i8* w, i64 apart, i64 quads, i32* to,
                          bool add) {
  if constexpr (M > 0) {
    if (rows != M) return multiply_some<M - 1, N>(rows, q, w, apart, quads, to, add);
    constexpr int C = M > 2 && PARTS > 2 ? 2 : PARTS;  // what there are registers for
    for (int c = 0; c < PARTS; c += C)
      multiply_quads<M, N, C>(q, w + c * (4 * W / PARTS), apart, quads, to + c * (W / PARTS), add);
  }
}

// All the depth of N panels.
template <int N>
__attribute__((noinline)) void multiply_panels(i64 count, const Q* q, i64 quads, const i8* w,
                                               i32* to) {
  const i64 most = count > HIGH ? SLICE : size_max(quads, 1);
  i64 k = 0;
  do {
    const i64 some = size_min(most, quads - k);
    for (i64 m = 0; m < count; m += HIGH) {
      const i64 high = size_min(HIGH, count - m);
      multiply_some<HIGH, N>(high, q + (m * quads + k * high) * 4, w + k * 4 * W, quads * 4 * W,
                             some, to + m * N * W, k > 0);
    }
    k += some;
  } while (k < quads);
}

// x quantized by row: with a = max |x[m, k]|, q[k] = round(x[m, k] (127 / a)), and y[m, n] =
// (sum of q[k] w[n, k]) (a / 127 scales[n]) + bias[n], that sum in i32. sums[n]: of w[n, k], which
// only VNNI needs. bias may be null.
template <class X, class Y>
void linear_int8(i64 rows, i64 columns, i64 depth, const X* x, i64 x_step, const i8* packed,
                 const f32* scales, [[maybe_unused]] const i32* sums, const f32* bias, Y* y,
                 i64 y_step) {
  const i64 quads = in_quads(depth);
  Q* const q = allocated<Q>(rows * quads * 4);
  f32* const units = allocated<f32>(rows);
  parallel_units(rows, grain_of(2 * depth), [=](i64 begin, i64 end) {
    const Quads<Q, HIGH> taken{q, rows, quads};
    for (i64 m = begin; m < end; ++m)
      units[m] = quantize(x + m * x_step, depth, m, taken, BIAS, [](i64, i32v) {});
  });
  const Result<Y> result{y, y_step, columns, units, scales, bias};
  const i64 block = block_of(rows, HIGH, quads * 4 * i64(sizeof(Q)));
  each_block(rows, block, columns, WIDE, depth, block * WIDE * W * 4,
             [=](i64 first, i64 count, i64 panel, i64 panels, char* scratch) {
               i32* const to = reinterpret_cast<i32*>(scratch);
               const Q* const from = q + first * quads * 4;
               const i8* const w = packed + panel * quads * 4 * W;
               if (panels == WIDE) {
                 multiply_panels<WIDE>(count, from, quads, w, to);
               } else {
                 multiply_panels<1>(count, from, quads, w, to);
               }
               result.give(first, count, panel, panels, to, [=](i64 n, auto some) {
                 return BIAS ? mul(load(sums + n, some), splat(i32(BIAS))) : i32v{};
               });
             });
  free(units);
  free(q);
}

// ---- int8 by floats -----------------------------------------------------------------------------
constexpr i64 SLICE32 = 64;  // quads

// Four floats, over and over.
template <int... i> RW_INLINE F fours(vec<f32, 4> x, ints<i...>) {
  return __builtin_shufflevector(x, x, (i % 4)...);
}

// to[m, n] for M rows and as many columns as there are quads in PARTS registers.
template <int M, int Parts>
RW_INLINE void multiply_few(const f32* x, const i8* w, i64 quads, f32* to) {
  F sum[M][Parts] = {};
  for (i64 k = 0; k < quads; ++k, x += 4 * M, w += 4 * W) {
    F row[M];
    RW_UNROLL for (int m = 0; m < M; ++m)
      row[m] = fours(loaded<vec<f32, 4>>(x + 4 * m), count<LANES>{});
    RW_UNROLL for (int c = 0; c < Parts; ++c) {
      const F part = convert<F>(widen(loaded<lanes<i8>>(w + c * LANES)));
      RW_UNROLL for (int m = 0; m < M; ++m) sum[m][c] = fma(row[m], part, sum[m][c]);
    }
  }
  RW_UNROLL for (int m = 0; m < M; ++m) {
    add_pairs<Parts>(sum[m]);
    add_pairs<Parts / 2>(sum[m]);
    RW_UNROLL for (int c = 0; c < Parts / 4; ++c)
      *reinterpret_cast<vec_of<f32, LANES>::unaligned*>(to + m * W + c * LANES) = sum[m][c];
  }
}

// All the depth of one panel, its weights converted as they come, for 3 rows at most.
template <int M>
__attribute__((noinline)) void multiply_panel_few(const f32* x, const i8* w, i64 quads, f32* to) {
  constexpr int ALL = 4 * W / LANES, MOST = M == 1 ? 8 : 4, Parts = ALL < MOST ? ALL : MOST;
  for (int c = 0; c < ALL; c += Parts)
    multiply_few<M, Parts>(x, w + c * LANES, quads, to + c * LANES / 4);
}

template <int M>
inline void multiply_floats(i64 rows, const f32* x, const f32* w, i64 quads, f32* to, bool add) {
  if constexpr (M > 0) {
    if (rows != M) return multiply_floats<M - 1>(rows, x, w, quads, to, add);
    f32v sum[M];
    RW_UNROLL for (int m = 0; m < M; ++m) sum[m] = add ? load(to + m * W) : f32v{};
    for (i64 k = 0; k < quads; ++k, x += 4 * M, w += 4 * W) {
      RW_UNROLL for (int j = 0; j < 4; ++j) {
        const f32v part = load(w + j * W);
        RW_UNROLL for (int m = 0; m < M; ++m) sum[m] = fma(splat(x[4 * m + j]), part, sum[m]);
      }
    }
    RW_UNROLL for (int m = 0; m < M; ++m) store(to + m * W, sum[m]);
  }
}

// All the depth of one panel, a slice at a time as floats, [k][16] in `room`; for more than 3 rows.
inline __attribute__((noinline)) void multiply_panel_many(i64 count, const f32* x, i64 quads,
                                                          const i8* w, f32* to, f32* room) {
  i64 k = 0;
  do {
    const i64 some = size_min(SLICE32, quads - k);
    for (i64 i = 0; i < some; ++i) {
      const i32v four = load(reinterpret_cast<const i32*>(w + (k + i) * 4 * W));
      RW_UNROLL for (int j = 0; j < 4; ++j)
        store(room + (i * 4 + j) * W,
              to_f32(shift_right(shift_left(four, splat(24 - 8 * j)), splat(24))));
    }
    for (i64 m = 0; m < count; m += HIGH32) {
      const i64 high = size_min(HIGH32, count - m);
      const f32* const from = x + (m * quads + k * high) * 4;
      multiply_floats<HIGH32>(high, from, room, some, to + m * W, k > 0);
    }
    k += some;
  } while (k < quads);
}

// y[m, n] = (sum of x[m, k] w[n, k]) scales[n] + bias[n], in f32; bias may be null.
template <class X, class Y>
void linear_int8_weight(i64 rows, i64 columns, i64 depth, const X* x, i64 x_step, const i8* packed,
                        const f32* scales, const f32* bias, Y* y, i64 y_step) {
  const i64 quads = in_quads(depth);
  f32* const taken = allocated<f32>(rows * quads * 4);
  parallel_units(rows, grain_of(4 * depth), [=](i64 begin, i64 end) {
    const Quads<f32, HIGH32> to{taken, rows, quads};
    for (i64 m = begin; m < end; ++m)
      steps<1>(0, depth, [&](i64 k, auto n) { to.put(m, k, load(x + m * x_step + k, n), n); });
  });
  const Result<Y> result{y, y_step, columns, nullptr, scales, bias};
  const i64 block = block_of(rows, HIGH32, quads * 16);
  const i64 nbytes = block * W * 4;
  each_block(rows, block, columns, 1, depth, nbytes + SLICE32 * 4 * W * 4,
             [=](i64 first, i64 count, i64 panel, i64, char* scratch) {
               f32* const to = reinterpret_cast<f32*>(scratch);
               const f32* const from = taken + first * quads * 4;
               const i8* const w = packed + panel * quads * 4 * W;
               if (count == 1) {
                 multiply_panel_few<1>(from, w, quads, to);
               } else if (count == 2) {
                 multiply_panel_few<2>(from, w, quads, to);
               } else if (count == 3) {
                 multiply_panel_few<3>(from, w, quads, to);
               } else {
                 f32* const room = reinterpret_cast<f32*>(scratch + nbytes);
                 multiply_panel_many(count, from, quads, w, to, room);
               }
               result.give(first, count, panel, 1, to, [](i64, auto) { return f32v{}; });
             });
  free(taken);
}

// ---- int4 by int8 -------------------------------------------------------------------------------
constexpr i64 RUN = 32;  // along the depth, whose products a Sum4 holds

// to[m, n] = sum over groups g of scales[g, n] (sum over k of q[m, k] (w[n, k] - zeros[g, n])), for
// M rows of one panel. shifts[g, m]: -8 for every 1 in a group's q.
template <int M>
RW_INLINE void multiply_groups(const Q4* q, const i32* shifts, const u8* w, const f32* scales,
                               const f32* zeros, i64 groups, i64 runs, f32* to) {
  constexpr int K = i32v::K;
  RW_UNROLL for (int m = 0; m < M; ++m) store(to + m * W, f32v{});
  for (i64 g = 0; g < groups; ++g, shifts += M, scales += W) {
    i32v total[M];
    RW_UNROLL for (int m = 0; m < M; ++m) total[m] = splat(shifts[m]);
    for (i64 r = 0; r < runs; ++r) {
      Sum4 sum[M][K] = {};
      for (int i = 0; i < 4; ++i, q += 8 * M, w += 4 * W) {
        RW_UNROLL for (int half = 0; half < 2; ++half) {
          I part[K];
          RW_UNROLL for (int c = 0; c < K; ++c)
            part[c] = loaded<I>(w + c * REGISTER) >> 4 * half & 0x0f0f0f0f;
          RW_UNROLL for (int m = 0; m < M; ++m) {
            const Left4 row = left4(q + 4 * (half * M + m));
            RW_UNROLL for (int c = 0; c < K; ++c) sum[m][c] = dot4(sum[m][c], row, part[c]);
          }
        }
      }
      RW_UNROLL for (int m = 0; m < M; ++m)
        RW_UNROLL for (int c = 0; c < K; ++c) total[m].c[c] += widened(sum[m][c]);
    }
    const f32v scale = load(scales);
    RW_UNROLL for (int m = 0; m < M; ++m) {
      f32v x = to_f32(total[m]);
      if (zeros) x = fma(load(zeros + g * W), splat(f32(shifts[m]) / 8), x);
      store(to + m * W, fma(x, scale, load(to + m * W)));
    }
  }
}

template <int M>
inline void multiply_groups_some(i64 rows, const Q4* q, const i32* shifts, const u8* w,
                                 const f32* scales, const f32* zeros, i64 groups, i64 runs,
                                 f32* to) {
  if constexpr (M > 0) {
    if (rows == M) return multiply_groups<M>(q, shifts, w, scales, zeros, groups, runs, to);
    multiply_groups_some<M - 1>(rows, q, shifts, w, scales, zeros, groups, runs, to);
  }
}

inline __attribute__((noinline)) void multiply_panel_groups(i64 count, const Q4* q,
                                                            const i32* shifts, const u8* w,
                                                            const f32* scales, const f32* zeros,
                                                            i64 groups, i64 runs, f32* to) {
  const i64 depth = groups * runs * RUN;
  for (i64 m = 0; m < count; m += HIGH4)
    multiply_groups_some<HIGH4>(size_min(HIGH4, count - m), q + m * depth, shifts + m * groups,
                                w, scales, zeros, groups, runs, to + m * W);
}

// As linear_int8, by weights scale (w[n, k] - zero), where n and the group of k have one of each; a
// sum is exact within a group. group: a multiple of 32 that divides the depth. zeros may be null.
template <class X, class Y>
void linear_int4(i64 rows, i64 columns, i64 depth, i64 group, const X* x, i64 x_step,
                 const u8* packed, const f32* scales, const f32* zeros, const f32* bias, Y* y,
                 i64 y_step) {
  const i64 quads = depth / 4, groups = depth / group;
  Q4* const q = allocated<Q4>(rows * depth);
  i32* const shifts = allocated<i32>(rows * groups);
  f32* const units = allocated<f32>(rows);
  parallel_units(rows, grain_of(2 * depth), [=](i64 begin, i64 end) {
    const Quads<Q4, HIGH4> taken{q, rows, quads};
    for (i64 m = begin; m < end; ++m) {
      const i64 block = m / HIGH4 * HIGH4, high = taken.high(m);
      i32* const of_row = shifts + block * groups + (m - block);
      i32v sum{};
      units[m] = quantize(x + m * x_step, depth, m, taken, 0, [&](i64 k, i32v x_k) {
        sum = k % group == 0 ? x_k : rw::add(sum, x_k);
        if ((k + W) % group == 0) of_row[k / group * high] = -8 * hsum(sum);
      });
    }
  });
  const Result<Y> result{y, y_step, columns, units, nullptr, bias};
  const i64 block = block_of(rows, HIGH4, depth * i64(sizeof(Q4)));
  each_block(rows, block, columns, 1, depth, block * W * 4,
             [=](i64 first, i64 count, i64 panel, i64, char* scratch) {
               f32* const to = reinterpret_cast<f32*>(scratch);
               const i64 at = panel * groups * W;
               multiply_panel_groups(count, q + first * depth, shifts + first * groups,
                                     packed + panel * depth / 8 * 4 * W, scales + at,
                                     zeros ? zeros + at : nullptr, groups, group / RUN, to);
               result.give(first, count, panel, 1, to, [](i64, auto) { return f32v{}; });
             });
  free(units);
  free(shifts);
  free(q);
}

}  // namespace quantized

using quantized::linear_int4;
using quantized::linear_int8;
using quantized::linear_int8_weight;

}  // namespace rw
