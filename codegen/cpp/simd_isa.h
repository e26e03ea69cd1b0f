// One machine register of lanes (a "chunk"), and the few instructions that the vector extensions
// of GCC and clang cannot spell, or that GCC spells badly: fma, sqrt, rounding, min and max, masks
// to bits, changes of lane width, partial memory. Blocks for GCC on AVX-512, GCC on AVX2 and the
// rest give the same names; what includes this file is written once, in chunks, for every machine.
#pragma once

#define RW_INLINE static inline __attribute__((always_inline))
#define RW_UNROLL _Pragma("GCC unroll 16")

#if defined __AVX512F__ && defined __AVX512BW__ && defined __AVX512DQ__ && defined __AVX512VL__
#define RW_AVX512 1
#elif defined __AVX2__ && defined __FMA__
#define RW_AVX2 1
#endif
#if defined RW_AVX512 || defined RW_AVX2 || defined __aarch64__
#define RW_FMA 1
#endif

namespace rw {

#if defined RW_AVX512
constexpr int REGISTER = 64;  // bytes
#elif defined RW_AVX2
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif

using i8 = signed char;
using i16 = short;
using i32 = int;
using i64 = long;
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned;
using u64 = unsigned long;
using f32 = float;
using f64 = double;

template <class T, int N> struct vec_of {
    typedef T type __attribute__((vector_size(N * sizeof(T))));
    typedef T unaligned __attribute__((vector_size(N * sizeof(T)), aligned(1), may_alias));
};
template <class T, int N> using vec = typename vec_of<T, N>::type;
template <class T> using chunk = vec<T, REGISTER / int(sizeof(T))>;

template <int bytes> struct uint_of_size { using type = u64; };
template <> struct uint_of_size<1> { using type = u8; };
template <> struct uint_of_size<2> { using type = u16; };
template <> struct uint_of_size<4> { using type = u32; };
template <class T> using uint_of = typename uint_of_size<sizeof(T)>::type;

constexpr int LANES = REGISTER / 4;                 // of four bytes in a chunk
template <class T> using lanes = vec<T, LANES>;     // as many as a chunk of f32 or i32 has
template <class T> using half = vec<T, LANES / 2>;  // as many as a chunk of f64 or i64 has
using F = chunk<f32>;
using I = chunk<i32>;
using D = chunk<f64>;
using L = chunk<i64>;

RW_INLINE F all(f32 x) { return x - F{}; }
RW_INLINE I all(i32 x) { return x - I{}; }
RW_INLINE D all(f64 x) { return x - D{}; }
RW_INLINE L all(i64 x) { return x - L{}; }
RW_INLINE I all(bool x) { return all(-i32(x)); }

constexpr i32 SIGN = i32(0x80000000);
constexpr i64 SIGN_64 = i64(0x8000000000000000);
RW_INLINE F magnitude(F x) { return (F)((I)x & ~SIGN); }
RW_INLINE D magnitude(D x) { return (D)((L)x & ~SIGN_64); }
RW_INLINE F with_sign(F x, F sign) { return (F)(((I)x & ~SIGN) | ((I)sign & SIGN)); }
RW_INLINE D with_sign(D x, D sign) { return (D)(((L)x & ~SIGN_64) | ((L)sign & SIGN_64)); }

template <int... i> struct ints {};
#if defined __clang__
template <class, int... i> struct counted { typedef ints<i...> type; };
template <int n> using count = typename __make_integer_seq<counted, int, n>::type;
#else
template <int n> struct counted { typedef ints<__integer_pack(n)...> type; };
template <int n> using count = typename counted<n>::type;
#endif
template <int from, int step, class C, int... i> RW_INLINE auto shuffled(C a, C b, ints<i...>) {
    return __builtin_shufflevector(a, b, (from + step * i)...);
}
template <class C> constexpr int SIZE = sizeof(C) / sizeof(C{}[0]);
template <class C> RW_INLINE auto lower(C c) {
    return shuffled<0, 1>(c, c, count<SIZE<C> / 2>{});
}
template <class C> RW_INLINE auto upper(C c) {
    return shuffled<SIZE<C> / 2, 1>(c, c, count<SIZE<C> / 2>{});
}
template <class C> RW_INLINE auto joined(C low, C high) {
    return shuffled<0, 1>(low, high, count<SIZE<C> * 2>{});
}

// ---- what each machine has ----------------------------------------------------------------------
// sqrt, rint (half to even), floor, ceil, trunc of F and D.
// fma(a, b, c): a * b + c, rounded once if RW_FMA, else by a mul and an add.
// least(a, b), greatest(a, b): a < b ? a : b and a > b ? a : b, that is b when either is NaN.
// widen: lanes of i8, u8, i16, u16 to I; half of i32 and u32 to L, of f32 to D.
// narrow: two D to F, two L to I. narrow_to_8, _16, _32: I to lanes of u8, u16, L to half of u32.
// signs(I): the sign bit of every lane, lane 0 lowest.
// from_f16, to_f16 (half to even), if RW_F16.

template <class To, class From> RW_INLINE To convert(From v) {
    return __builtin_convertvector(v, To);
}
RW_INLINE L widen(half<u32> v) { return convert<L>(v); }
RW_INLINE F narrow(D low, D high) {
    return joined(convert<half<f32>>(low), convert<half<f32>>(high));
}
RW_INLINE I narrow(L low, L high) { return shuffled<0, 2>((I)low, (I)high, count<LANES>{}); }

#if defined RW_AVX512 && !defined __clang__

RW_INLINE F sqrt(F x) { return __builtin_ia32_sqrtps512_mask(x, x, -1, 4); }
RW_INLINE D sqrt(D x) { return __builtin_ia32_sqrtpd512_mask(x, x, -1, 4); }
RW_INLINE F fma(F a, F b, F c) { return __builtin_ia32_vfmaddps512_mask(a, b, c, -1, 4); }
RW_INLINE D fma(D a, D b, D c) { return __builtin_ia32_vfmaddpd512_mask(a, b, c, -1, 4); }
RW_INLINE F least(F a, F b) { return __builtin_ia32_minps512_mask(a, b, a, -1, 4); }
RW_INLINE F greatest(F a, F b) { return __builtin_ia32_maxps512_mask(a, b, a, -1, 4); }
RW_INLINE D least(D a, D b) { return __builtin_ia32_minpd512_mask(a, b, a, -1, 4); }
RW_INLINE D greatest(D a, D b) { return __builtin_ia32_maxpd512_mask(a, b, a, -1, 4); }
#define RW_ROUND(name, mode) \
    RW_INLINE F name(F x) { return __builtin_ia32_rndscaleps_mask(x, mode, x, -1, 4); } \
    RW_INLINE D name(D x) { return __builtin_ia32_rndscalepd_mask(x, mode, x, -1, 4); }
RW_INLINE I widen(lanes<i8> v) { return __builtin_ia32_pmovsxbd512_mask((lanes<char>)v, I{}, -1); }
RW_INLINE I widen(lanes<u8> v) { return __builtin_ia32_pmovzxbd512_mask((lanes<char>)v, I{}, -1); }
RW_INLINE I widen(lanes<i16> v) { return __builtin_ia32_pmovsxwd512_mask(v, I{}, -1); }
RW_INLINE I widen(lanes<u16> v) { return __builtin_ia32_pmovzxwd512_mask((lanes<i16>)v, I{}, -1); }
RW_INLINE L widen(half<i32> v) {
    return (L)__builtin_ia32_pmovsxdq512_mask(v, half<long long>{}, -1);
}
RW_INLINE D widen(half<f32> v) { return __builtin_ia32_cvtps2pd512_mask(v, D{}, -1, 4); }
RW_INLINE half<u32> narrow_to_32(L v) {
    return (half<u32>)__builtin_ia32_pmovqd512_mask((half<long long>)v, half<i32>{}, -1);
}
RW_INLINE lanes<u16> narrow_to_16(I v) {
    return (lanes<u16>)__builtin_ia32_pmovdw512_mask(v, lanes<i16>{}, -1);
}
RW_INLINE lanes<u8> narrow_to_8(I v) {
    return (lanes<u8>)__builtin_ia32_pmovdb512_mask(v, lanes<char>{}, -1);
}
RW_INLINE unsigned signs(I v) { return __builtin_ia32_cvtd2mask512(v); }
RW_INLINE F lookup(const f32 (&table)[16], I at) {
    return __builtin_ia32_permvarsf512_mask(*(const vec_of<f32, 16>::unaligned*)table, at, F{}, -1);
}
#define RW_SCALE 1
RW_INLINE F scale(F x, F n) { return __builtin_ia32_scalefps512_mask(x, n, x, -1, 4); }
#define RW_FIX 1
RW_INLINE F fix(F y, F x, i32 table) {
    return __builtin_ia32_fixupimmps512_mask(y, x, all(table), 0, -1, 4);
}
#define RW_F16 1
RW_INLINE F from_f16(lanes<u16> v) {
    return __builtin_ia32_vcvtph2ps512_mask((lanes<i16>)v, F{}, -1, 4);
}
RW_INLINE lanes<u16> to_f16(F x) {
    return (lanes<u16>)__builtin_ia32_vcvtps2ph512_mask(x, 0, lanes<i16>{}, -1);
}

#elif defined RW_AVX2 && !defined __clang__

RW_INLINE F sqrt(F x) { return __builtin_ia32_sqrtps_nr256(x); }
RW_INLINE D sqrt(D x) { return __builtin_ia32_sqrtpd256(x); }
RW_INLINE F fma(F a, F b, F c) { return __builtin_ia32_vfmaddps256(a, b, c); }
RW_INLINE D fma(D a, D b, D c) { return __builtin_ia32_vfmaddpd256(a, b, c); }
RW_INLINE F least(F a, F b) { return __builtin_ia32_minps256(a, b); }
RW_INLINE F greatest(F a, F b) { return __builtin_ia32_maxps256(a, b); }
RW_INLINE D least(D a, D b) { return __builtin_ia32_minpd256(a, b); }
RW_INLINE D greatest(D a, D b) { return __builtin_ia32_maxpd256(a, b); }
#define RW_ROUND(name, mode) \
    RW_INLINE F name(F x) { return __builtin_ia32_roundps256(x, mode); } \
    RW_INLINE D name(D x) { return __builtin_ia32_roundpd256(x, mode); }
template <class Small> RW_INLINE vec<char, 16> low_bytes(Small v) {
    return (vec<char, 16>)vec<long, 2>{(long)v, 0};
}
RW_INLINE I widen(lanes<i8> v) { return __builtin_ia32_pmovsxbd256(low_bytes(v)); }
RW_INLINE I widen(lanes<u8> v) { return __builtin_ia32_pmovzxbd256(low_bytes(v)); }
RW_INLINE I widen(lanes<i16> v) { return __builtin_ia32_pmovsxwd256(v); }
RW_INLINE I widen(lanes<u16> v) { return __builtin_ia32_pmovzxwd256((lanes<i16>)v); }
RW_INLINE L widen(half<i32> v) { return (L)__builtin_ia32_pmovsxdq256(v); }
RW_INLINE D widen(half<f32> v) { return __builtin_ia32_cvtps2pd256(v); }
RW_INLINE half<u32> narrow_to_32(L v) {
    return (half<u32>)shuffled<0, 2>((I)v, (I)v, count<LANES / 2>{});
}
RW_INLINE lanes<u16> narrow_to_16(I v) { return convert<lanes<u16>>(v); }
RW_INLINE lanes<u8> narrow_to_8(I v) { return convert<lanes<u8>>(narrow_to_16(v)); }
RW_INLINE unsigned signs(I v) { return __builtin_ia32_movmskps256((F)v); }
RW_INLINE F lookup(const f32 (&table)[16], I at) {
    using Eight = vec_of<f32, 8>::unaligned;
    F low = __builtin_ia32_permvarsf256(*(const Eight*)table, at);
    F high = __builtin_ia32_permvarsf256(*(const Eight*)(table + 8), at);
    return (at & 8) != 0 ? high : low;
}
#if defined __F16C__
#define RW_F16 1
RW_INLINE F from_f16(lanes<u16> v) { return __builtin_ia32_vcvtph2ps256((lanes<i16>)v); }
RW_INLINE lanes<u16> to_f16(F x) { return (lanes<u16>)__builtin_ia32_vcvtps2ph256(x, 0); }
#endif

#else

RW_INLINE F least(F a, F b) { return a < b ? a : b; }
RW_INLINE F greatest(F a, F b) { return a > b ? a : b; }
RW_INLINE D least(D a, D b) { return a < b ? a : b; }
RW_INLINE D greatest(D a, D b) { return a > b ? a : b; }
RW_INLINE I widen(lanes<i8> v) { return convert<I>(convert<lanes<i16>>(v)); }
RW_INLINE I widen(lanes<u8> v) { return convert<I>(convert<lanes<u16>>(v)); }
RW_INLINE I widen(lanes<i16> v) { return convert<I>(v); }
RW_INLINE I widen(lanes<u16> v) { return convert<I>(v); }
RW_INLINE L widen(half<i32> v) { return convert<L>(v); }
RW_INLINE D widen(half<f32> v) { return convert<D>(v); }
RW_INLINE half<u32> narrow_to_32(L v) {
    return (half<u32>)shuffled<0, 2>((I)v, (I)v, count<LANES / 2>{});
}
RW_INLINE lanes<u16> narrow_to_16(I v) { return convert<lanes<u16>>(v); }
RW_INLINE lanes<u8> narrow_to_8(I v) { return convert<lanes<u8>>(narrow_to_16(v)); }
RW_INLINE F lookup(const f32 (&table)[16], I at) {
    F r;
    RW_UNROLL for (int i = 0; i < LANES; ++i) r[i] = table[at[i] & 15];
    return r;
}
RW_INLINE unsigned signs(I v) {
    unsigned r = 0;
    RW_UNROLL for (int i = 0; i < LANES; ++i) r |= unsigned(v[i] < 0) << i;
    return r;
}

#if defined __clang__
RW_INLINE F sqrt(F x) { return __builtin_elementwise_sqrt(x); }
RW_INLINE D sqrt(D x) { return __builtin_elementwise_sqrt(x); }
#if defined RW_FMA
RW_INLINE F fma(F a, F b, F c) { return __builtin_elementwise_fma(a, b, c); }
RW_INLINE D fma(D a, D b, D c) { return __builtin_elementwise_fma(a, b, c); }
#endif
RW_INLINE F rint(F x) { return __builtin_elementwise_roundeven(x); }
RW_INLINE D rint(D x) { return __builtin_elementwise_roundeven(x); }
RW_INLINE F floor(F x) { return __builtin_elementwise_floor(x); }
RW_INLINE D floor(D x) { return __builtin_elementwise_floor(x); }
RW_INLINE F ceil(F x) { return __builtin_elementwise_ceil(x); }
RW_INLINE D ceil(D x) { return __builtin_elementwise_ceil(x); }
RW_INLINE F trunc(F x) { return __builtin_elementwise_trunc(x); }
RW_INLINE D trunc(D x) { return __builtin_elementwise_trunc(x); }
#if defined __F16C__ || defined __aarch64__
#define RW_F16 1
RW_INLINE F from_f16(lanes<u16> v) { return convert<F>((lanes<_Float16>)v); }
RW_INLINE lanes<u16> to_f16(F x) { return (lanes<u16>)convert<lanes<_Float16>>(x); }
#endif

#else  // GCC finds the instruction behind these lane loops; rounding is by adding 2^23 or 2^52
#define RW_LANEWISE(C, expr) \
    RW_UNROLL for (int i = 0; i < SIZE<C>; ++i) x[i] = expr; \
    return x;
#if defined __SSE2__
RW_INLINE F sqrt(F x) { return __builtin_ia32_sqrtps(x); }
RW_INLINE D sqrt(D x) { return __builtin_ia32_sqrtpd(x); }
#else
RW_INLINE F sqrt(F x) { RW_LANEWISE(F, __builtin_sqrtf(x[i])) }
RW_INLINE D sqrt(D x) { RW_LANEWISE(D, __builtin_sqrt(x[i])) }
#endif
#if defined RW_FMA
RW_INLINE F fma(F x, F b, F c) { RW_LANEWISE(F, __builtin_fmaf(x[i], b[i], c[i])) }
RW_INLINE D fma(D x, D b, D c) { RW_LANEWISE(D, __builtin_fma(x[i], b[i], c[i])) }
#endif
#undef RW_LANEWISE
template <class C> RW_INLINE C rint_by_adding(C x, C big) {
    C a = magnitude(x);
    return with_sign(a < big ? (a + big) - big : a, x);
}
RW_INLINE F rint(F x) { return rint_by_adding(x, all(0x1p23f)); }
RW_INLINE D rint(D x) { return rint_by_adding(x, all(0x1p52)); }
template <class C> RW_INLINE C floor(C x) { C r = rint(x); return with_sign(r > x ? r - 1 : r, x); }
template <class C> RW_INLINE C ceil(C x) { C r = rint(x); return with_sign(r < x ? r + 1 : r, x); }
template <class C> RW_INLINE C trunc(C x) { return with_sign(floor(magnitude(x)), x); }
#endif
#endif

#if defined RW_ROUND
RW_ROUND(rint, 8)
RW_ROUND(floor, 9)
RW_ROUND(ceil, 10)
RW_ROUND(trunc, 11)
#undef RW_ROUND
#endif
#if !defined RW_FMA
RW_INLINE F fma(F a, F b, F c) { return a * b + c; }
RW_INLINE D fma(D a, D b, D c) { return a * b + c; }
#endif

#if defined RW_AVX512 && !defined __clang__
// Partial memory: lanes whose bit is set; the others read as 0, and their bytes are never touched.
#define RW_PARTIAL_MEMORY 1
template <int n> struct lane_count {};
#define RW_PARTIAL(T, n, Raw, loader, storer) \
    RW_INLINE vec<T, n> load_lanes(const T* p, unsigned bits, lane_count<n>) { \
        return (vec<T, n>)loader((const Raw*)p, vec<Raw, n>{}, bits); \
    } \
    RW_INLINE void store_lanes(T* p, vec<T, n> v, unsigned bits) { \
        storer((Raw*)p, (vec<Raw, n>)v, bits); \
    }
RW_PARTIAL(u8, 16, char, __builtin_ia32_loaddquqi128_mask, __builtin_ia32_storedquqi128_mask)
RW_PARTIAL(u16, 16, short, __builtin_ia32_loaddquhi256_mask, __builtin_ia32_storedquhi256_mask)
RW_PARTIAL(u32, 8, int, __builtin_ia32_loaddqusi256_mask, __builtin_ia32_storedqusi256_mask)
RW_PARTIAL(u32, 16, int, __builtin_ia32_loaddqusi512_mask, __builtin_ia32_storedqusi512_mask)
RW_PARTIAL(u64, 8, long long, __builtin_ia32_loaddqudi512_mask, __builtin_ia32_storedqudi512_mask)
#undef RW_PARTIAL
#endif

}  // namespace rw
