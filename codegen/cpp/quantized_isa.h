// Products of narrow integers: what quantized.h asks of each machine. Blocks for GCC on CPUs that
// add up four products of bytes at once (VNNI), on AVX2 and AVX-512 without, and for the rest.
#pragma once

#include "simd.h"

namespace rw {
namespace quantized {

using H = chunk<i16>;
using B = chunk<i8>;

template <class C> RW_INLINE C loaded(const void* from) {
  return (C)*static_cast<const typename vec_of<i8, sizeof(C)>::unaligned*>(from);
}
template <class T, class From> RW_INLINE T loaded_one(const From* from) {
  T x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}

// Left, left(q): four activations of a row, in every column's place; kept as Q, each plus BIAS.
// Right, right(w): the weights there that a register holds; PARTS of them make a panel.
// dot(sum, Left, Right): their products added to a sum, which may have several lanes for a column.
// The same with 4 for weights in nibbles, 0 to 15, I of them. A Sum4 holds the products of 32 along
// the depth; widened(Sum4) are their sums by column.
// HIGH, HIGH4, HIGH32: rows of a block of registers, for int8, int4 and f32; WIDE: its panels.

// Four floats, over and over. gcc takes the way through memory, and waits there, if not told.
#if defined RW_AVX512 && !defined __clang__
RW_INLINE F fours(vec<f32, 4> x) { return __builtin_ia32_broadcastf32x4_512(x, F{}, -1); }
#else
template <int... i> RW_INLINE F repeated(vec<f32, 4> x, ints<i...>) {
  return __builtin_shufflevector(x, x, (i % 4)...);
}
RW_INLINE F fours(vec<f32, 4> x) { return repeated(x, count<LANES>{}); }
#endif

#if defined RW_AVX512
constexpr int HIGH32 = 12;
#elif defined RW_AVX2
constexpr int HIGH32 = 6;
#else
constexpr int HIGH32 = 3;
#endif

// ---- sums of four products ----------------------------------------------------------------------
#if !defined __clang__ && \
    ((defined RW_AVX512 && defined __AVX512VNNI__) || (defined RW_AVX2 && defined __AVXVNNI__))
#if defined RW_AVX512
constexpr int HIGH = 12, WIDE = 2, HIGH4 = 12;
RW_INLINE I dot_bytes(I sum, I a, I b) { return __builtin_ia32_vpdpbusd_v16si(sum, a, b); }
#else
constexpr int HIGH = 6, WIDE = 1, HIGH4 = 4;
RW_INLINE I dot_bytes(I sum, I a, I b) { return __builtin_ia32_vpdpbusd_v8si(sum, a, b); }
#endif
using Q = u8;  // the first factor is unsigned
constexpr int BIAS = 128, PARTS = V<i32>::K;
using Left = I;
using Right = I;
RW_INLINE Left left(const Q* q) { return all(loaded_one<i32>(q)); }
RW_INLINE Right right(const i8* w) { return loaded<I>(w); }
RW_INLINE I dot(I sum, Left a, Right b) { return dot_bytes(sum, a, b); }

using Q4 = i8;
using Sum4 = I;
using Left4 = I;
RW_INLINE Left4 left4(const Q4* q) { return all(loaded_one<i32>(q)); }
RW_INLINE Sum4 dot4(Sum4 sum, Left4 a, I nibbles) { return dot_bytes(sum, nibbles, a); }
RW_INLINE I widened(Sum4 sum) { return sum; }

#elif !defined __clang__ && (defined RW_AVX512 || defined RW_AVX2)
// A Right is widened to i16; a sum has two lanes for each column.
#if defined RW_AVX512
constexpr int HIGH = 12, WIDE = 1, HIGH4 = 12;
RW_INLINE H widened(vec<char, 32> w) { return __builtin_ia32_pmovsxbw512_mask(w, H{}, -1); }
RW_INLINE I dot_pairs(H a, H b) { return __builtin_ia32_pmaddwd512_mask(a, b, I{}, -1); }
RW_INLINE H dot_bytes(B a, B b) {
  using Bytes = chunk<char>;
  return __builtin_ia32_pmaddubsw512_mask((Bytes)a, (Bytes)b, H{}, -1);
}
#else
constexpr int HIGH = 6, WIDE = 1, HIGH4 = 4;
RW_INLINE H widened(vec<char, 16> w) { return __builtin_ia32_pmovsxbw256(w); }
RW_INLINE I dot_pairs(H a, H b) { return __builtin_ia32_pmaddwd256(a, b); }
RW_INLINE H dot_bytes(B a, B b) {
  using Bytes = chunk<char>;
  return __builtin_ia32_pmaddubsw256((Bytes)a, (Bytes)b);
}
#endif
using Q = i16;
constexpr int BIAS = 0, PARTS = 2 * V<i32>::K;
using Left = H;
using Right = H;
RW_INLINE Left left(const Q* q) { return (H)all(loaded_one<i64>(q)); }
RW_INLINE Right right(const i8* w) { return widened(loaded<vec<char, SIZE<H>>>(w)); }
RW_INLINE I dot(I sum, Left a, Right b) { return sum + dot_pairs(a, b); }

using Q4 = i8;
using Sum4 = H;  // no pair of products saturates: 2 * 15 * 127
using Left4 = B;
RW_INLINE Left4 left4(const Q4* q) { return (B)all(loaded_one<i32>(q)); }
RW_INLINE Sum4 dot4(Sum4 sum, Left4 a, I nibbles) {
  sum += dot_bytes((B)nibbles, a);
  asm("" : "+v"(sum));  // else gcc adds all of a step up first, for which it lacks registers
  return sum;
}
RW_INLINE I widened(Sum4 sum) { return dot_pairs(sum, H{} + 1); }

#else
constexpr int HIGH = REGISTER == 16 ? 3 : 4, WIDE = 1, HIGH4 = REGISTER == 16 ? 1 : 2;
#define RW_SWAPPED 1  // quads are kept as q[0], q[2], q[1], q[3]
struct Left {
  H even, odd;
};
using Right = Left;
using Q = i16;  // the sum of two products fits, too
constexpr int BIAS = 0, PARTS = V<i32>::K;
RW_INLINE Left left(const Q* q) {
  return {(H)all(loaded_one<i32>(q)), (H)all(loaded_one<i32>(q + 2))};
}
RW_INLINE Right right(const i8* w) {
  const H both = loaded<H>(w);
  return {both << 8 >> 8, both >> 8};
}
RW_INLINE I widened(H sum) { return ((I)sum << 16 >> 16) + ((I)sum >> 16); }
RW_INLINE I dot(I sum, Left a, Right b) { return sum + widened(a.even * b.even + a.odd * b.odd); }

using Q4 = i16;
using Sum4 = H;
using Left4 = Left;
RW_INLINE Left4 left4(const Q4* q) { return left(q); }
RW_INLINE Sum4 dot4(Sum4 sum, Left4 a, I nibbles) {
  const H both = (H)nibbles;
  return sum + a.even * (both & 15) + a.odd * (both >> 8);
}
#endif

}  // namespace quantized
}  // namespace rw
