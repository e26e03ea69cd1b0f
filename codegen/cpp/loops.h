// How kernels walk over elements: shares of threads, steps of lanes, and the order of reductions.
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
  int64_t units;
  bool alone;
};

// One thread's share. `flatten`: the loops, their bodies and the arithmetic become one function.
// The copy of the closure lives in registers, where no store of the kernel can reach it.
template <class Body>
__attribute__((noinline, flatten)) void share(void* data) {
  const Work<Body> work = *static_cast<const Work<Body>*>(data);
  const int64_t threads = work.alone ? 1 : omp_get_num_threads();
  const int64_t me = work.alone ? 0 : omp_get_thread_num();
  const int64_t begin = work.units * me / threads, end = work.units * (me + 1) / threads;
  if (begin < end) work.body(begin, end);
}

// body(begin, end) over [0, units), cut into one share a thread where each gets `grain` units.
template <class Body>
void parallel_units(int64_t units, int64_t grain, Body body) {
  Work<Body> work{body, units, true};
  int64_t threads = units / grain;
  if (threads > 1) {
    const int64_t most = omp_get_max_threads();
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
void parallel(int64_t count, int64_t unit, int64_t grain, Body body) {
  parallel_units((count + unit - 1) / unit, grain, [=](int64_t first, int64_t last) {
    const int64_t end = last * unit;
    body(first * unit, end < count ? end : count);
  });
}

// body(row, begin, end) over rows of `length` elements; threads may share a row.
template <class Body>
void parallel_rows(int64_t rows, int64_t length, int64_t unit, int64_t grain, Body body) {
  const int64_t each = (length + unit - 1) / unit;
  parallel_units(rows * each, grain, [=](int64_t first, int64_t last) {
    for (int64_t at = first; at < last;) {
      const int64_t row = at / each, begin = at - row * each;
      const int64_t rest = last - row * each, stop = rest < each ? rest : each;
      body(row, begin * unit, stop * unit < length ? stop * unit : length);
      at = row * each + stop;
    }
  });
}

// The same for kernels too small to share.
template <class Body>
__attribute__((flatten)) void serial(int64_t count, Body body) {
  if (count > 0) body(0, count);
}

template <class Body>
__attribute__((flatten)) void serial_rows(int64_t rows, int64_t length, Body body) {
  if (length <= 0) return;
  for (int64_t row = 0; row < rows; ++row) body(row, 0, length);
}

// --- steps ---------------------------------------------------------------------------------------

// body(i, n) over [begin, end). Multiple: what both ends are known to be multiples of (16 or 1).
template <int Multiple, class Body>
inline void steps(int64_t begin, int64_t end, Body body) {
  int64_t i = begin;
  for (; i + W <= end; i += W) body(i, Whole{});
  if constexpr (Multiple % W != 0) {
    if (i < end) body(i, static_cast<int>(end - i));
  }
}

template <int Count>
struct Width {
  static constexpr int count = Count;
};

// body(i, width, n) over [begin, end) in strips of four steps where they fit, else of one.
template <int Multiple, class Body>
inline void strips(int64_t begin, int64_t end, Body body) {
  int64_t i = begin;
  for (; i + 4 * W <= end; i += 4 * W) body(i, Width<4>{}, Whole{});
  if constexpr (Multiple % (4 * W) != 0) {
    for (; i + W <= end; i += W) body(i, Width<1>{}, Whole{});
  }
  if constexpr (Multiple % W != 0) {
    if (i < end) body(i, Width<1>{}, static_cast<int>(end - i));
  }
}

// --- reductions ----------------------------------------------------------------------------------
//
// The order in which a reduction adds up is part of its meaning: it depends on nothing but the
// number of elements. Blocks of 4096 are combined in sequence, by however many threads.

constexpr int64_t BLOCK = 4096;

inline i32v first_lanes(int n) { return lt(iota<i32v>(), splat<i32v>(n)); }

extern "C" void* aligned_alloc(size_t, size_t);
extern "C" void free(void*);

// A reduction along the lanes: element j of a block goes to lane j % 16 of accumulator j / 16 % 4
// while 64 are left, then to accumulator 0; then (0+1)+(2+3), then the lanes by halves.
template <class V, class How>
struct AlongLanes {
  using Block = V;
  V lanes[4];
  V total = How::template none<V>();
  Block* results = nullptr;

  struct Slot {
    V& value;
    void take(V x, Whole) { value = How::of(value, x); }
    void take(V x, int n) { value = select(first_lanes(n), How::of(value, x), value); }
  };

  Slot slot(int64_t i) { return Slot{lanes[i]}; }

  void open() {
    for (V& each : lanes) each = How::template none<V>();
  }

  Block close() const {
    return How::across(How::of(How::of(lanes[0], lanes[1]), How::of(lanes[2], lanes[3])));
  }

  void combine(const Block& block, bool first) { total = first ? block : How::of(total, block); }
};

// Reductions in every lane of Count vectors by themselves: elements one after the other.
template <class V, class How, int Count>
struct OneByOne {
  struct Block {
    V of[Count];
  };
  Block value;
  V total[Count];
  Block* results = nullptr;

  OneByOne() {
    for (V& each : total) each = How::template none<V>();
  }

  void take(int u, V x) { value.of[u] = How::of(value.of[u], x); }

  void open() {
    for (V& each : value.of) each = How::template none<V>();
  }

  Block close() const { return value; }

  void combine(const Block& block, bool first) {
    for (int u = 0; u < Count; ++u) {
      total[u] = first ? block.of[u] : How::of(total[u], block.of[u]);
    }
  }
};

template <class Each>
typename Each::Block* new_results(int64_t number) {
  using Block = typename Each::Block;
  return static_cast<Block*>(aligned_alloc(64, (number * sizeof(Block) + 63) / 64 * 64));
}

// block(begin, end, each...) for every block of [0, count); `each` are the reductions it feeds.
template <class Block, class... Each>
inline void blocks(int64_t count, const Block& block, Each&... each) {
  for (int64_t begin = 0; begin < count; begin += BLOCK) {
    const int64_t end = begin + BLOCK < count ? begin + BLOCK : count;
    (each.open(), ...);
    block(begin, end, each...);
    (each.combine(each.close(), begin == 0), ...);
  }
}

template <class Block, class... Own>
inline void share_of_blocks(
    int64_t first, int64_t last, int64_t count, const Block& block, Own... own) {
  for (int64_t i = first; i < last; ++i) {
    const int64_t begin = i * BLOCK, end = begin + BLOCK < count ? begin + BLOCK : count;
    (own.open(), ...);
    block(begin, end, own...);
    ((own.results[i] = own.close()), ...);
  }
}

// The same with the blocks shared by threads; results still meet in sequence.
template <class Block, class... Each>
void parallel_blocks(int64_t count, int64_t grain, Block block, Each&... each) {
  const int64_t number = (count + BLOCK - 1) / BLOCK;
  ((each.results = new_results<Each>(number)), ...);
  parallel_units(number, grain, [=](int64_t first, int64_t last) {
    share_of_blocks(first, last, count, block, each...);
  });
  for (int64_t i = 0; i < number; ++i) (each.combine(each.results[i], i == 0), ...);
  (free(each.results), ...);
}

// body(j, n, slots...) over one block. Costly bodies are printed once, others four in a row.
template <int Multiple, bool Costly, class Body, class... Each>
inline void along_block(int64_t begin, int64_t end, const Body& body, Each&... each) {
  int64_t j = begin;
  if constexpr (Costly) {
    const int64_t groups = begin + (end - begin) / (4 * W) * (4 * W);
    for (; j + W <= end; j += W) body(j, Whole{}, each.slot(j < groups ? j / W % 4 : 0)...);
  } else {
    for (; j + 4 * W <= end; j += 4 * W) {
      body(j, Whole{}, each.slot(0)...);
      body(j + W, Whole{}, each.slot(1)...);
      body(j + 2 * W, Whole{}, each.slot(2)...);
      body(j + 3 * W, Whole{}, each.slot(3)...);
    }
    if constexpr (Multiple % (4 * W) != 0) {
      for (; j + W <= end; j += W) body(j, Whole{}, each.slot(0)...);
    }
  }
  if constexpr (Multiple % W != 0) {
    if (j < end) body(j, static_cast<int>(end - j), each.slot(0)...);
  }
}

// body(j, n, slots...) over a row of `count` elements that reductions along the lanes add up.
template <int Multiple, bool Costly, class Body, class... Each>
inline void reduce(int64_t count, Body body, Each&... each) {
  blocks(count, [&](int64_t begin, int64_t end, auto&... own) {
    along_block<Multiple, Costly>(begin, end, body, own...);
  }, each...);
}

template <int Multiple, bool Costly, class Body, class... Each>
inline void parallel_reduce(int64_t count, int64_t grain, Body body, Each&... each) {
  parallel_blocks(count, grain, [=](int64_t begin, int64_t end, auto&... own) {
    along_block<Multiple, Costly>(begin, end, body, own...);
  }, each...);
}

// body(c, reductions...) over `count` elements, one after the other.
template <class Body, class... Each>
inline void sequence(int64_t count, Body body, Each&... each) {
  blocks(count, [&](int64_t begin, int64_t end, auto&... own) {
    for (int64_t c = begin; c < end; ++c) body(c, own...);
  }, each...);
}

template <class Body, class... Each>
inline void parallel_sequence(int64_t count, int64_t grain, Body body, Each&... each) {
  parallel_blocks(count, grain, [=](int64_t begin, int64_t end, auto&... own) {
    for (int64_t c = begin; c < end; ++c) body(c, own...);
  }, each...);
}

struct Add {
  template <class V> static V none() { return splat<V>(0); }
  template <class V> static V of(V a, V b) { return add(a, b); }
  template <class V> static V across(V a) { return splat<V>(hsum(a)); }
};

// --- access --------------------------------------------------------------------------------------

}  // namespace rw
