// How kernels walk over elements: shares of threads, steps of lanes; and how they reach them.
//
// A step works on 16 neighbouring elements. The last step of a row may have fewer: bodies take
// `n`, which is Whole (every lane counts, known while compiling) or the number of lanes that do.
#pragma once

#include "simd.h"

extern "C" {
void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_max_threads(void);
int omp_get_num_threads(void);
int omp_get_thread_num(void);
}

namespace rw {

struct Whole {
  constexpr operator int() const { return W; }
};

// --- threads -------------------------------------------------------------------------------------

template <class Body>
struct Work {
  Body body;
  i64 units;
  bool alone;
};

// One thread's share. `flatten`: the loops, their bodies and the arithmetic become one function.
// The copy of the closure lives in registers, where no store of the kernel can reach it.
template <class Body>
__attribute__((noinline, flatten)) void share(void* data) {
  const Work<Body> work = *static_cast<const Work<Body>*>(data);
  const i64 threads = work.alone ? 1 : omp_get_num_threads();
  const i64 me = work.alone ? 0 : omp_get_thread_num();
  const i64 begin = work.units * me / threads, end = work.units * (me + 1) / threads;
  if (begin < end) work.body(begin, end);
}

// body(begin, end) over [0, units), cut into one share a thread where each gets `grain` units.
template <class Body>
void parallel_units(i64 units, i64 grain, Body body) {
  Work<Body> work{body, units, true};
  i64 threads = units / grain;
  if (threads > 1) {
    const i64 most = omp_get_max_threads();
    threads = threads < most ? threads : most;
  }
  work.alone = threads <= 1;
  if (work.alone) {
    share<Body>(&work);
  } else {
    GOMP_parallel(share<Body>, &work, static_cast<unsigned>(threads), 0);
  }
}

// body(begin, end) over [0, count), cut at multiples of `unit`.
template <class Body>
void parallel(i64 count, i64 unit, i64 grain, Body body) {
  parallel_units((count + unit - 1) / unit, grain, [=](i64 first, i64 last) {
    const i64 end = last * unit;
    body(first * unit, end < count ? end : count);
  });
}

// body(row, begin, end) over rows of `length` elements; threads may share a row.
template <class Body>
void parallel_rows(i64 rows, i64 length, i64 unit, i64 grain, Body body) {
  const i64 each = (length + unit - 1) / unit;
  parallel_units(rows * each, grain, [=](i64 first, i64 last) {
    for (i64 at = first; at < last;) {
      const i64 row = at / each, begin = at - row * each;
      const i64 rest = last - row * each, stop = rest < each ? rest : each;
      body(row, begin * unit, stop * unit < length ? stop * unit : length);
      at = row * each + stop;
    }
  });
}

// gcc before 14.3 forgets to align the stack of a function that calls nothing when what is on it is
// reached through other registers only (PR target/109780). This names an aligned place outright.
RW_INLINE void align_stack() {
  alignas(64) char line[64];
  asm volatile("" : "=m"(line));
}

// The same for kernels too small to share.
template <class Body>
__attribute__((flatten)) void serial(i64 count, Body body) {
  align_stack();
  if (count > 0) body(0, count);
}

template <class Body>
__attribute__((flatten)) void serial_rows(i64 rows, i64 length, Body body) {
  align_stack();
  if (length <= 0) return;
  for (i64 row = 0; row < rows; ++row) body(row, 0, length);
}

// --- steps ---------------------------------------------------------------------------------------

// body(i, n) over [begin, end). Multiple: what both ends are known to be multiples of (16 or 1).
template <int Multiple, class Body>
inline void steps(i64 begin, i64 end, Body body) {
  i64 i = begin;
  for (; i + W <= end; i += W) body(i, Whole{});
  if constexpr (Multiple % W != 0) {
    if (i < end) body(i, static_cast<int>(end - i));
  }
}

template <int Count>
struct Width {
  static constexpr int count = Count;
};

// body(i, width, n) over [begin, end) in strips of Most steps where they fit, else of one.
template <int Multiple, int Most, class Body>
inline void strips(i64 begin, i64 end, Body body) {
  i64 i = begin;
  for (; i + Most * W <= end; i += Most * W) body(i, Width<Most>{}, Whole{});
  if constexpr (Multiple % (4 * W) != 0) {
    for (; i + W <= end; i += W) body(i, Width<1>{}, Whole{});
  }
  if constexpr (Multiple % W != 0) {
    if (i < end) body(i, Width<1>{}, static_cast<int>(end - i));
  }
}

// --- access --------------------------------------------------------------------------------------

template <class T> inline auto load(const T* from, Whole) { return load(from); }
template <class T> inline auto load(const T* from, int n) { return load_part(from, n); }

// As load, and asks for the lines that the rows to come begin with: rows are swept several times, so
// that the processor's own prefetching sees no stream. Past the end of a tensor this does nothing.
constexpr int AHEAD = 2048;  // bytes
template <class T, class N> inline auto load_ahead(const T* from, N n) {
  __builtin_prefetch(reinterpret_cast<const char*>(from) + AHEAD);
  return load(from, n);
}
template <class T> inline void store(T* to, compute<T> x, Whole) { store(to, x); }
template <class T> inline void store(T* to, compute<T> x, int n) { store_part(to, x, n); }

inline int within_lanes(i64 l) { return static_cast<int>(l < 0 ? 0 : l > W ? W : l); }

// One element in every lane.
template <class T> inline compute<T> broadcast(const T* from) {
  using Raw = typename storage<T>::Raw;
  const auto all = *reinterpret_cast<const Raw*>(from) - typename raw_lanes<T>::type{};
  RW_EACH(typename storage<T>::Lane, storage<T>::unpack(all))
}

// Lane l from or to base[index(l)], for the first n lanes.
template <class T, class Index> inline auto load_each(const T* base, int n, Index index) {
  T picked[W] = {};
  for (i64 l = 0; l < n; ++l) picked[l] = base[index(l)];
  return load(picked);
}

template <class T, class Index>
inline void store_each(T* base, compute<T> x, int n, Index index) {
  T picked[W];
  store(picked, x);
  for (i64 l = 0; l < n; ++l) base[index(l)] = picked[l];
}

// The same where `run` lanes lie side by side, and the others behind a jump.
template <class T, class N, class Index>
inline auto load_across(const T* base, i64 run, N n, Index index) {
  if (n <= run) return load(base + index(0), n);
  T picked[W] = {};
  const T* const first = base + index(0);
  const T* const second = base + index(run) - run;
  for (i64 l = 0; l < n; ++l) picked[l] = (l < run ? first : second)[l];
  return load(picked);
}

template <class T, class N, class Index>
inline void store_across(T* base, compute<T> x, i64 run, N n, Index index) {
  if (n <= run) return store(base + index(0), x, n);
  T picked[W];
  T* const first = base + index(0);
  T* const second = base + index(run) - run;
  store(picked, x);
  for (i64 l = 0; l < n; ++l) (l < run ? first : second)[l] = picked[l];
}

// Lane l from base[index(l)] where inside(l); elsewhere memory is not touched and the lane is zero.
template <class T, class Index, class Inside>
inline auto load_where(const T* base, int n, Index index, Inside inside) {
  T picked[W] = {};
  for (i64 l = 0; l < n; ++l) {
    if (inside(l)) picked[l] = base[index(l)];
  }
  return load(picked);
}

// Lanes [low, high) of the first n from memory, the others zero.
template <class T, class N> inline compute<T> load_window(const T* from, i64 low, i64 high, N n) {
  if (low <= 0 && n <= high) return load(from, n);
  const int begin = within_lanes(low), end = within_lanes(high < n ? high : static_cast<i64>(n));
#if defined RW_PARTIAL_MEMORY
  const unsigned which = first_bits(end) & ~first_bits(begin);
  const auto* const bits = reinterpret_cast<const uint_of<T>*>(from);
  RW_EACH(lane_of<T>, storage<T>::unpack((typename raw_lanes<T>::type)load_lanes(
      bits + k * STEP<T>, which >> (k * STEP<T>), lane_count<STEP<T>>{})))
#else
  T picked[W] = {};
  for (int l = begin; l < end; ++l) picked[l] = from[l];
  return load(picked);
#endif
}

// --- transposition -------------------------------------------------------------------------------

// Exchanges the off-diagonal H x H blocks of each 2H x 2H block whose rows are a and b.
template <int H, class C, int... i> RW_INLINE void exchange(C& a, C& b, ints<i...>) {
  constexpr int N = SIZE<C>;
  const C first = __builtin_shufflevector(a, b, ((i & H) ? N + i - H : i)...);
  b = __builtin_shufflevector(a, b, ((i & H) ? N + i : i + H)...);
  a = first;
}

template <int H, class C, int N> RW_INLINE void exchange_all(C (&rows)[N]) {
  if constexpr (H > 0) {
    RW_UNROLL for (int i = 0; i < N; ++i)
      if ((i & H) == 0) exchange<H>(rows[i], rows[i + H], count<N>{});
    exchange_all<H / 2>(rows);
  }
}

// to[i * width + l] = from[l * step + i], for i < height and l < n, both at most 16.
template <class T>
inline void transpose(const T* from, i64 step, T* to, i64 width, int height, int n) {
  if (height < W || n < W) {
    for (i64 l = 0; l < n; ++l)
      for (i64 i = 0; i < height; ++i) to[i * width + l] = from[l * step + i];
    return;
  }
  constexpr int MOST = REGISTER / int(sizeof(T)), N = MOST < W ? MOST : W;
  using Raw = vec_of<uint_of<T>, N>;
  for (i64 i = 0; i < W; i += N) {
    for (i64 l = 0; l < W; l += N) {
      typename Raw::type rows[N];
      RW_UNROLL for (i64 k = 0; k < N; ++k)
        rows[k] = *reinterpret_cast<const typename Raw::unaligned*>(from + (l + k) * step + i);
      exchange_all<N / 2>(rows);
      RW_UNROLL for (i64 k = 0; k < N; ++k)
        *reinterpret_cast<typename Raw::unaligned*>(to + (i + k) * width + l) = rows[k];
    }
  }
}

// The same for a strip of `count` columns.
template <class T>
inline void transpose_strip(const T* from, i64 step, T* to, i64 count, int height) {
  for (i64 l = 0; l < count; l += W) {
    const i64 rest = count - l;
    transpose(from + l * step, step, to + l, count, height, rest < W ? static_cast<int>(rest) : W);
  }
}

// --- index expressions as values -----------------------------------------------------------------

inline bool within(i64 at, i64 low, i64 high) { return low <= at && at < high; }

template <class Inside> inline mask mask_each(Inside inside) {
  bool each[W];
  for (i64 l = 0; l < W; ++l) each[l] = inside(l);
  return load(each);
}

// Lanes [low, high).
inline mask window(i64 low, i64 high) {
  return logical_and(first(within_lanes(high)), logical_not(first(within_lanes(low))));
}

// start, start + step, ...
template <class T> inline V<T> positions(i64 start, i64 step) {
  return add(splat<T>(T(start)), mul(iota<T>(0), splat<T>(T(step))));
}

template <class T, class Index> inline V<T> positions_each(Index index) {
  T each[W];
  for (i64 l = 0; l < W; ++l) each[l] = T(index(l));
  return load(each);
}

// Arithmetic of sizes, with Python's rounding.
inline i64 size_div(i64 a, i64 b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }
inline i64 size_mod(i64 a, i64 b) { return a - size_div(a, b) * b; }
inline i64 size_max(i64 a, i64 b) { return a > b ? a : b; }
inline i64 size_min(i64 a, i64 b) { return a < b ? a : b; }
inline i64 size_pow(i64 a, i64 n) { return n <= 0 ? 1 : a * size_pow(a, n - 1); }

}  // namespace rw

#include "reductions.h"

#define KERNEL extern "C" __attribute__((visibility("default")))
