// Sixteen lanes at a time: the vocabulary in which every generated C++ kernel is written.
//
// A value is a V<T>, W = 16 lanes of a compute type T: f32v, f64v, i32v, i64v, or mask (of bool).
// Storage types (bf16, f16, f8, narrow integers) exist in memory only: load and store convert, and
// round_to<T> leaves a value as storing it in a T would. A value that is the same everywhere is a
// vector too, so there is no scalar path: an element has the same bits wherever it stands, in a
// full vector or in the partial one at the end. A V is as many registers ("chunks") as that takes.
//
//   memory       load store, load_part store_part (first n lanes), load_strided store_strided,
//                gather scatter, splat, iota, lane
//   arithmetic   add sub mul div neg abs sign sqrt rsqrt reciprocal fma floor ceil round trunc
//                copysign maximum minimum fmax fmin div_trunc div_floor fmod remainder pow
//   functions    exp exp2 expm1 sigmoid log log2 log10 log1p sin cos tan asin acos atan atan2 sinh
//                cosh tanh asinh acosh atanh erf erfc erfinv lgamma hypot nextafter
//   integers     bitwise_and bitwise_or bitwise_xor bitwise_not shift_left shift_right
//   masks        eq ne lt le gt ge isnan isinf isfinite first, logical_and logical_or logical_xor
//                logical_not, select, bits first_bits
//   casts        cast<T> round_to<T>          reductions   hsum hprod hmax hmin hany hall
//
// Build with -O2 -ffp-contract=off -fno-math-errno -fno-trapping-math -fwrapv, never -ffast-math:
// NaN, infinities and signed zeros are exact, integers wrap.
#pragma once

#include "simd_isa.h"

