// How kernels reduce. loops.h includes it at its end.
//
// The order in which a reduction adds up is part of its meaning: it depends on nothing but the
// number of elements. Blocks of 4096 are combined in sequence, by however many threads.
#pragma once

namespace rw {

constexpr i64 BLOCK = 4096;
constexpr i64 GROUP = 64;  // of 4096 added one to the other, the last would be rounded away

extern "C" void* aligned_alloc(u64, u64) noexcept;
extern "C" void free(void*) noexcept;
extern "C" void perror(const char*);
extern "C" [[noreturn]] void abort() noexcept;

// Memory for so many; the process ends with a message where there is none.
template <class T> inline T* allocated(i64 number) {
  const u64 nbytes = (static_cast<u64>(number) * sizeof(T) + 63) / 64 * 64;
  void* const memory = aligned_alloc(64, nbytes);
  if (!memory && nbytes) perror("rewright: memory of a kernel"), abort();
  return static_cast<T*>(memory);
}

// A reduction along the lanes: element j of a block goes to lane j % 16 of accumulator j / 16 % 4
// while 64 are left, then to accumulator 0; then (0+1)+(2+3), then the lanes by halves.
template <class T, class How>
struct AlongLanes {
  using Block = V<T>;
  V<T> lanes[4];
  V<T> total = How::template none<T>();
  Block* results = nullptr;

  struct Slot {
    V<T>& value;
    void take(V<T> x, Whole) { value = How::of(value, x); }
    void take(V<T> x, int n) { value = select(first(n), How::of(value, x), value); }
  };

  Slot slot(i64 i) { return Slot{lanes[i]}; }

  void open() {
    for (V<T>& each : lanes) each = How::template none<T>();
  }

  Block close() const {
    return splat(How::across(How::of(How::of(lanes[0], lanes[1]), How::of(lanes[2], lanes[3]))));
  }

  void combine(const Block& block, bool first) { total = first ? block : How::of(total, block); }
};

// Reductions in every lane of Count vectors by themselves: elements one after the other in groups of
// 64, groups one after the other in a block.
template <class T, class How, int Count>
struct OneByOne {
  struct Block {
    V<T> of[Count];
  };
  Block group;
  Block block;
  V<T> total[Count];
  Block* results = nullptr;

  OneByOne() {
    for (V<T>& each : total) each = How::template none<T>();
  }

  void take(int u, V<T> x) { group.of[u] = How::of(group.of[u], x); }

  void open() {
    for (V<T>& each : group.of) each = How::template none<T>();
  }

  void end_group(bool first) {
    for (int u = 0; u < Count; ++u) {
      block.of[u] = first ? group.of[u] : How::of(block.of[u], group.of[u]);
    }
    open();
  }

  Block close() const { return block; }

