// Attention in tiles: some rows of queries by some keys. Scores live in a tile only; probabilities
// are summed up as the keys go by, relative to the largest score so far (Milakov and Gimelshein,
// arXiv 1805.02867; Dao et al., arXiv 2205.14135). Tiles whose scores are all masked are left out.
#pragma once

#include "ranges.h"

namespace rw {

constexpr i64 ROWS = 96, KEYS = 64;  // of a tile
static_assert(ROWS % W == 0 && KEYS % W == 0);

// A block of registers: so many rows, so many steps of lanes.
#if defined RW_AVX512
template <class T> constexpr int TALL = 6;
template <class T> constexpr int BROAD = sizeof(T) == 4 ? 4 : 2;
#elif defined RW_AVX2
template <class T> constexpr int TALL = sizeof(T) == 4 ? 6 : 3;
template <class T> constexpr int BROAD = 1;
#else
template <class T> constexpr int TALL = sizeof(T) == 4 ? 6 : 3;
template <class T> constexpr int BROAD = 1;
#endif

// ---- products -----------------------------------------------------------------------------------
// A factor from the left: its rows, and the elements of a row, at any distance.
template <class T> struct Left {
  const T* from;
  i64 row, column;
};

// c[m, n] = sum over k of a[m, k] b[k, n], or that added to it; rows lie `step` apart.
template <int M, int N, class T>
RW_INLINE void multiply(Left<T> a, const T* b, i64 b_step, i64 depth, T* c, i64 c_step, bool add) {
  V<T> sum[M][N];
  RW_UNROLL for (int m = 0; m < M; ++m)
    RW_UNROLL for (int n = 0; n < N; ++n) sum[m][n] = add ? load(c + m * c_step + n * W) : V<T>{};
  const T* next = a.from;
  for (i64 k = 0; k < depth; ++k, next += a.column) {
    V<T> right[N];
    RW_UNROLL for (int n = 0; n < N; ++n) right[n] = load(b + k * b_step + n * W);
    RW_UNROLL for (int m = 0; m < M; ++m) {
      const V<T> left = splat(next[m * a.row]);
      RW_UNROLL for (int n = 0; n < N; ++n) sum[m][n] = fma(left, right[n], sum[m][n]);
    }
  }
  RW_UNROLL for (int m = 0; m < M; ++m)
    RW_UNROLL for (int n = 0; n < N; ++n) store(c + m * c_step + n * W, sum[m][n]);
}

template <int M, int N, class T>
inline void multiply_rest(i64 rows, Left<T> a, const T* b, i64 b_step, i64 depth, T* c, i64 c_step,
                          bool add) {
  if constexpr (M > 0) {
    if (rows == M) return multiply<M, N>(a, b, b_step, depth, c, c_step, add);
    multiply_rest<M - 1, N>(rows, a, b, b_step, depth, c, c_step, add);
  }
}

template <int N, class T>
inline void multiply_panel(i64 rows, Left<T> a, const T* b, i64 b_step, i64 depth, T* c, i64 c_step,
                           bool add) {
  constexpr int M = TALL<T>;
  i64 m = 0;
  for (; m + M <= rows; m += M, a.from += M * a.row)
    multiply<M, N>(a, b, b_step, depth, c + m * c_step, c_step, add);
  multiply_rest<M - 1, N>(rows - m, a, b, b_step, depth, c + m * c_step, c_step, add);
}

// `columns` is a multiple of W.
template <class T>
__attribute__((noinline)) void matrix_product(i64 rows, i64 columns, i64 depth, Left<T> a,
                                              const T* b, i64 b_step, T* c, i64 c_step, bool add) {
  constexpr int N = BROAD<T>;
  i64 n = 0;
  for (; n + N * W <= columns; n += N * W)
    multiply_panel<N>(rows, a, b + n, b_step, depth, c + n, c_step, add);
  for (; n < columns; n += W)
    multiply_panel<1>(rows, a, b + n, b_step, depth, c + n, c_step, add);
}

// ---- operands -----------------------------------------------------------------------------------
// A matrix of one head, at any strides.
template <class T> struct Matrix {
  T* from;
  i64 row, column;
};
template <class T> Matrix<T> matrix(T* from, i64 row, i64 column) { return {from, row, column}; }

inline i64 padded(i64 n) { return (n + W - 1) / W * W; }

// to[r, 0:columns] = the matrix's rows from `first`, converted; zero up to a multiple of W.
template <class T, class From>
inline void take_rows(Matrix<const From> x, i64 first, i64 rows, i64 columns, T* to) {
  const i64 step = padded(columns);
  for (i64 r = 0; r < rows; ++r) {
    const From* const from = x.from + (first + r) * x.row;
    for (i64 c = 0; c < columns; c += W) {
      const int n = within_lanes(columns - c);
      if (x.column == 1) {
        store(to + r * step + c, load_part(from + c, n));
      } else {
        store(to + r * step + c, load_strided(from + c * x.column, x.column, n));
      }
    }
  }
}

// Rows of numbers, `apart` from each other, and zero up to a multiple of W.
template <class T> struct Rows {
  const T* from;
  i64 apart;
};

// Some rows of a matrix: where they lie, if they lie so, or taken to `to`.
template <class T, class From>
inline Rows<T> rows_of(Matrix<const From> x, i64 first, i64 rows, i64 columns, T* to) {
  if constexpr (same<T, From>) {
    if (x.column == 1 && columns % W == 0) return {x.from + first * x.row, x.row};
  }
  take_rows(x, first, rows, columns, to);
  return {to, padded(columns)};
}

// A row of a matrix from `from`, each number times `factor`.
template <class T, class Out>
inline void give_row(const T* from, V<T> factor, Matrix<Out> out, i64 row, i64 columns) {
  for (i64 c = 0; c < columns; c += W) {
    const int n = within_lanes(columns - c);
    const V<T> x = mul(load(from + c), factor);
    Out* const to = out.from + row * out.row + c * out.column;
    if (out.column == 1) {
      store_part(to, x, n);
    } else {
      store_strided(to, x, out.column, n);
    }
  }
}

// to[c, r], KEYS apart: the same, transposed; zero for rows there are not.
template <class T, class From>
inline void take_columns(Matrix<const From> x, i64 first, i64 rows, i64 columns, T* to,
                         T* scratch) {
  const i64 step = padded(columns);
  const T* from = scratch;
  i64 apart = step;
  if constexpr (same<T, From>) {
    if (x.column == 1) from = x.from + first * x.row, apart = x.row;
  }
  if (from == scratch) take_rows(x, first, rows, columns, scratch);
  for (i64 c = 0; c < columns; c += W) {
    const int height = within_lanes(columns - c);
    if (rows < KEYS) {
      for (i64 l = 0; l < height; ++l)
        for (i64 r = 0; r < KEYS; r += W) store(to + (c + l) * KEYS + r, V<T>{});
    }
    for (i64 r = 0; r < rows; r += W)
      transpose(from + r * apart + c, apart, to + c * KEYS + r, KEYS, height,
                within_lanes(rows - r));
  }
}

// ---- one block of rows --------------------------------------------------------------------------
// Where a thread works: the rows' queries, a tile's keys and scores, results so far, and per row
// the largest score and the sum of exponentials.
template <class T> struct Bench {
  T *query, *keys, *scores, *values, *result, *spare, *top, *total, *factor;

  static i64 size(i64 depth, i64 width) {
    const i64 most = padded(depth > width ? depth : width);
    return ROWS * padded(depth) + depth * KEYS + ROWS * KEYS + KEYS * most * 2 +
           ROWS * padded(width) + 3 * ROWS;
  }
  Bench(T* at, i64 depth, i64 width) {
    const i64 most = padded(depth > width ? depth : width);
    const auto next = [&](i64 count) {
      T* const from = at;
      at += count;
      return from;
    };
    query = next(ROWS * padded(depth)), keys = next(depth * KEYS), scores = next(ROWS * KEYS);
    values = next(KEYS * most), spare = next(KEYS * most), result = next(ROWS * padded(width));
    top = next(ROWS), total = next(ROWS), factor = next(ROWS);
  }
};

struct Sizes {
  i64 rows, keys, depth, width;
};

// Scores of rows of a tile from products, where they lie, and the largest of each row. `keys` of
// KEYS there are; the others score nothing. `known` has conditions, or leaves them open.
template <class T, class Score, class Known>
inline void score_tile(T* scores, T* largest, i64 first, i64 count, i64 j, i64 keys, Score score,
                       Known known) {
  const V<T> lowest = splat(T(-ENDLESS));
  for (i64 r = 0; r < count; ++r) {
    T* const row = scores + r * KEYS;
    V<T> most = lowest;
    for (i64 c = 0; c < KEYS; c += W) {
      V<T> x = lowest;
      if (c + W <= keys) {
        x = score(first + r, j + c, load(row + c), Whole{}, known);
      } else if (c < keys) {
        const int n = static_cast<int>(keys - c);
        x = select(rw::first(n), score(first + r, j + c, load(row + c), n, known), lowest);
      }
      store(row + c, x);
      most = maximum(most, x);
    }
    largest[r] = hmax(most);
  }
}

// The same, with conditions as a verdict has them.
template <class T, class Score, int Conditions>
inline void score_rows(T* scores, T* largest, i64 first, i64 count, i64 j, i64 keys, Score score,
                       const Verdict<Conditions>& found) {
  if (found.known) {
    score_tile(scores, largest, first, count, j, keys, score, Decided<Conditions>{found.value});
  } else {
    score_tile(scores, largest, first, count, j, keys, score, Open{});
  }
}

// Exponentials in the place of scores, relative to the largest so far; sums and results so far are
// taken to that, too.
template <class T> inline void weigh_tile(const Bench<T>& at, i64 count, i64 width) {
  const V<T> lowest = splat(T(-ENDLESS));
  for (i64 r = 0; r < count; r += W) {
    const V<T> before = load(at.top + r), now = maximum(before, load(at.factor + r));
    const V<T> factor = exp(sub(before, select(eq(now, lowest), V<T>{}, now)));
    store(at.top + r, now), store(at.factor + r, factor);
    store(at.total + r, mul(load(at.total + r), factor));
  }
  for (i64 r = 0; r < count; ++r) {
    T* const row = at.scores + r * KEYS;
    const V<T> base = splat(at.top[r] == T(-ENDLESS) ? T(0) : at.top[r]);
    V<T> sum{};
    RW_UNROLL for (i64 c = 0; c < KEYS; c += W) {
      const V<T> x = exp(sub(load(row + c), base));
      store(row + c, x);
      sum = rw::add(sum, x);
    }
    at.total[r] += hsum(sum);
    if (at.factor[r] == T(1)) continue;
    const V<T> factor = splat(at.factor[r]);
    T* const to = at.result + r * width;
    for (i64 c = 0; c < width; c += W) store(to + c, mul(load(to + c), factor));
  }
}

// Values of a tile's keys, weighed, added to results.
template <class T, class U>
inline void add_values(const Bench<T>& at, i64 count, i64 j, i64 keys, i64 columns,
                       Matrix<const U> value) {
  const i64 width = padded(columns);
  const Rows<T> values = rows_of(value, j, keys, columns, at.values);
  matrix_product(count, width, keys, Left<T>{at.scores, KEYS, 1}, values.from, values.apart,
                 at.result, width, true);
}

// Before the first tile of a block of rows, and the products of one.
template <class T, class Q>
inline void begin_rows(const Bench<T>& at, const Sizes& sizes, i64 first, i64 count,
                       Matrix<const Q> query) {
  for (i64 r = 0; r < ROWS; r += W)
    store(at.top + r, splat(T(-ENDLESS))), store(at.total + r, V<T>{});
  take_rows(query, first, count, sizes.depth, at.query);
}
template <class T, class K>
inline void multiply_keys(const Bench<T>& at, const Sizes& sizes, i64 count, i64 j, i64 keys,
                          Matrix<const K> key) {
  take_columns(key, j, keys, sizes.depth, at.keys, at.spare);
  matrix_product(count, KEYS, sizes.depth, Left<T>{at.query, padded(sizes.depth), 1}, at.keys, KEYS,
                 at.scores, KEYS, false);
}

// The block of `count` rows from `first`. Returns false when a row met no live score though keys
// were left out that then might have counted, of large finite masks.
template <class T, class Q, class K, class U, class Score, class Judge>
inline bool sum_up(const Bench<T>& at, const Sizes& sizes, i64 first, i64 count,
                   Matrix<const Q> query, Matrix<const K> key, Matrix<const U> value, Score score,
                   Judge judge, bool skip) {
  const i64 width = padded(sizes.width);
  for (i64 k = 0; k < count * width; k += W) store(at.result + k, V<T>{});
  begin_rows(at, sizes, first, count, query);
  bool left_out = false;
  for (i64 j = 0; j < sizes.keys; j += KEYS) {
    const i64 keys = size_min(KEYS, sizes.keys - j);
    const auto found = judge(Span{first, first + count}, Span{j, j + keys});
    if (skip && found.dead) {
      left_out |= !found.gone;
      continue;
    }
    multiply_keys(at, sizes, count, j, keys, key);
    score_rows(at.scores, at.factor, first, count, j, keys, score, found);
    weigh_tile(at, count, width);
    add_values(at, count, j, keys, sizes.width, value);
  }
  bool met = true;
  for (i64 r = 0; r < count; ++r) met &= f64(at.top[r]) > LIVE;
  return met || !left_out;
}

template <class T, class Out>
inline void give_rows(const Bench<T>& at, const Sizes& sizes, i64 first, i64 count,
                      Matrix<Out> out) {
  for (i64 r = 0; r < count; ++r) {
    const T total = at.total[r];
    const V<T> share = splat(total == T(0) ? T(0) : T(1) / total);  // nothing to attend to gives 0
    give_row(at.result + r * padded(sizes.width), share, out, first + r, sizes.width);
  }
}

// The logarithm of each row's sum of exponentials; 0 where there is none, as ATen's kernel has it.
template <class T>
inline void give_sums(const Bench<T>& at, i64 first, i64 count, Matrix<T> sums) {
  for (i64 r = 0; r < count; r += W) {
    const V<T> total = load(at.total + r), none{};
    const V<T> x = select(eq(total, none), none, add(load(at.top + r), log(total)));
    store_strided(sums.from + (first + r) * sums.row, x, sums.row, within_lanes(count - r));
  }
}

// ---- all of them --------------------------------------------------------------------------------
// The block of rows that a thread works on, once it is told about one head.
template <class T> struct Block {
  const Bench<T>& at;
  const Sizes& sizes;
  i64 first, count;

  template <class Q, class K, class U, class Out, class Score, class Judge>
  void operator()(Matrix<const Q> query, Matrix<const K> key, Matrix<const U> value,
                  Matrix<Out> out, Score score, Judge judge) const {
    bool skip = true;
    while (!sum_up(at, sizes, first, count, query, key, value, score, judge, skip)) skip = false;
    give_rows(at, sizes, first, count, out);
  }
  template <class Q, class K, class U, class Out, class Score, class Judge>
  void operator()(Matrix<const Q> query, Matrix<const K> key, Matrix<const U> value,
                  Matrix<Out> out, Matrix<T> sums, Score score, Judge judge) const {
    (*this)(query, key, value, out, score, judge);
    give_sums(at, first, count, sums);
  }
};

// body(unit, memory) for each of `units`, by whichever thread is free. A thread has memory for
// `count` numbers; `work` is about how many operations there are.
template <class T, class Body> void deal_out(i64 units, i64 work, i64 count, Body body) {
  i64 taken = 0;
  i64* const next = &taken;
  const i64 threads = work < (1 << 20) ? 1 : size_min(units, omp_get_max_threads());
  parallel_units(threads, 1, [=](i64, i64) {
    T* const memory = allocated<T>(count);
    for (;;) {
      const i64 unit = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
      if (unit >= units) break;
      body(unit, memory);
    }
    free(memory);
  });
}

inline i64 blocks_of(i64 count, i64 each) { return (count + each - 1) / each; }

// head(r, block) for each of `heads` and for each block of rows.
template <class T, class Head> void attend(i64 heads, Sizes sizes, Head head) {
  const i64 blocks = blocks_of(sizes.rows, ROWS);
  const i64 work = sizes.rows * sizes.keys * (sizes.depth + sizes.width) * heads;
  const i64 size = Bench<T>::size(sizes.depth, sizes.width);
  deal_out<T>(heads * blocks, work, size, [=](i64 unit, T* memory) {
    const Bench<T> at(memory, sizes.depth, sizes.width);
    const i64 first = unit % blocks * ROWS;
    head(unit / blocks, Block<T>{at, sizes, first, size_min(ROWS, sizes.rows - first)});
  });
}

}  // namespace rw
