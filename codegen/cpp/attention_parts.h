// Attention of few queries, over keys that may lie in parts.
//
// Heads that read the same keys are rows of one product: the heads of a group, and all sequences
// where a part is shared by them (Juravsky et al., "Hydragen", arXiv 2402.05099; Zhu et al.,
// "RelayAttention", arXiv 2402.14808). Long parts are cut so that threads have enough to do. What
// comes of each piece is kept with its largest score and its sum of exponentials, and added up in
// the order of keys; where cuts are depends on sizes only, so the bits are those of any number of
// threads.
#pragma once

#include "attention.h"

namespace rw {

// Pieces that a kernel is cut into, about, and the least number of keys of one.
constexpr i64 PIECES = 64, SHORTEST = 8 * KEYS;
// Rows for which turning keys does not pay.
constexpr i64 ALONE = 3;

// Axes of heads, row-major.
template <int N> struct Axes {
  i64 size[N];
};

// Keys that follow each other, from `first` of all. Bit n of `shared`: heads along axis n read the
// same ones.
struct Part {
  i64 first, size;
  unsigned shared;
};

// Keys and values of one head in one part.
template <class K, class U> struct Pair {
  Matrix<const K> key;
  Matrix<const U> value;
};
template <class K, class U> Pair<K, U> pair(Matrix<const K> key, Matrix<const U> value) {
  return {key, value};
}

// How the heads of a part are taken together: `own` groups of `members` that read the same keys,
// whose queries are `rows` rows, in blocks of `each`; the keys in cuts of `keys`.
struct Grouping {
  i64 own = 1, members = 1, rows, each, blocks, keys = KEYS, cuts = 0, first_piece, first_unit;