  void combine(const Block& block, bool first) {
    for (int u = 0; u < Count; ++u) {
      total[u] = first ? block.of[u] : How::of(total[u], block.of[u]);
    }
  }
};

template <class Each>
typename Each::Block* new_results(i64 number) {
  return allocated<typename Each::Block>(number);
}

// block(begin, end, each...) for every block of [0, count); `each` are the reductions it feeds.
template <class Block, class... Each>
inline void blocks(i64 count, const Block& block, Each&... each) {
  for (i64 begin = 0; begin < count; begin += BLOCK) {
    const i64 end = begin + BLOCK < count ? begin + BLOCK : count;
    (each.open(), ...);
    block(begin, end, each...);
    (each.combine(each.close(), begin == 0), ...);
  }
}

template <class Block, class... Own>
inline void share_of_blocks(
    i64 first, i64 last, i64 count, const Block& block, Own... own) {
  for (i64 i = first; i < last; ++i) {
    const i64 begin = i * BLOCK, end = begin + BLOCK < count ? begin + BLOCK : count;
    (own.open(), ...);
    block(begin, end, own...);
    ((own.results[i] = own.close()), ...);
  }
}

// The same with the blocks shared by threads; results still meet in sequence.
template <class Block, class... Each>
void parallel_blocks(i64 count, i64 grain, Block block, Each&... each) {
  const i64 number = (count + BLOCK - 1) / BLOCK;
  ((each.results = new_results<Each>(number)), ...);
  parallel_units(number, grain, [=](i64 first, i64 last) {
    share_of_blocks(first, last, count, block, each...);
  });
  for (i64 i = 0; i < number; ++i) (each.combine(each.results[i], i == 0), ...);
  (free(each.results), ...);
}

// body(j, n, slots...) over one block. Costly bodies are printed once, others four in a row.
template <int Multiple, bool Costly, class Body, class... Each>
inline void along_block(i64 begin, i64 end, const Body& body, Each&... each) {
  i64 j = begin;
  if constexpr (Costly) {
    const i64 groups = begin + (end - begin) / (4 * W) * (4 * W);
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
inline void reduce(i64 count, Body body, Each&... each) {
  blocks(count, [&](i64 begin, i64 end, auto&... own) {
    along_block<Multiple, Costly>(begin, end, body, own...);
  }, each...);
}

template <int Multiple, bool Costly, class Body, class... Each>
inline void parallel_reduce(i64 count, i64 grain, Body body, Each&... each) {
  parallel_blocks(count, grain, [=](i64 begin, i64 end, auto&... own) {
    along_block<Multiple, Costly>(begin, end, body, own...);
  }, each...);
}

template <class Body, class... Own>
inline void groups(i64 begin, i64 end, const Body& body, Own&... own) {
  for (i64 c = begin; c < end; c += GROUP) {
    const i64 stop = c + GROUP < end ? c + GROUP : end;
    for (i64 i = c; i < stop; ++i) body(i, own...);
    (own.end_group(c == begin), ...);
  }
}

// body(c, reductions...) over `count` elements, one after the other.
template <class Body, class... Each>
inline void sequence(i64 count, Body body, Each&... each) {
  blocks(count, [&](i64 begin, i64 end, auto&... own) {
    groups(begin, end, body, own...);
  }, each...);
}

template <class Body, class... Each>
inline void parallel_sequence(i64 count, i64 grain, Body body, Each&... each) {
  parallel_blocks(count, grain, [=](i64 begin, i64 end, auto&... own) {
    groups(begin, end, body, own...);
  }, each...);
}

// How a reduction combines two values, what it starts from, and how lanes meet.
struct Add {
  template <class T> static V<T> none() { return splat<T>(0); }
  template <class T> static V<T> of(V<T> a, V<T> b) { return add(a, b); }
  template <class T> static T across(V<T> a) { return hsum(a); }
};

struct Mul {
  template <class T> static V<T> none() { return splat<T>(1); }
  template <class T> static V<T> of(V<T> a, V<T> b) { return mul(a, b); }
  template <class T> static T across(V<T> a) { return hprod(a); }
};

constexpr f32 largest(f32) { return __builtin_inff(); }
constexpr f64 largest(f64) { return __builtin_inf(); }
constexpr i32 largest(i32) { return 0x7fffffff; }
constexpr i64 largest(i64) { return 0x7fffffffffffffff; }
constexpr f32 least_number(f32) { return -__builtin_inff(); }
constexpr f64 least_number(f64) { return -__builtin_inf(); }
constexpr i32 least_number(i32) { return -0x7fffffff - 1; }
constexpr i64 least_number(i64) { return -0x7fffffffffffffff - 1; }

struct Max {
  template <class T> static V<T> none() { return splat<T>(least_number(T())); }
  template <class T> static V<T> of(V<T> a, V<T> b) { return maximum(a, b); }
  template <class T> static T across(V<T> a) { return hmax(a); }
};

struct Min {
  template <class T> static V<T> none() { return splat<T>(largest(T())); }
  template <class T> static V<T> of(V<T> a, V<T> b) { return minimum(a, b); }
  template <class T> static T across(V<T> a) { return hmin(a); }
};

struct Any {
  template <class T> static mask none() { return splat(false); }
  static mask of(mask a, mask b) { return logical_or(a, b); }
  static bool across(mask a) { return hany(a); }
};

struct All {
  template <class T> static mask none() { return splat(true); }
  static mask of(mask a, mask b) { return logical_and(a, b); }
  static bool across(mask a) { return hall(a); }
};

}  // namespace rw
