// Gradients of attention in tiles: probabilities are computed again from scores and from what the
// forward says of each row, the logarithm of its sum (Dao, arXiv 2307.08691, section 3.1.2). What
// masks leave out is left out here too. Each gradient is added up in one order, whatever threads
// there are: rows and keys from the first to the last.
#pragma once

#include "attention.h"

namespace rw {

// What is known of a head's rows before its tiles are looked at: its probabilities are
// exp(score - base) * share, and `delta` is the sum of each result times its gradient. `all` is for
// blocks of rows that met masked keys only, of large finite masks: no tile of theirs is left out.
template <class T> struct Known {
  T *base, *share, *delta;
  bool* all;
};

// Where a thread works: a tile's scores and their gradients, its keys and values as columns and
// keys as rows, its rows' queries and gradients of results, and what is added up.
template <class T> struct Desk {
  T *scores, *grads, *keys, *values, *key_rows, *spare, *query, *given;
  T *to_query, *to_key, *to_value;

  static i64 size(const Sizes& sizes, i64 rows_held, i64 keys_held) {
    const i64 depth = padded(sizes.depth), width = padded(sizes.width), both = depth + width;
    const i64 most = depth > width ? depth : width;
    return 2 * ROWS * KEYS + KEYS * both + KEYS * depth + KEYS * most + ROWS * both +
           rows_held * depth + keys_held * both;
  }
  Desk(T* at, const Sizes& sizes, i64 rows_held, i64 keys_held) {
    const i64 depth = padded(sizes.depth), width = padded(sizes.width);
    const auto next = [&](i64 count) {
      T* const from = at;
      at += count;
      return from;
    };
    scores = next(ROWS * KEYS), grads = next(ROWS * KEYS);
    keys = next(KEYS * depth), values = next(KEYS * width), key_rows = next(KEYS * depth);
    spare = next(KEYS * (depth > width ? depth : width));
    query = next(ROWS * depth), given = next(ROWS * width), to_query = next(rows_held * depth);
    to_key = next(keys_held * depth), to_value = next(keys_held * width);
  }
};

template <class T> inline void clear(T* at, i64 count) {
  for (i64 i = 0; i < count; i += W) store(at + i, V<T>{});
}

// ---- one tile -----------------------------------------------------------------------------------
// Probabilities in the place of scores, and gradients of products in that of probabilities' own.
template <class T, class Score, class Slope, class Conditions>
inline void grade_tile(const Desk<T>& at, const Known<T>& of, i64 first, i64 count, i64 j,
                       i64 keys, Score score, Slope slope, Conditions known) {
  for (i64 r = 0; r < count; ++r) {
    const i64 row = first + r;
    const V<T> base = splat(of.base[row]), share = splat(of.share[row]);
    const V<T> delta = splat(of.delta[row]);
    T *const scores = at.scores + r * KEYS, *const grads = at.grads + r * KEYS;
    const auto step = [&](i64 c, auto n) __attribute__((always_inline)) {
      const V<T> x = load(scores + c), taken = score(row, j + c, x, n, known);
      const V<T> weight = mul(exp(sub(taken, base)), share);
      store(scores + c, weight);
      const V<T> grad = mul(weight, sub(load(grads + c), delta));
      store(grads + c, slope(row, j + c, x, grad, n, known));
    };
    i64 c = 0;
    for (; c + W <= keys; c += W) step(c, Whole{});
    if (c < keys) step(c, static_cast<int>(keys - c));
  }
}

// The tiles of one head: what its operands are, and what is wanted of a tile.
template <class T, class Q, class K, class U, class G, class Score, class Slope, class Judge>
struct Tiles {
  const Desk<T>& at;
  const Known<T>& of;
  const Sizes& sizes;
  Matrix<const Q> query;
  Matrix<const K> key;
  Matrix<const U> value;
  Matrix<const G> given;
  Score score;
  Slope slope;
  Judge judge;

