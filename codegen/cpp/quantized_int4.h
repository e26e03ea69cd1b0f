// Linear layers of int4 weights in groups by rows quantized to int8.
#pragma once

#include "quantized_rows.h"

namespace rw {
namespace quantized {

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
}  // namespace rw
