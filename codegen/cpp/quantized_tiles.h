// Products of bytes in tiles (Intel AMX): 16 rows by 64 bytes of one factor, 64 by 16 of the other.
// RW_TILES says that there are such; whether the system lets a process use them is asked once.
#pragma once

#include "simd.h"

// The vectors beside tiles are gcc's: elsewhere bytes are kept in another order (RW_SWAPPED).
#if !defined RW_TILES && defined __AMX_TILE__ && defined __AMX_INT8__ && defined __linux__ && \
    !defined __clang__
#define RW_TILES 1

extern "C" long syscall(long number, ...) noexcept;

namespace rw {
namespace quantized {

inline bool has_tiles() {
  constexpr long ARCH_PRCTL = 158, REQUEST = 0x1023, DATA = 18;
  static const bool given = syscall(ARCH_PRCTL, REQUEST, DATA) == 0;
  return given;
}

// All eight tiles as 16 rows of 64 bytes, for as long as this lives.
struct Tiles {
  Tiles() {
    struct alignas(64) {
      u8 palette = 1, start = 0, none[14] = {};
      u16 bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      u8 rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const shape;
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~Tiles() { asm volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
};

template <int T> RW_INLINE void zero_tile() { asm volatile("tilezero %%tmm%c0" ::"i"(T)); }
template <int T> RW_INLINE void load_tile(const void* from, i64 step) {
  asm volatile("tileloadd (%0,%1), %%tmm%c2" ::"r"(from), "r"(step), "i"(T) : "memory");
}
template <int T> RW_INLINE void store_tile(void* to, i64 step) {
  asm volatile("tilestored %%tmm%c2, (%0,%1)" ::"r"(to), "r"(step), "i"(T) : "memory");
}
template <int Sum, int A, int B> RW_INLINE void dot_tiles() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
}

}  // namespace quantized
}  // namespace rw
#endif

#if defined RW_TILES
namespace rw {
namespace quantized {

constexpr i64 TILE = 16, DEEP = 64, TILE_BYTES = TILE * DEEP;

template <int R, int N>
RW_INLINE void dot_step(const i8* q, i64 step, const i8* w, i64 apart) {
  load_tile<6>(w, DEEP);
  if constexpr (N > 1) load_tile<7>(w + apart, DEEP);
  load_tile<4>(q, step);
  dot_tiles<0, 4, 6>();
  if constexpr (N > 1) dot_tiles<1, 4, 7>();
  if constexpr (R > 1) {
    load_tile<5>(q + TILE * step, step);
    dot_tiles<2, 5, 6>();
    if constexpr (N > 1) dot_tiles<3, 5, 7>();
  }
}

// to[m, n] = sum over k of q[m, k] w[n, k], for R by N tiles: rows of q lie `step` apart, panels of
// w `apart`. The last of the depth, if it is not whole, comes from `rest`, TILE_BYTES for a panel.
template <int R, int N>
__attribute__((noinline)) void multiply_tiles(const i8* q, i64 step, const i8* w, i64 apart,
                                              i64 whole, const i8* rest, i32* to) {
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
  for (i64 k = 0; k < whole; ++k, q += DEEP, w += TILE_BYTES) dot_step<R, N>(q, step, w, apart);
  if (rest) dot_step<R, N>(q, step, rest, TILE_BYTES);
  constexpr i64 ROW = N * TILE * 4;
  store_tile<0>(to, ROW);
  if constexpr (N > 1) store_tile<1>(to + TILE, ROW);
  if constexpr (R > 1) store_tile<2>(to + N * TILE * TILE, ROW);
  if constexpr (R > 1 && N > 1) store_tile<3>(to + N * TILE * TILE + TILE, ROW);
}

// The same for up to 2 by 2 tiles.
inline void multiply_tiles(i64 rows, i64 panels, const i8* q, i64 step, const i8* w, i64 apart,
                           i64 whole, const i8* rest, i32* to) {
  const bool high = rows > TILE, wide = panels > 1;
  auto* const chosen = high ? wide ? multiply_tiles<2, 2> : multiply_tiles<2, 1>
                            : wide ? multiply_tiles<1, 2> : multiply_tiles<1, 1>;
  chosen(q, step, w, apart, whole, rest, to);
}

}  // namespace quantized
}  // namespace rw
#endif
