// What products of narrow integers share: rows of x taken and quantized, blocks of the result.
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
template <class X, class To, class Tally>
inline f32 quantize(const X* x, i64 depth, i64 m, To to, int bias, Tally tally) {
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

}  // namespace quantized
}  // namespace rw