namespace rw {

constexpr int W = 16;

template <class T> struct V {
    static constexpr int K = W * sizeof(T) / REGISTER;  // chunks
    chunk<T> c[K];
};
template <> struct V<bool> {  // 0 or -1 in every lane
    static constexpr int K = W / LANES;
    I c[K];
};
using f32v = V<f32>;
using f64v = V<f64>;
using i32v = V<i32>;
using i64v = V<i64>;
using mask = V<bool>;

template <class A, class B> constexpr bool same = false;
template <class A> constexpr bool same<A, A> = true;
template <class T> constexpr bool is_float = same<T, f32> || same<T, f64>;

// return the V<T> whose chunk k is the expression
#define RW_EACH(T, ...) \
    V<T> r; \
    RW_UNROLL for (int k = 0; k < V<T>::K; ++k) r.c[k] = (__VA_ARGS__); \
    return r;

template <class T> RW_INLINE V<T> splat(T x) { RW_EACH(T, all(x)) }

// ---- storage types ------------------------------------------------------------------------------
struct bf16 { u16 bits; };
struct f16 { u16 bits; };
struct f8e4m3fn { u8 bits; };
struct f8e5m2 { u8 bits; };

// storage<T>: Raw lanes as they lie in memory, the Lane type they are computed in, unpack and pack
// between the two, and round, which is unpack after pack. Here for types computed as stored.
template <class T> struct storage {
    using Raw = T;
    using Lane = T;
    RW_INLINE chunk<T> unpack(chunk<T> v) { return v; }
    RW_INLINE chunk<T> pack(chunk<T> c) { return c; }
    RW_INLINE chunk<T> round(chunk<T> c) { return c; }
};
template <class T> using lane_of = typename storage<T>::Lane;
template <class T> using compute = V<lane_of<T>>;

#define RW_NARROW_INTEGER(T, narrow_to, rounded) \
    template <> struct storage<T> { \
        using Raw = T; \
        using Lane = i32; \
        RW_INLINE I unpack(lanes<T> v) { return widen(v); } \
        RW_INLINE lanes<T> pack(I c) { return (lanes<T>)narrow_to(c); } \
        RW_INLINE I round(I c) { return rounded; } \
    };
RW_NARROW_INTEGER(i8, narrow_to_8, c << 24 >> 24)
RW_NARROW_INTEGER(u8, narrow_to_8, c & 0xff)
RW_NARROW_INTEGER(i16, narrow_to_16, c << 16 >> 16)
RW_NARROW_INTEGER(u16, narrow_to_16, c & 0xffff)
#undef RW_NARROW_INTEGER
template <> struct storage<u32> {
    using Raw = u32;
    using Lane = i64;
    RW_INLINE L unpack(half<u32> v) { return widen(v); }
    RW_INLINE half<u32> pack(L c) { return narrow_to_32(c); }
    RW_INLINE L round(L c) { return c & 0xffffffffL; }
};
template <> struct storage<u64> {  // by its bits: compares, divides and casts as an i64
    using Raw = u64;
    using Lane = i64;
    RW_INLINE L unpack(chunk<u64> v) { return (L)v; }
    RW_INLINE chunk<u64> pack(L c) { return (chunk<u64>)c; }
    RW_INLINE L round(L c) { return c; }
};
template <> struct storage<bool> {
    using Raw = u8;
    using Lane = bool;
    RW_INLINE I unpack(lanes<u8> v) { return widen(v) != 0; }
    RW_INLINE lanes<u8> pack(I c) { return narrow_to_8(-c); }
    RW_INLINE I round(I c) { return c; }
};
template <> struct storage<bf16> {
    using Raw = u16;
    using Lane = f32;
    RW_INLINE F unpack(lanes<u16> v) { return (F)(widen(v) << 16); }
    RW_INLINE lanes<u16> pack(F c) { return narrow_to_16((I)round(c) >> 16); }
    RW_INLINE F round(F c) {  // half to even
        I b = (I)c;
        I nearest = b + 0x7fff + ((b >> 16) & 1);
        return (F)((c == c ? nearest : b | 0x00400000) & -0x10000);
    }
};

// A float with a sign, E bits of exponent and M of mantissa. IEEE: the top exponent is inf and NaN.
// Otherwise only the largest code is NaN, and what is too large, inf too, becomes the largest
// number, as torch 2.13 has it.
template <int E, int M, bool IEEE> struct small_float {
    static constexpr int SHIFT = 23 - M, BIAS = (1 << (E - 1)) - 1;
    static constexpr i32 REBIAS = (127 - BIAS) << 23;
    static constexpr i32 TOP = IEEE ? ((1 << E) - 1) << M : (1 << (E + M)) - 1;  // inf, or NaN
    static constexpr i32 QUIET = IEEE ? TOP | 1 << (M - 1) : TOP;
    static constexpr i32 power(int e) { return (127 + e) << 23; }  // the bits of 2^e in f32

    RW_INLINE F decode(I bits) {
        I code = bits & ((1 << (E + M)) - 1);
        F subnormal = convert<F>(code) * (F)all(power(1 - BIAS - M));
        F value = code < (1 << M) ? subnormal : (F)((code << SHIFT) + REBIAS);
        value = code >= TOP ? (F)((code << SHIFT) | 0x7f800000) : value;
        return with_sign(value, (F)(bits << (31 - E - M)));
    }
    RW_INLINE I encode(F x) {  // half to even
        I a = (I)magnitude(x), ulp_is_ours = all(power(24 - BIAS - M));
        I subnormal = (I)((F)a + (F)ulp_is_ours) - ulp_is_ours;
        I value = (a - REBIAS + ((1 << (SHIFT - 1)) - 1) + ((a >> SHIFT) & 1)) >> SHIFT;
        value = a < power(1 - BIAS) ? subnormal : value;
        value = value < TOP ? value : all(IEEE ? TOP : TOP - 1);
        value = x == x ? value : all(QUIET);
        return value | (((I)x >> (31 - E - M)) & (1 << (E + M)));
    }
};
template <class Small> struct f8_storage {
    using Raw = u8;
    using Lane = f32;
    RW_INLINE F unpack(lanes<u8> v) { return Small::decode(widen(v)); }
    RW_INLINE lanes<u8> pack(F c) { return narrow_to_8(Small::encode(c)); }
    RW_INLINE F round(F c) { return Small::decode(Small::encode(c)); }
};
template <> struct storage<f8e4m3fn> : f8_storage<small_float<4, 3, false>> {};
template <> struct storage<f8e5m2> : f8_storage<small_float<5, 2, true>> {};
#if !defined RW_F16
RW_INLINE F from_f16(lanes<u16> v) { return small_float<5, 10, true>::decode(widen(v)); }
RW_INLINE lanes<u16> to_f16(F x) { return narrow_to_16(small_float<5, 10, true>::encode(x)); }
#endif
template <> struct storage<f16> {
    using Raw = u16;
    using Lane = f32;
    RW_INLINE F unpack(lanes<u16> v) { return from_f16(v); }
    RW_INLINE lanes<u16> pack(F c) { return to_f16(c); }
    RW_INLINE F round(F c) { return from_f16(to_f16(c)); }
};

template <class T> RW_INLINE compute<T> round_to(compute<T> x) {
    RW_EACH(lane_of<T>, storage<T>::round(x.c[k]))
}

// ---- memory -------------------------------------------------------------------------------------
template <class T> constexpr int STEP = W / compute<T>::K;  // elements of a storage type in a chunk
template <class T> using raw_lanes = vec_of<typename storage<T>::Raw, STEP<T>>;

template <class T> RW_INLINE compute<T> load(const T* p) {
    using Raw = raw_lanes<T>;
    RW_EACH(lane_of<T>, storage<T>::unpack(
        (typename Raw::type)*(const typename Raw::unaligned*)(p + k * STEP<T>)))
}
template <class T> RW_INLINE void store(T* p, compute<T> v) {
    RW_UNROLL for (int k = 0; k < compute<T>::K; ++k)
        *(typename raw_lanes<T>::unaligned*)(p + k * STEP<T>) = storage<T>::pack(v.c[k]);
}

// The first n lanes, 0 <= n <= W. No other byte is touched; the other lanes are loaded as 0.
RW_INLINE unsigned first_bits(int n) { return (1u << n) - 1; }
template <class T> RW_INLINE compute<T> load_part(const T* p, int n) {
#if defined RW_PARTIAL_MEMORY
    using Bits = uint_of<T>;
    RW_EACH(lane_of<T>, storage<T>::unpack((typename raw_lanes<T>::type)load_lanes(
        (const Bits*)p + k * STEP<T>, first_bits(n) >> (k * STEP<T>), lane_count<STEP<T>>{})))
#else
    T lanes[W] = {};
    __builtin_memcpy(lanes, p, n * sizeof(T));
    return load(lanes);
#endif
}
template <class T> RW_INLINE void store_part(T* p, compute<T> v, int n) {
#if defined RW_PARTIAL_MEMORY
    using Bits = uint_of<T>;
    RW_UNROLL for (int k = 0; k < compute<T>::K; ++k)
        store_lanes((Bits*)p + k * STEP<T>, (vec<Bits, STEP<T>>)storage<T>::pack(v.c[k]),
                    first_bits(n) >> (k * STEP<T>));
#else
    T lanes[W];
    store(lanes, v);
    __builtin_memcpy(p, lanes, n * sizeof(T));
#endif
}

// Lane i from or to p[at[i]], for the set of lanes `which`: first_bits(n), or bits(m) of a mask.
// Other lanes are loaded as 0. Stores go in order: of equal indices the last lane stays.
constexpr unsigned EVERY = (1u << W) - 1;
template <class T, class Index>
RW_INLINE compute<T> gather(const T* p, V<Index> at, unsigned which = EVERY) {
    using Raw = typename storage<T>::Raw;
    Index index[W];
    Raw value[W] = {};
    store(index, at);
    RW_UNROLL for (int i = 0; i < W; ++i)
        if (which >> i & 1) value[i] = ((const Raw*)p)[index[i]];
    return load((const T*)value);
}
template <class T, class Index>
RW_INLINE void scatter(T* p, V<Index> at, compute<T> v, unsigned which = EVERY) {
    using Raw = typename storage<T>::Raw;
    Index index[W];
    Raw value[W];
    store(index, at);
    store((T*)value, v);
    RW_UNROLL for (int i = 0; i < W; ++i)
        if (which >> i & 1) ((Raw*)p)[index[i]] = value[i];
}

// Lane i from or to p[i * stride], for the first n lanes.
template <class T> RW_INLINE compute<T> load_strided(const T* p, i64 stride, int n = W) {
    using Raw = typename storage<T>::Raw;
    Raw value[W] = {};
    RW_UNROLL for (int i = 0; i < W; ++i)
        if (i < n) value[i] = ((const Raw*)p)[i * stride];
    return load((const T*)value);
}
template <class T> RW_INLINE void store_strided(T* p, compute<T> v, i64 stride, int n = W) {
    using Raw = typename storage<T>::Raw;
    Raw value[W];
    store((T*)value, v);
    RW_UNROLL for (int i = 0; i < W; ++i)
        if (i < n) ((Raw*)p)[i * stride] = value[i];
}

// iota(x): x, x + 1, ... x + 15. lane(v, i): lane i of v.
template <class T> RW_INLINE V<T> iota(T x) {
    T counts[W];
    RW_UNROLL for (int i = 0; i < W; ++i) counts[i] = T(i);
    V<T> count = load(counts);
    RW_EACH(T, x + count.c[k])
}
template <class T> RW_INLINE T lane(V<T> v, int i) {
    T lanes[W];
    store(lanes, v);
    return lanes[i];
}

// ---- elementwise --------------------------------------------------------------------------------
// An expression of chunks a, b lifted to V<T>, for every T it compiles for. Masks are no numbers.
#define RW_UNARY(name, ...) \
    template <class T> RW_INLINE V<T> name(V<T> x) { \
        static_assert(!same<T, bool>, "cast the mask first"); \
        V<T> r; \
        RW_UNROLL for (int k = 0; k < V<T>::K; ++k) { \
            chunk<T> a = x.c[k]; \
            r.c[k] = __VA_ARGS__; \
        } \
        return r; \
    }
#define RW_BINARY(name, ...) \
    template <class T> RW_INLINE V<T> name(V<T> x, V<T> y) { \
        static_assert(!same<T, bool>, "cast the masks first"); \
        V<T> r; \
        RW_UNROLL for (int k = 0; k < V<T>::K; ++k) { \
            chunk<T> a = x.c[k], b = y.c[k]; \
            r.c[k] = __VA_ARGS__; \
        } \
        return r; \
    }

RW_INLINE I magnitude(I a) { return a < 0 ? -a : a; }
RW_INLINE L magnitude(L a) { return a < 0 ? -a : a; }
RW_INLINE I least(I a, I b) { return a < b ? a : b; }
RW_INLINE L least(L a, L b) { return a < b ? a : b; }
RW_INLINE I greatest(I a, I b) { return a > b ? a : b; }
RW_INLINE L greatest(L a, L b) { return a > b ? a : b; }

RW_UNARY(neg, -a)
RW_UNARY(abs, magnitude(a))
RW_UNARY(sign, a > 0 ? all(T(1)) : a < 0 ? all(T(-1)) : all(T(0)))  // of NaN: 0
RW_BINARY(add, a + b)
RW_BINARY(sub, a - b)
RW_BINARY(mul, a * b)
RW_BINARY(maximum, a == a ? greatest(a, b) : a)  // NaN if either is
RW_BINARY(minimum, a == a ? least(a, b) : a)
RW_BINARY(fmax, b == b ? greatest(a, b) : a)  // NaN if both are
RW_BINARY(fmin, b == b ? least(a, b) : a)

// Floats.
RW_BINARY(div, a / b)
RW_BINARY(copysign, with_sign(a, b))
RW_UNARY(sqrt, sqrt(a))
RW_UNARY(rsqrt, 1 / sqrt(a))
RW_UNARY(reciprocal, 1 / a)
RW_UNARY(floor, floor(a))
RW_UNARY(ceil, ceil(a))
RW_UNARY(round, rint(a))
RW_UNARY(trunc, trunc(a))
RW_INLINE f32v fma(f32v x, f32v y, f32v z) { RW_EACH(f32, fma(x.c[k], y.c[k], z.c[k])) }
RW_INLINE f64v fma(f64v x, f64v y, f64v z) { RW_EACH(f64, fma(x.c[k], y.c[k], z.c[k])) }

// Truncating division; of integers it is total: by 0 gives 0, the least integer by -1 is itself.
RW_INLINE F quotient(F a, F b) { return trunc(a / b); }
RW_INLINE D quotient(D a, D b) { return trunc(a / b); }
RW_INLINE I quotient(I a, I b) {  // the quotient of two ints in f64 truncates as the exact one does
    I d = ((b == 0) | (b == -1)) ? all(1) : b;
    half<i32> low = convert<half<i32>>(convert<D>(lower(a)) / convert<D>(lower(d)));
    half<i32> high = convert<half<i32>>(convert<D>(upper(a)) / convert<D>(upper(d)));
    return b == 0 ? all(0) : b == -1 ? -a : joined(low, high);
}
RW_INLINE L quotient(L a, L b) {  // gcc 12 takes `b == -1 ? -a : a / b` of equal a and b for -1
    L d = ((b == 0) | (b == -1)) ? all(i64(1)) : b, q{};
    RW_UNROLL for (int i = 0; i < SIZE<L>; ++i) q[i] = a[i] / d[i];
    return b == 0 ? all(i64(0)) : b == -1 ? -a : q;
}
RW_BINARY(div_trunc, quotient(a, b))

// Integers. A shift by a negative count, or by the width and more, shifts everything out.
template <class C> constexpr int BITS = 8 * sizeof(C{}[0]);
template <class C> RW_INLINE auto in_width(C count) { return (count >= 0) & (count < BITS<C>); }
RW_BINARY(bitwise_and, a & b)
RW_BINARY(bitwise_or, a | b)
RW_BINARY(bitwise_xor, a ^ b)
RW_UNARY(bitwise_not, ~a)
RW_BINARY(shift_left, in_width(b) ? a << (b & (BITS<chunk<T>> - 1)) : all(T(0)))
RW_BINARY(shift_right, a >> (in_width(b) ? b : all(T(BITS<chunk<T>> - 1))))
RW_BINARY(fmod, b == 0 ? all(T(0)) : a - quotient(a, b) * b)  // by 0: 0; of floats: simd_math.h

// ---- masks --------------------------------------------------------------------------------------
// The chunks of a comparison of Ts are as wide as T; those of a mask are ints.
template <class T> struct wide_mask {
    __typeof__(chunk<T>{} == chunk<T>{}) c[V<T>::K];
};
template <class T> RW_INLINE mask narrowed(wide_mask<T> m) {
    if constexpr (sizeof(T) == 4) {
        RW_EACH(bool, (I)m.c[k])
    } else {
        RW_EACH(bool, narrow((L)m.c[2 * k], (L)m.c[2 * k + 1]))
    }
}
template <class T> RW_INLINE wide_mask<T> widened(mask m) {
    wide_mask<T> r;
    RW_UNROLL for (int k = 0; k < mask::K; ++k) {
        if constexpr (sizeof(T) == 4) {
            r.c[k] = m.c[k];
        } else {
            r.c[2 * k] = widen(lower(m.c[k]));
            r.c[2 * k + 1] = widen(upper(m.c[k]));
        }
    }
    return r;
}

#define RW_COMPARISON(name, op) \
    template <class T> RW_INLINE mask name(V<T> x, V<T> y) { \
        wide_mask<T> r; \
        RW_UNROLL for (int k = 0; k < V<T>::K; ++k) r.c[k] = x.c[k] op y.c[k]; \
        return narrowed<T>(r); \
    } \
    RW_INLINE mask name(mask x, mask y) { RW_EACH(bool, -x.c[k] op -y.c[k]) }
RW_COMPARISON(eq, ==)
RW_COMPARISON(ne, !=)
RW_COMPARISON(lt, <)
RW_COMPARISON(le, <=)
RW_COMPARISON(gt, >)
RW_COMPARISON(ge, >=)
#undef RW_COMPARISON
template <class T> RW_INLINE mask isnan(V<T> x) { return ne(x, x); }
template <class T> RW_INLINE mask isinf(V<T> x) { return eq(abs(x), splat(T(__builtin_inf()))); }
template <class T> RW_INLINE mask isfinite(V<T> x) { return lt(abs(x), splat(T(__builtin_inf()))); }

RW_INLINE mask logical_and(mask x, mask y) { RW_EACH(bool, x.c[k] & y.c[k]) }
RW_INLINE mask logical_or(mask x, mask y) { RW_EACH(bool, x.c[k] | y.c[k]) }
RW_INLINE mask logical_xor(mask x, mask y) { RW_EACH(bool, x.c[k] ^ y.c[k]) }
RW_INLINE mask logical_not(mask x) { RW_EACH(bool, ~x.c[k]) }
RW_INLINE mask first(int n) { return lt(iota(0), splat(n)); }
RW_INLINE unsigned bits(mask m) {
    unsigned r = 0;
    RW_UNROLL for (int k = 0; k < mask::K; ++k) r |= signs(m.c[k]) << (k * LANES);
    return r;
}
template <class T> RW_INLINE V<T> select(mask m, V<T> x, V<T> y) {
    wide_mask<T> which = widened<T>(m);
    RW_EACH(T, which.c[k] != 0 ? x.c[k] : y.c[k])
}
RW_INLINE mask select(mask m, mask x, mask y) {
    RW_EACH(bool, (m.c[k] & x.c[k]) | (~m.c[k] & y.c[k]))
}

// ---- casts --------------------------------------------------------------------------------------
// Between compute types, in one rounding. Floats to integers truncate; NaN and what does not fit
// give the least integer, as on x86.
template <class C> RW_INLINE C fitting(C x, C bound) {
    return ((x >= -bound) & (x < bound)) ? x : -bound;
}
template <class C> RW_INLINE auto half_of(C a, int which) { return which ? upper(a) : lower(a); }

RW_INLINE f64v to_f64(f32v x) { RW_EACH(f64, widen(half_of(x.c[k / 2], k % 2))) }
RW_INLINE f64v to_f64(i32v x) { RW_EACH(f64, convert<D>(half_of(x.c[k / 2], k % 2))) }
RW_INLINE f64v to_f64(i64v x) { RW_EACH(f64, convert<D>(x.c[k])) }
RW_INLINE f32v to_f32(f64v x) { RW_EACH(f32, narrow(x.c[2 * k], x.c[2 * k + 1])) }
RW_INLINE f32v to_f32(i32v x) { RW_EACH(f32, convert<F>(x.c[k])) }
RW_INLINE f32v to_f32(i64v x) {
    RW_EACH(f32, joined(convert<half<f32>>(x.c[2 * k]), convert<half<f32>>(x.c[2 * k + 1])))
}
RW_INLINE i64v to_i64(i32v x) { RW_EACH(i64, widen(half_of(x.c[k / 2], k % 2))) }
RW_INLINE i64v to_i64(f64v x) { RW_EACH(i64, convert<L>(fitting(x.c[k], all(0x1p63)))) }
RW_INLINE i64v to_i64(f32v x) { return to_i64(to_f64(x)); }
RW_INLINE half<i32> to_half_i32(D c) { return convert<half<i32>>(fitting(c, all(0x1p31))); }
RW_INLINE i32v to_i32(f32v x) { RW_EACH(i32, convert<I>(fitting(x.c[k], all(0x1p31f)))) }
RW_INLINE i32v to_i32(f64v x) {
    RW_EACH(i32, joined(to_half_i32(x.c[2 * k]), to_half_i32(x.c[2 * k + 1])))
}
RW_INLINE i32v to_i32(i64v x) { RW_EACH(i32, narrow(x.c[2 * k], x.c[2 * k + 1])) }
RW_INLINE i32v to_i32(mask x) { RW_EACH(i32, -x.c[k]) }

// cast<To>(x): x as PyTorch casts it to the storage type To, held in To's compute type.
template <class To, class T> RW_INLINE compute<To> cast(V<T> x) {
    using Lane = lane_of<To>;
    if constexpr (same<T, bool> && !same<Lane, bool>) {
        return cast<To>(to_i32(x));
    } else if constexpr (same<To, u8> && same<T, f64>) {
        return cast<To>(to_i64(x));  // torch goes to u8 by way of i64
    } else if constexpr (same<T, Lane>) {
        return round_to<To>(x);
    } else if constexpr (same<Lane, bool>) {
        return ne(x, V<T>{});
    } else if constexpr (same<Lane, f32>) {
        return round_to<To>(to_f32(x));
    } else if constexpr (same<Lane, f64>) {
        return round_to<To>(to_f64(x));
    } else if constexpr (same<Lane, i64>) {
        return round_to<To>(to_i64(x));
    } else {
        return round_to<To>(to_i32(x));
    }
}

// ---- reductions ---------------------------------------------------------------------------------
// A tree by halves, the same on every machine: lane i with lane i + 8, then + 4, + 2, + 1.
template <int step, class C, class Op> RW_INLINE auto fold(C c, Op op) {
    if constexpr (step == 0) {
        return c[0];
    } else if constexpr (sizeof c > 16) {
        return fold<step / 2>(op(lower(c), upper(c)), op);
    } else {
        return fold<step / 2>(op(c, shuffled<step, 1>(c, c, count<SIZE<C>>{})), op);
    }
}
#define RW_REDUCTION(name, ...) \
    template <class T> RW_INLINE T name(V<T> v) { \
        auto op = [](auto a, auto b) __attribute__((always_inline)) { return __VA_ARGS__; }; \
        RW_UNROLL for (int h = V<T>::K / 2; h > 0; h /= 2) \
            RW_UNROLL for (int k = 0; k < h; ++k) v.c[k] = op(v.c[k], v.c[k + h]); \
        return fold<W / V<T>::K / 2>(v.c[0], op); \
    }
RW_REDUCTION(hsum, a + b)
RW_REDUCTION(hprod, a * b)
RW_REDUCTION(hmax, ((a != a) | (a > b)) ? a : b)  // NaN if any is
RW_REDUCTION(hmin, ((a != a) | (a < b)) ? a : b)
#undef RW_REDUCTION
RW_INLINE bool hany(mask m) { return bits(m) != 0; }
RW_INLINE bool hall(mask m) { return bits(m) == EVERY; }

}  // namespace rw

#include "simd_math.h"