  Grouping() = default;
  template <int N> Grouping(const Axes<N>& axes, const Part& part, i64 queries) {
    for (int a = 0; a < N; ++a) (part.shared >> a & 1 ? members : own) *= axes.size[a];
    rows = members * queries, blocks = blocks_of(rows, ROWS);
    each = blocks ? blocks_of(rows, blocks) : 0;
  }
  i64 units() const { return own * blocks * cuts; }
  // A part without keys has no cuts.
  void cut(const Part& part, i64 pieces) {
    if (part.size == 0) return;
    const i64 most = part.size / SHORTEST, wanted = pieces < most ? pieces : most;
    keys = blocks_of(blocks_of(part.size, wanted > 1 ? wanted : 1), KEYS) * KEYS;
    cuts = blocks_of(part.size, keys);
  }
};

// The head that is member `member` of group `own`.
template <int N> inline i64 head_of(const Axes<N>& axes, unsigned shared, i64 own, i64 member) {
  i64 head = 0, step = 1;
  for (int a = N - 1; a >= 0; --a) {
    i64& rest = shared >> a & 1 ? member : own;
    head += rest % axes.size[a] * step;
    rest /= axes.size[a], step *= axes.size[a];
  }
  return head;
}

// What comes of pieces: for each, each row of each head's largest score, sum, and results.
template <class T> struct Sums {
  T *top, *total, *result;
  i64 rows, width;

  static i64 size(i64 pieces, i64 rows, i64 width) { return pieces * rows * (2 + width); }
  Sums(T* at, i64 pieces, i64 rows, i64 width) : rows(rows), width(width) {
    result = at, top = at + pieces * rows * width, total = top + pieces * rows;
  }
  void keep(const Bench<T>& at, i64 from, i64 count, i64 piece, i64 row) const {
    const i64 to = piece * rows + row;
    for (i64 r = 0; r < count; ++r) {
      top[to + r] = at.top[from + r], total[to + r] = at.total[from + r];
      for (i64 c = 0; c < width; c += W)
        store(result + (to + r) * width + c, load(at.result + (from + r) * width + c));
    }
  }
};

// The rows of a unit by the heads that they belong to: body(head, first query, count, first row).
template <int N, class Body>
inline void each_head(const Axes<N>& axes, unsigned shared, i64 own, i64 queries, i64 first,
                      i64 count, Body body) {
  for (i64 r = 0; r < count;) {
    const i64 member = (first + r) / queries, query = (first + r) % queries;
    const i64 n = size_min(queries - query, count - r);
    body(head_of(axes, shared, own, member), query, n, r);
    r += n;
  }
}

// Products of few queries and a tile's keys, which are read as they lie: sixteen sums along
// features at a time, turned to be added up in lanes.
template <class T, class K>
inline void dot_keys(const Bench<T>& at, const Sizes& sizes, i64 count, i64 j, i64 keys,
                     Matrix<const K> key) {
  const i64 whole = sizes.depth / W * W, depth = padded(sizes.depth);
  T *const lines = at.spare, *const turned = at.spare + W * W;
  for (i64 k = 0; k < keys; k += W) {
    const K* from[W];  // the last again where there are no more
    for (i64 l = 0; l < W; ++l) from[l] = key.from + (j + size_min(k + l, keys - 1)) * key.row;
    for (i64 r = 0; r < count; ++r) {
      const T* const query = at.query + r * depth;
      V<T> sum[W];
      RW_UNROLL for (i64 l = 0; l < W; ++l) sum[l] = V<T>{};
      for (i64 c = 0; c < whole; c += W) {
        const V<T> q = load(query + c);
        RW_UNROLL for (i64 l = 0; l < W; ++l) sum[l] = fma(q, load(from[l] + c), sum[l]);
      }
      if (whole < depth) {
        const V<T> q = load(query + whole);
        const int n = static_cast<int>(sizes.depth - whole);
        for (i64 l = 0; l < W; ++l) sum[l] = fma(q, load_part(from[l] + whole, n), sum[l]);
      }
      RW_UNROLL for (i64 l = 0; l < W; ++l) store(lines + l * W, sum[l]);
      transpose(lines, W, turned, W, W, W);
      V<T> all = load(turned);
      RW_UNROLL for (i64 l = 1; l < W; ++l) all = rw::add(all, load(turned + l * W));
      store(at.scores + r * KEYS + k, all);
    }
  }
}

// What all units share.
template <class T, int N, class Head, class Keys> struct Parts {
  const Axes<N>& axes;
  const Sizes& sizes;
  Head head;
  Keys keys;
  const Sums<T>& sums;
  bool skip;

  // One cut of a part's keys for a block of rows. Returns whether keys were left out that might
  // have counted.
  bool unit(const Bench<T>& at, i64 number, const Part& part, const Grouping& by, i64 own,
            i64 block, i64 cut) const {
    const i64 first = block * by.each, count = size_min(by.each, by.rows - first);
    const i64 width = padded(sizes.width), depth = padded(sizes.depth);
    const auto heads = [&](auto body) {
      each_head(axes, part.shared, own, sizes.rows, first, count, body);
    };
    for (i64 k = 0; k < count * width; k += W) store(at.result + k, V<T>{});
    for (i64 r = 0; r < ROWS; r += W)
      store(at.top + r, splat(T(-ENDLESS))), store(at.total + r, V<T>{});
    heads([&](i64 h, i64 query, i64 n, i64 r) {
      head(h, [&](auto from, auto... rest) {
        take_rows(from, query, n, sizes.depth, at.query + r * depth);
      });
    });
    const auto read = keys(number, head_of(axes, part.shared, own, 0));
    bool left_out = false;
    const i64 end = size_min((cut + 1) * by.keys, part.size);
    for (i64 j = cut * by.keys; j < end; j += KEYS) {
      const i64 here = size_min(KEYS, end - j), place = part.first + j;
      bool dead = skip, gone = true;
      heads([&](i64 h, i64 query, i64 n, i64) {
        if (!dead) return;
        judged(h, [&](auto, auto judge) {
          const auto found = judge(Span{query, query + n}, Span{place, place + here});
          dead &= found.dead, gone &= found.gone;
        });
      });
      if (dead) {
        left_out |= !gone;
        continue;
      }
      if (count <= ALONE && read.key.column == 1) {
        dot_keys(at, sizes, count, j, here, read.key);
      } else {
        multiply_keys(at, sizes, count, j, here, read.key);
      }
      heads([&](i64 h, i64 query, i64 n, i64 r) {
        judged(h, [&](auto score, auto judge) {
          const auto found = judge(Span{query, query + n}, Span{place, place + here});
          score_rows(at.scores + r * KEYS, at.factor + r, query, n, place, here, score, found);
        });
      });
      weigh_tile(at, count, width);
      add_values(at, count, j, here, sizes.width, read.value);
    }
    heads([&](i64 h, i64 query, i64 n, i64 r) {
      sums.keep(at, r, n, by.first_piece + cut, h * sizes.rows + query);
    });
    return left_out;
  }

  // use(score, judge) of a head.
  template <class Use> void judged(i64 h, Use use) const {
    head(h, [&](auto, auto, auto... rest) { last_two(use, rest...); });
  }
  template <class Use, class A, class B> static void last_two(Use use, A score, B judge) {
    use(score, judge);
  }
  template <class Use, class A, class B, class C>
  static void last_two(Use use, A, B score, C judge) {
    use(score, judge);
  }

  // Rows of one head from all pieces. Returns whether each met a live score.
  bool give(T* memory, i64 pieces, i64 h, i64 first, i64 count) const {
    bool met = true;
    const i64 width = sums.width;
    for (i64 q = first; q < first + count; ++q) {
      const i64 row = h * sizes.rows + q;
      T most = T(-ENDLESS), total{};
      for (i64 p = 0; p < pieces; ++p) {
        const T top = sums.top[p * sums.rows + row];
        most = top > most ? top : most;
      }
      for (i64 c = 0; c < width; c += W) store(memory + c, V<T>{});
      const T base = most == T(-ENDLESS) ? T(0) : most;
      for (i64 p = 0; p < pieces; ++p) {
        const i64 at = p * sums.rows + row;
        const V<T> factor = exp(splat(sums.top[at] - base));
        total += lane(factor, 0) * sums.total[at];
        for (i64 c = 0; c < width; c += W)
          store(memory + c, fma(factor, load(sums.result + at * width + c), load(memory + c)));
      }
      met &= f64(most) > LIVE;
      head(h, [&](auto, auto out, auto... rest) {
        const V<T> share = splat(total == T(0) ? T(0) : T(1) / total);
        give_row(memory, share, out, q, sizes.width);
        if constexpr (sizeof...(rest) == 3) give_sum(q, most, total, rest...);
      });
    }
    return met;
  }
  template <class A, class B>
  static void give_sum(i64 row, T most, T total, Matrix<T> to, A, B) {
    const T x = total == T(0) ? T(0) : most + lane(log(splat(total)), 0);
    to.from[row * to.row] = x;
  }
};

// How all parts are cut, and into how many pieces and units of work.
template <int P> struct Cuts {
  Grouping by[P];
  i64 pieces = 0, units = 0;

  template <int N> Cuts(const Axes<N>& axes, const Part (&parts)[P], i64 queries) {
    i64 whole = 0;
    for (int p = 0; p < P; ++p) {
      by[p] = Grouping(axes, parts[p], queries);
      whole += by[p].own * by[p].blocks;
    }
    for (int p = 0; p < P; ++p) {
      by[p].cut(parts[p], blocks_of(PIECES, whole ? whole : 1));
      by[p].first_piece = pieces, by[p].first_unit = units;
      pieces += by[p].cuts, units += by[p].units();
    }
  }
  int part_of(i64 unit) const {
    int p = P - 1;
    while (unit < by[p].first_unit) --p;
    return p;
  }
};

// All pieces, and rows from them. Returns whether a row met no live score though keys were left out
// that might have counted.
template <class T, int N, class Head, class Keys, int P>
bool attend_pieces(const Parts<T, N, Head, Keys>& all, const Part (&parts)[P], const Cuts<P>& cuts,
                   i64 heads) {
  const Sizes& sizes = all.sizes;
  const i64 rows = heads * sizes.rows, blocks = blocks_of(sizes.rows, ROWS);
  const i64 work = rows * sizes.keys * (sizes.depth + sizes.width), width = all.sums.width;
  bool left_out = false, unmet = false;
  bool *const out = &left_out, *const without = &unmet;
  deal_out<T>(cuts.units, work, Bench<T>::size(sizes.depth, sizes.width),
              [=, &all, &parts, &cuts](i64 unit, T* at) {
    const int p = cuts.part_of(unit);
    const Grouping& by = cuts.by[p];
    const i64 rest = unit - by.first_unit, block = rest / by.cuts % by.blocks;
    const bool found = all.unit(Bench<T>(at, all.sizes.depth, all.sizes.width), p, parts[p], by,
                                rest / by.cuts / by.blocks, block, rest % by.cuts);
    if (found) __atomic_store_n(out, true, __ATOMIC_RELAXED);
  });
  deal_out<T>(heads * blocks, rows * cuts.pieces * width, width,
              [=, &all, &cuts](i64 unit, T* at) {
    const i64 first = unit % blocks * ROWS, count = size_min(ROWS, all.sizes.rows - first);
    if (!all.give(at, cuts.pieces, unit / blocks, first, count))
      __atomic_store_n(without, true, __ATOMIC_RELAXED);
  });
  return left_out && unmet;
}

// head(h, use) calls use(query, result, [sums,] score, judge) of a head, of which there are as many
// as `axes` say; keys(number, h) gives its keys and values in a part.
template <class T, int N, int P, class Head, class Keys>
void attend_parts(Axes<N> axes, Sizes sizes, const Part (&parts)[P], Head head, Keys keys) {
  i64 heads = 1;
  for (i64 size : axes.size) heads *= size;
  const Cuts<P> cuts(axes, parts, sizes.rows);
  const i64 rows = heads * sizes.rows, width = padded(sizes.width);
  T* const memory = allocated<T>(Sums<T>::size(cuts.pieces, rows, width));
  const Sums<T> sums(memory, cuts.pieces, rows, width);
  bool skip = true;
  while (attend_pieces(Parts<T, N, Head, Keys>{axes, sizes, head, keys, sums, skip}, parts, cuts,
                       heads) && skip)
    skip = false;
  free(memory);
}

}  // namespace rw