  // Keys and values of a tile, as products read them.
  Rows<T> take_keys(i64 j, i64 keys) const {
    take_columns(key, j, keys, sizes.depth, at.keys, at.spare);
    take_columns(value, j, keys, sizes.width, at.values, at.spare);
    return rows_of(key, j, keys, sizes.depth, at.key_rows);
  }

  // Adds a tile's part to gradients of its rows' queries, if there are any, and of its keys and
  // values. Its keys have been taken if `ready`, which they are then.
  void add(i64 first, i64 count, i64 j, i64 keys, bool& ready, Rows<T>& key_rows, T* to_query,
           T* to_key, T* to_value) const {
    const auto found = judge(Span{first, first + count}, Span{j, j + keys});
    if (found.dead && !of.all[first / ROWS]) return;
    if (!ready) key_rows = take_keys(j, keys), ready = true;
    const i64 depth = padded(sizes.depth), width = padded(sizes.width);
    const Rows<T> queries = rows_of(query, first, count, sizes.depth, at.query);
    const Rows<T> givens = rows_of(given, first, count, sizes.width, at.given);
    matrix_product(count, KEYS, sizes.depth, Left<T>{queries.from, queries.apart, 1}, at.keys,
                   KEYS, at.scores, KEYS, false);
    matrix_product(count, KEYS, sizes.width, Left<T>{givens.from, givens.apart, 1}, at.values,
                   KEYS, at.grads, KEYS, false);
    if (found.known) {
      constexpr int conditions = static_cast<int>(sizeof(found.value)) - 1;
      grade_tile(at, of, first, count, j, keys, score, slope, Decided<conditions>{found.value});
    } else {
      grade_tile(at, of, first, count, j, keys, score, slope, Open{});
    }
    if (to_query != nullptr)
      matrix_product(count, depth, keys, Left<T>{at.grads, KEYS, 1}, key_rows.from,
                     key_rows.apart, to_query, depth, true);
    if (to_key == nullptr) return;
    matrix_product(keys, width, count, Left<T>{at.scores, 1, KEYS}, givens.from, givens.apart,
                   to_value, width, true);
    matrix_product(keys, depth, count, Left<T>{at.grads, 1, KEYS}, queries.from, queries.apart,
                   to_key, depth, true);
  }
};

// ---- what a kernel does with a head -------------------------------------------------------------
// How many heads of queries each head of keys has, and what each of them reads and writes.
struct Shape {
  i64 heads, group;
  Sizes sizes;
};

// Before the tiles: what is known of a block of rows.
template <class T> struct Look {
  const Known<T>& of;
  const Sizes& sizes;
  i64 first, count;
  T* memory;

  template <class Q, class K, class U, class G, class O, class A, class B, class C, class Score,
            class Slope, class Judge>
  void operator()(Matrix<const Q> query, Matrix<const K> key, Matrix<const U>,
                  Matrix<const G> given, Matrix<const O> out, Matrix<const T> sums, Matrix<A>,
                  Matrix<B>, Matrix<C>, Score score, Slope, Judge) const {
    const i64 width = padded(sizes.width);
    const Rows<T> ours = rows_of(out, first, count, sizes.width, memory);
    const Rows<T> theirs = rows_of(given, first, count, sizes.width, memory + ROWS * width);
    bool lost = false;
    for (i64 r = 0; r < count; ++r) {
      V<T> sum{};
      for (i64 c = 0; c < width; c += W)
        sum = fma(load(ours.from + r * ours.apart + c), load(theirs.from + r * theirs.apart + c),
                  sum);
      const T base = sums.from[(first + r) * sums.row];
      of.delta[first + r] = hsum(sum), of.base[first + r] = base, of.share[first + r] = T(1);
      lost |= !(f64(base) > LIVE);
    }
    of.all[first / ROWS] = lost;
    if (lost) sum_again(query, key, score);
  }

  // The logarithm of a sum is lost beside a large finite mask: both once more, apart.
  template <class Q, class K, class Score>
  void sum_again(Matrix<const Q> query, Matrix<const K> key, Score score) const {
    const Bench<T> at(memory, sizes.depth, sizes.width);
    begin_rows(at, sizes, first, count, query);
    for (i64 j = 0; j < sizes.keys; j += KEYS) {
      const i64 keys = size_min(KEYS, sizes.keys - j);
      multiply_keys(at, sizes, count, j, keys, key);
      score_tile(at.scores, at.factor, first, count, j, keys, score, Open{});
      weigh_tile(at, count, 0);
    }
    for (i64 r = 0; r < count; ++r) {
      const bool none = at.total[r] == T(0);
      of.base[first + r] = none ? T(0) : at.top[r];
      of.share[first + r] = none ? T(0) : T(1) / at.total[r];
    }
  }
};

// Gradients of the rows or of the keys of one head, from the first to the end: those of queries of
// blocks of rows, of keys and values of tiles of keys, or all at once.
template <class T> struct Sweep {
  const Desk<T>& at;
  const Known<T>& of;
  const Sizes& sizes;
  Span rows, keys;
  bool wants_query, wants_key, begins, ends, holds_keys;

  template <class Q, class K, class U, class G, class O, class A, class B, class C, class Score,
            class Slope, class Judge>
  void operator()(Matrix<const Q> query, Matrix<const K> key, Matrix<const U> value,
                  Matrix<const G> given, Matrix<const O>, Matrix<const T>, Matrix<A> to_query,
                  Matrix<B> to_key, Matrix<C> to_value, Score score, Slope slope,
                  Judge judge) const {
    const i64 depth = padded(sizes.depth), width = padded(sizes.width);
    const Tiles<T, Q, K, U, G, Score, Slope, Judge> tiles{at,    of,    sizes, query, key,
                                                          value, given, score, slope, judge};
    if (wants_query) clear(at.to_query, (rows.end - rows.first) * depth);
    for (i64 j = keys.first; j < keys.end; j += KEYS) {
      const i64 count = size_min(KEYS, sizes.keys - j), held = holds_keys ? j : 0;
      T *const of_key = at.to_key + held * depth, *const of_value = at.to_value + held * width;
      if (wants_key && begins) clear(of_key, count * depth), clear(of_value, count * width);
      bool ready = false;
      Rows<T> key_rows{};
      for (i64 i = rows.first; i < rows.end; i += ROWS)
        tiles.add(i, size_min(ROWS, sizes.rows - i), j, count, ready, key_rows,
                  wants_query ? at.to_query + (i - rows.first) * depth : nullptr,
                  wants_key ? of_key : nullptr, of_value);
      if (wants_key && ends) give(of_key, to_key, j, count, sizes.depth);
      if (wants_key && ends) give(of_value, to_value, j, count, sizes.width);
    }
    if (wants_query) give(at.to_query, to_query, rows.first, rows.end - rows.first, sizes.depth);
  }

  template <class Out>
  void give(const T* from, Matrix<Out> out, i64 first, i64 count, i64 columns) const {
    for (i64 r = 0; r < count; ++r)
      give_row(from + r * padded(columns), splat(T(1)), out, first + r, columns);
  }
};

// ---- all of them --------------------------------------------------------------------------------
// head(r, work) tells `work` about head r of queries; those of one head of keys follow each other.
template <class T, class Head> struct Backward {
  Shape shape;
  const Head& head;
  T* known;
  bool* all;

  i64 blocks() const { return blocks_of(shape.sizes.rows, ROWS); }
  i64 work() const {
    const Sizes& sizes = shape.sizes;
    return sizes.rows * sizes.keys * (sizes.depth + sizes.width) * shape.heads;
  }
  Known<T> of(i64 r) const {
    T* const at = known + r * 3 * shape.sizes.rows;
    return {at, at + shape.sizes.rows, at + 2 * shape.sizes.rows, all + r * blocks()};
  }

  void look() const {
    const Sizes& sizes = shape.sizes;
    const i64 size = Bench<T>::size(sizes.depth, sizes.width) + 2 * ROWS * padded(sizes.width);
    deal_out<T>(shape.heads * blocks(), work(), size, [=, *this](i64 unit, T* memory) {
      const i64 r = unit / blocks(), first = unit % blocks() * ROWS;
      const Known<T> known_of = of(r);
      const i64 count = size_min(ROWS, shape.sizes.rows - first);
      head(r, Look<T>{known_of, shape.sizes, first, count, memory});
    });
  }

  // One head of keys after the other, all gradients at once: five products a tile.
  void by_heads() const {
    const i64 held = shape.group == 1 ? KEYS : padded(shape.sizes.keys);
    const i64 size = Desk<T>::size(shape.sizes, shape.sizes.rows, held);
    deal_out<T>(shape.heads / shape.group, work(), size, [=, *this](i64 unit, T* memory) {
      const Sizes& sizes = shape.sizes;
      const Desk<T> at(memory, sizes, sizes.rows, held);
      for (i64 g = 0; g < shape.group; ++g) {
        const Known<T> known_of = of(unit * shape.group + g);
        head(unit * shape.group + g,
             Sweep<T>{at, known_of, sizes, {0, sizes.rows}, {0, sizes.keys}, true, true, g == 0,
                      g == shape.group - 1, shape.group > 1});
      }
    });
  }

  // Tiles of keys and blocks of rows by themselves, which more threads can share: seven products.
  void by_tiles() const {
    const i64 tiles = blocks_of(shape.sizes.keys, KEYS), units = shape.heads / shape.group;
    const i64 size = Desk<T>::size(shape.sizes, ROWS, KEYS);
    deal_out<T>(units * tiles, work(), size, [=, *this](i64 unit, T* memory) {
      const Sizes& sizes = shape.sizes;
      const Desk<T> at(memory, sizes, ROWS, KEYS);
      const i64 j = unit % tiles * KEYS;
      for (i64 g = 0; g < shape.group; ++g) {
        const i64 r = unit / tiles * shape.group + g;
        const Known<T> known_of = of(r);
        head(r, Sweep<T>{at, known_of, sizes, {0, sizes.rows}, {j, size_min(j + KEYS, sizes.keys)},
                         false, true, g == 0, g == shape.group - 1, false});
      }
    });
    deal_out<T>(shape.heads * blocks(), work(), size, [=, *this](i64 unit, T* memory) {
      const Sizes& sizes = shape.sizes;
      const Desk<T> at(memory, sizes, ROWS, KEYS);
      const i64 i = unit % blocks() * ROWS, r = unit / blocks();
      const Known<T> known_of = of(r);
      head(r, Sweep<T>{at, known_of, sizes, {i, size_min(i + ROWS, sizes.rows)}, {0, sizes.keys},
                       true, false, false, false, false});
    });
  }
};

// `group` heads of queries share each head of keys.
template <class T, class Head> void attend_backward(i64 heads, i64 group, Sizes sizes, Head head) {
  const i64 blocks = heads * blocks_of(sizes.rows, ROWS);
  T* const known = allocated<T>(heads * sizes.rows * 3 + blocks_of(blocks, sizeof(T)));
  bool* const all = reinterpret_cast<bool*>(known + heads * sizes.rows * 3);
  const Backward<T, Head> backward{{heads, group, sizes}, head, known, all};
  backward.look();
  const i64 units = heads / group, threads = omp_get_max_threads();
  if (blocks_of(units, threads) * threads * 5 <= units * 7) {
    backward.by_heads();
  } else {
    backward.by_tiles();
  }
  free(known);
}

}  // namespace rw
