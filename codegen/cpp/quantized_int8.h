// Linear layers of int8 weights by rows quantized to int8, on vectors or in tiles.
#pragma once

#include "quantized_rows.h"
#include "quantized_tiles.h"

namespace rw {
namespace quantized {

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

#if defined RW_TILES
constexpr i64 TILED_ROWS = 3;  // fewer leave most of a tile empty

// Whole rows, `step` apart, with zeros after their end.
struct Rows {
  i8* to;
  i64 step;

  void put(i64 m, i64 k, compute<i8> x, int n) const { store(to + m * step + k, x, n); }
};

// Rows of a block, of `nbytes` each, for which all weights go by once: 512 KB of them.
inline i64 tiled_block_of(i64 rows, i64 nbytes) {
  constexpr i64 TWO = 2 * TILE;
  const i64 most = size_max(TWO, (512 << 10) / size_max(nbytes, 1));
  const i64 blocks = size_max(1, (rows + most - 1) / most);
  return ((rows + blocks - 1) / blocks + TWO - 1) / TWO * TWO;
}

template <class X, class Y>
void linear_int8_tiled(i64 rows, i64 columns, i64 depth, const X* x, i64 x_step, const i8* packed,
                       const f32* scales, const f32* bias, Y* y, i64 y_step) {
  const i64 quads = in_quads(depth), step = (depth + DEEP - 1) / DEEP * DEEP;
  const i64 all = (rows + TILE - 1) / TILE * TILE, whole = quads / TILE, left = quads % TILE;
  i8* const q = allocated<i8>(all * step);
  f32* const units = allocated<f32>(rows);
  parallel_units(all, grain_of(2 * depth), [=](i64 begin, i64 end) {
    for (i64 m = begin; m < end; ++m) {
      const i64 some = m < rows ? depth : 0;
      if (m < rows)
        units[m] = quantize(x + m * x_step, depth, m, Rows{q, step}, 0, [](i64, i32v) {});
      __builtin_memset(q + m * step + some, 0, static_cast<u64>(step - some));
    }
  });
  const Result<Y> result{y, y_step, columns, units, scales, bias};
  constexpr i64 SUMS = 4 * TILE * TILE * 4;
  each_block(rows, tiled_block_of(rows, step), columns, 2, depth, SUMS + 2 * TILE_BYTES,
             [=](i64 first, i64 count, i64 panel, i64 panels, char* scratch) {
               const Tiles tiles;
               const i64 apart = quads * 4 * W;
               const i8* const w = packed + panel * apart;
               i32* const to = reinterpret_cast<i32*>(scratch);
               i8* const rest = left ? reinterpret_cast<i8*>(scratch + SUMS) : nullptr;
               for (i64 n = 0; left && n < panels; ++n) {
                 __builtin_memset(rest + n * TILE_BYTES, 0, TILE_BYTES);
                 __builtin_memcpy(rest + n * TILE_BYTES, w + n * apart + whole * TILE_BYTES,
                                  static_cast<u64>(left * 4 * W));
               }
               for (i64 m = 0; m < count; m += 2 * TILE) {
                 const i64 some = size_min(2 * TILE, count - m);
                 multiply_tiles(some, panels, q + (first + m) * step, step, w, apart, whole, rest,
                                to);
                 result.give(first + m, some, panel, panels, to, [](i64, auto) { return i32v{}; });
               }
             });
  free(units);
  free(q);
}
#endif

// x quantized by row: with a = max |x[m, k]|, q[k] = round(x[m, k] (127 / a)), and y[m, n] =
// (sum of q[k] w[n, k]) (a / 127 scales[n]) + bias[n], that sum in i32. sums[n]: of w[n, k], which
// only VNNI needs. bias may be null.
template <class X, class Y>
void linear_int8(i64 rows, i64 columns, i64 depth, const X* x, i64 x_step, const i8* packed,
                 const f32* scales, [[maybe_unused]] const i32* sums, const f32* bias, Y* y,
                 i64 y_step) {
#if defined RW_TILES
  if (rows >= TILED_ROWS && has_tiles())
    return linear_int8_tiled(rows, columns, depth, x, x_step, packed, scales, bias, y, y_step);
#endif
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

}  // namespace quantized
}  // namespace rw
