// Linear layers of int8 weights by floats.
#pragma once

#include "quantized_rows.h"

namespace rw {
namespace quantized {

constexpr i64 SLICE32 = 64;  // quads

// to[m, n] for M rows and as many columns as there are quads in PARTS registers.
template <int M, int Parts>
RW_INLINE void multiply_few(const f32* x, const i8* w, i64 quads, f32* to) {
  F sum[M][Parts] = {};
  for (i64 k = 0; k < quads; ++k, x += 4 * M, w += 4 * W) {
    F row[M];
    RW_UNROLL for (int m = 0; m < M; ++m)
      row[m] = fours(loaded<vec<f32, 4>>(x + 4 * m));
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

}  // namespace quantized
}  // namespace rw
