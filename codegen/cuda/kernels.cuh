// What kernels are written with: element types, the primitives of scalar expressions, reductions
// over warps and blocks. Needs no other header, so that NVRTC compiles it in some hundredths of a
// second. Arithmetic is IEEE's: no fused multiply-add, no approximate division (--fmad=false).
#pragma once

#define RW_FN static __device__ __forceinline__

#ifdef __CUDACC_RTC__  // NVRTC lacks what other compilers have built in
#define __builtin_inff() __uint_as_float(0x7f800000u)
#define __builtin_nanf(text) __uint_as_float(0x7fc00000u)
#define __builtin_inf() __longlong_as_double(0x7ff0000000000000ll)
#define __builtin_nan(text) __longlong_as_double(0x7ff8000000000000ll)
#endif

namespace rw {

using f64 = double;
using f32 = float;
using i64 = long;
using i32 = int;
using i16 = short;
using i8 = signed char;
using u64 = unsigned long;
using u32 = unsigned int;
using u16 = unsigned short;
using u8 = unsigned char;
struct f16 { u16 bits; };
struct bf16 { u16 bits; };

// --- elements -------------------------------------------------------------------------------------

#ifdef RW_ON_CPU  // where a test has the same in plain C++
#include RW_ON_CPU
#else
RW_FN f32 widened(f16 x) {
  f32 y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
RW_FN f32 widened(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }
template <class To> struct Narrow;
template <> struct Narrow<f16> {
  RW_FN f16 of(f32 x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
  }
};
template <> struct Narrow<bf16> {
  RW_FN bf16 of(f32 x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
  }
};
#endif

// Conversions between compute types, as torch's: a truth is any number but zero.
template <class To, class From> struct Cast {
  RW_FN To of(From x) { return To(x); }
};
template <class From> struct Cast<bool, From> {
  RW_FN bool of(From x) { return x != From(0); }
};
template <> struct Cast<bool, bool> {
  RW_FN bool of(bool x) { return x; }
};
template <> struct Cast<f16, f32> : Narrow<f16> {};
template <> struct Cast<bf16, f32> : Narrow<bf16> {};
template <class To> struct Cast<To, f16> {
  RW_FN To of(f16 x) { return Cast<To, f32>::of(widened(x)); }
};
template <class To> struct Cast<To, bf16> {
  RW_FN To of(bf16 x) { return Cast<To, f32>::of(widened(x)); }
};
template <> struct Cast<f16, f64> {
  RW_FN f16 of(f64 x) { return Narrow<f16>::of(f32(x)); }
};
template <> struct Cast<bf16, f64> {
  RW_FN bf16 of(f64 x) { return Narrow<bf16>::of(f32(x)); }
};
template <class To, class From> RW_FN To cast(From x) { return Cast<To, From>::of(x); }

// The value as `Storage` holds it, in the type that is computed in.
template <class Storage, class T> RW_FN T round_to(T x) { return cast<T>(cast<Storage>(x)); }

// N neighbours that are read and written at once.
template <class T, int N> struct alignas(sizeof(T) * N) Pack { T at[N]; };
template <int N, class T> RW_FN Pack<T, N> load(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <int N, class T> RW_FN void store(T* to, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// --- sizes ----------------------------------------------------------------------------------------

// Python's division and remainder.
RW_FN i64 size_div(i64 x, i64 y) { return x / y - (x % y != 0 && (x < 0) != (y < 0)); }
RW_FN i64 size_mod(i64 x, i64 y) { return x - size_div(x, y) * y; }
RW_FN i64 size_max(i64 x, i64 y) { return x > y ? x : y; }
RW_FN i64 size_min(i64 x, i64 y) { return x < y ? x : y; }
RW_FN i64 size_pow(i64 x, i64 y) {
  i64 power = 1;
  for (; y > 0; --y) power *= x;
  return power;
}
RW_FN bool within(i64 at, i64 low, i64 high) { return low <= at && at < high; }

// --- primitives -----------------------------------------------------------------------------------

#define RW_FLOATS(name, of)                       \
  RW_FN f32 name(f32 x) { return ::of##f(x); }    \
  RW_FN f64 name(f64 x) { return ::of(x); }
RW_FLOATS(exp, exp)
RW_FLOATS(exp2, exp2)
RW_FLOATS(expm1, expm1)
RW_FLOATS(log, log)
RW_FLOATS(log2, log2)
RW_FLOATS(log10, log10)
RW_FLOATS(log1p, log1p)
RW_FLOATS(sin, sin)
RW_FLOATS(cos, cos)
RW_FLOATS(tan, tan)
RW_FLOATS(asin, asin)
RW_FLOATS(acos, acos)
RW_FLOATS(atan, atan)
RW_FLOATS(sinh, sinh)
RW_FLOATS(cosh, cosh)
RW_FLOATS(tanh, tanh)
RW_FLOATS(asinh, asinh)
RW_FLOATS(acosh, acosh)
RW_FLOATS(atanh, atanh)
RW_FLOATS(erf, erf)
RW_FLOATS(erfc, erfc)
RW_FLOATS(erfinv, erfinv)
RW_FLOATS(lgamma, lgamma)
RW_FLOATS(floor, floor)
RW_FLOATS(ceil, ceil)
RW_FLOATS(round, rint)
RW_FLOATS(trunc, trunc)
RW_FLOATS(sqrt, sqrt)
RW_FLOATS(rsqrt, rsqrt)
#undef RW_FLOATS

#define RW_FLOATS(name, of)                                \
  RW_FN f32 name(f32 x, f32 y) { return ::of##f(x, y); }   \
  RW_FN f64 name(f64 x, f64 y) { return ::of(x, y); }
RW_FLOATS(atan2, atan2)
RW_FLOATS(fmod, fmod)
RW_FLOATS(copysign, copysign)
RW_FLOATS(hypot, hypot)
RW_FLOATS(nextafter, nextafter)
RW_FLOATS(pow, pow)
#undef RW_FLOATS

#define RW_EACH(macro) macro(f32) macro(f64) macro(i32) macro(i64)
#define RW_NUMBERS(T)                                     \
  RW_FN bool eq(T x, T y) { return x == y; }              \
  RW_FN bool ne(T x, T y) { return x != y; }              \
  RW_FN bool lt(T x, T y) { return x < y; }               \
  RW_FN bool le(T x, T y) { return x <= y; }              \
  RW_FN bool gt(T x, T y) { return x > y; }               \
  RW_FN bool ge(T x, T y) { return x >= y; }              \
  RW_FN bool logical_and(T x, T y) { return x != 0 && y != 0; } \
  RW_FN bool logical_or(T x, T y) { return x != 0 || y != 0; }  \
  RW_FN bool logical_xor(T x, T y) { return (x != 0) != (y != 0); } \
  RW_FN bool logical_not(T x) { return x == 0; }          \
  RW_FN T sign(T x) { return T((x > 0) - (x < 0)); }      \
  RW_FN T select(bool mask, T x, T y) { return mask ? x : y; }
RW_EACH(RW_NUMBERS)
#undef RW_NUMBERS

#define RW_REALS(T)                                                                   \
  RW_FN T add(T x, T y) { return x + y; }                                             \
  RW_FN T sub(T x, T y) { return x - y; }                                             \
  RW_FN T mul(T x, T y) { return x * y; }                                             \
  RW_FN T div(T x, T y) { return x / y; }                                             \
  RW_FN T neg(T x) { return -x; }                                                     \
  RW_FN T abs(T x) { return copysign(x, T(1)); }                                      \
  RW_FN T reciprocal(T x) { return T(1) / x; }                                        \
  RW_FN T sigmoid(T x) { return T(1) / (T(1) + exp(-x)); }                            \
  RW_FN bool isnan(T x) { return x != x; }                                            \
  RW_FN bool isinf(T x) { return abs(x) == T(__builtin_inff()); }                     \
  RW_FN T maximum(T x, T y) { return x != x ? x : y != y ? y : x > y ? x : y; }       \
  RW_FN T minimum(T x, T y) { return x != x ? x : y != y ? y : x < y ? x : y; }       \
  RW_FN T fmax(T x, T y) { return x != x ? y : y != y ? x : x > y ? x : y; }          \
  RW_FN T fmin(T x, T y) { return x != x ? y : y != y ? x : x < y ? x : y; }          \
  RW_FN T div_trunc(T x, T y) { return trunc(x / y); }                                \
  RW_FN T remainder(T x, T y) {                                                       \
    const T rest = fmod(x, y);                                                        \
    return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;                      \
  }                                                                                   \
  /* c10's div_floor: the quotient of what is left without the remainder. */          \
  RW_FN T div_floor(T x, T y) {                                                       \
    if (y == 0) return x / y;                                                         \
    const T rest = fmod(x, y);                                                        \
    T quotient = (x - rest) / y;                                                      \
    if (rest != 0 && (rest < 0) != (y < 0)) quotient -= 1;                            \
    if (quotient == 0) return copysign(T(0), x / y);                                  \
    const T whole = floor(quotient);                                                  \
    return quotient - whole > T(0.5) ? whole + 1 : whole;                             \
  }
RW_REALS(f32)
RW_REALS(f64)
#undef RW_REALS

// Integers wrap around; a division by zero gives something.
#define RW_INTEGERS(T, U, BITS)                                                       \
  RW_FN T add(T x, T y) { return T(U(x) + U(y)); }                                    \
  RW_FN T sub(T x, T y) { return T(U(x) - U(y)); }                                    \
  RW_FN T mul(T x, T y) { return T(U(x) * U(y)); }                                    \
  RW_FN T neg(T x) { return T(-U(x)); }                                               \
  RW_FN T abs(T x) { return x < 0 ? neg(x) : x; }                                     \
  RW_FN T maximum(T x, T y) { return x > y ? x : y; }                                 \
  RW_FN T minimum(T x, T y) { return x < y ? x : y; }                                 \
  RW_FN T fmax(T x, T y) { return x > y ? x : y; }                                    \
  RW_FN T fmin(T x, T y) { return x < y ? x : y; }                                    \
  RW_FN T bitwise_and(T x, T y) { return x & y; }                                     \
  RW_FN T bitwise_or(T x, T y) { return x | y; }                                      \
  RW_FN T bitwise_xor(T x, T y) { return x ^ y; }                                     \
  RW_FN T bitwise_not(T x) { return ~x; }                                             \
  RW_FN T shift_left(T x, T y) { return y >= 0 && y < BITS ? T(U(x) << y) : T(0); }   \
  RW_FN T shift_right(T x, T y) { return x >> (y >= 0 && y < BITS ? y : BITS - 1); }  \
  RW_FN T div_trunc(T x, T y) { return y == 0 ? 0 : y == -1 ? neg(x) : x / y; }       \
  RW_FN T fmod(T x, T y) { return y == 0 || y == -1 ? 0 : x % y; }                    \
  RW_FN T remainder(T x, T y) {                                                       \
    const T rest = fmod(x, y);                                                        \
    return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;                      \
  }                                                                                   \
  RW_FN T div_floor(T x, T y) {                                                       \
    const T rest = fmod(x, y);                                                        \
    return div_trunc(x, y) - (rest != 0 && (rest < 0) != (y < 0));                    \
  }                                                                                   \
  RW_FN T pow(T x, T y) {                                                             \
    if (y < 0) return x == 1 ? 1 : x == -1 ? ((y & 1) ? -1 : 1) : 0;                  \
    T power = 1;                                                                      \
    for (; y != 0; y >>= 1) {                                                         \
      if (y & 1) power = mul(power, x);                                               \
      x = mul(x, x);                                                                  \
    }                                                                                 \
    return power;                                                                     \
  }
RW_INTEGERS(i32, u32, 32)
RW_INTEGERS(i64, u64, 64)
#undef RW_INTEGERS

RW_FN bool logical_and(bool x, bool y) { return x && y; }
RW_FN bool logical_or(bool x, bool y) { return x || y; }
RW_FN bool logical_xor(bool x, bool y) { return x != y; }
RW_FN bool logical_not(bool x) { return !x; }
RW_FN bool add(bool x, bool y) { return x || y; }
RW_FN bool mul(bool x, bool y) { return x && y; }
RW_FN bool maximum(bool x, bool y) { return x || y; }
RW_FN bool minimum(bool x, bool y) { return x && y; }
RW_FN bool fmax(bool x, bool y) { return x || y; }
RW_FN bool fmin(bool x, bool y) { return x && y; }
RW_FN bool abs(bool x) { return x; }
RW_FN bool sign(bool x) { return x; }
RW_FN bool eq(bool x, bool y) { return x == y; }
RW_FN bool ne(bool x, bool y) { return x != y; }
RW_FN bool lt(bool x, bool y) { return !x && y; }
RW_FN bool le(bool x, bool y) { return !x || y; }
RW_FN bool gt(bool x, bool y) { return x && !y; }
RW_FN bool ge(bool x, bool y) { return x || !y; }
RW_FN bool select(bool mask, bool x, bool y) { return mask ? x : y; }

// --- reductions -----------------------------------------------------------------------------------
// How two partial results combine, and what changes nothing.

template <class T> struct Limits;
template <> struct Limits<f32> {
  RW_FN f32 low() { return -__builtin_inff(); }
  RW_FN f32 high() { return __builtin_inff(); }
};
template <> struct Limits<f64> {
  RW_FN f64 low() { return -__builtin_inff(); }
  RW_FN f64 high() { return __builtin_inff(); }
};
template <> struct Limits<i32> {
  RW_FN i32 low() { return -2147483647 - 1; }
  RW_FN i32 high() { return 2147483647; }
};
template <> struct Limits<i64> {
  RW_FN i64 low() { return -9223372036854775807L - 1; }
  RW_FN i64 high() { return 9223372036854775807L; }
};

struct Add {
  template <class T> RW_FN T neutral() { return T(0); }
  template <class T> RW_FN T of(T x, T y) { return add(x, y); }
};
struct Mul {
  template <class T> RW_FN T neutral() { return T(1); }
  template <class T> RW_FN T of(T x, T y) { return mul(x, y); }
};
struct Max {
  template <class T> RW_FN T neutral() { return Limits<T>::low(); }
  template <class T> RW_FN T of(T x, T y) { return maximum(x, y); }
};
struct Min {
  template <class T> RW_FN T neutral() { return Limits<T>::high(); }
  template <class T> RW_FN T of(T x, T y) { return minimum(x, y); }
};
struct Any {
  template <class T> RW_FN T neutral() { return T(0); }
  template <class T> RW_FN T of(T x, T y) { return T(x || y); }
};
struct All {
  template <class T> RW_FN T neutral() { return T(1); }
  template <class T> RW_FN T of(T x, T y) { return T(x && y); }
};

template <class T> RW_FN T swapped(T x, int step) { return __shfl_xor_sync(~0u, x, step); }
template <> __device__ __forceinline__ bool swapped(bool x, int step) {
  return __shfl_xor_sync(~0u, int(x), step) != 0;
}

template <class Op, class T> RW_FN T across_warp(T x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = Op::template of<T>(x, swapped(x, step));
  return x;
}

// Over THREADS threads that follow each other, a warp or the whole block; all of them get it.
template <class Op, int THREADS, class T> RW_FN T across(T x) {
  x = across_warp<Op>(x);
  if constexpr (THREADS == 32) return x;
  __shared__ T parts[THREADS / 32];
  const int lane = threadIdx.x % 32;
  __syncthreads();  // what an earlier reduction left has been read
  if (lane == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  x = lane < THREADS / 32 ? parts[lane] : Op::template neutral<T>();
  return across_warp<Op>(x);
}

// Over the DEEP rows of a block of 32 columns; all threads of a column get it.
template <class Op, int DEEP, class T> RW_FN T down(T x) {
  __shared__ T parts[DEEP][33];
  __syncthreads();
  parts[threadIdx.y][threadIdx.x] = x;
  __syncthreads();
  T all = parts[0][threadIdx.x];
#pragma unroll
  for (int row = 1; row < DEEP; ++row) all = Op::template of<T>(all, parts[row][threadIdx.x]);
  return all;
}

}  // namespace rw
