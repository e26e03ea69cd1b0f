// What a score can be anywhere in a tile: scalar expressions over intervals.
//
// The names are those of simd.h, so that one expression prints for lanes and for tiles. An interval
// holds every value that the expression takes in the tile: real<T> is around what is computed in
// floats, since kernels round otherwise than intervals do, and whole<T> around what is computed in
// integers, which may wrap. Scores are taken to be numbers.
#pragma once

#include "loops.h"

namespace rw {

// [low, high], of truth values within [0, 1]
struct Range {
  f64 low, high;
};
// Values of a loop variable: first <= i < end.
struct Span {
  i64 first, end;
};

constexpr f64 ENDLESS = __builtin_inf();
constexpr f64 EXACT = 9007199254740992.0;  // from here on integers are no longer told apart

inline Range anything() { return {-ENDLESS, ENDLESS}; }
inline Range either() { return {0, 1}; }
inline Range sure(bool known) { return {f64(known), f64(known)}; }
inline bool certain(Range x) { return x.low == x.high; }
inline Range hull(Range a, Range b) {
  return {a.low < b.low ? a.low : b.low, a.high > b.high ? a.high : b.high};
}
inline Range checked(Range x) { return x.low <= x.high ? x : anything(); }  // not if NaN
inline Range exactly(f64 x) { return checked({x, x}); }
inline Range rounded(Range x, f64 error) {
  const f64 low = x.low - error * __builtin_fabs(x.low);
  const f64 high = x.high + error * __builtin_fabs(x.high);
  return {low == low ? low : x.low, high == high ? high : x.high};  // infinities stay
}
// A result that floats of type T hold, with the error of one operation.
template <class T> inline Range real(Range x) {
  return rounded(x, sizeof(T) == 4 ? 2.4e-7 : 4e-16);
}
// One that integers of type T hold, unless they wrap.
template <class T> inline Range whole(Range x) {
  constexpr bool is_signed = T(-1) < T(0);
  constexpr int bits = sizeof(T) * 8 - is_signed;
  const f64 high = bits > 53 ? EXACT : f64((u64(1) << bits) - 1), low = is_signed ? -high - 1 : 0;
  return x.low >= low && x.high <= high ? x : anything();
}

// ---- index expressions and memory ---------------------------------------------------------------
inline Range along(i64 base, i64 by_row, Span i, i64 by_key, Span j) {
  const auto part = [](i64 step, Span span) {
    const i64 a = step * span.first, b = step * (span.end - 1);
    return Range{f64(a < b ? a : b), f64(a < b ? b : a)};
  };
  const Range row = part(by_row, i), key = part(by_key, j);
  return {f64(base) + row.low + key.low, f64(base) + row.high + key.high};
}

template <class T> inline Range range_of_row(const T* from, i64 count, i64 step) {
  compute<T> low = broadcast(from), high = low;
  i64 l = 0;
  if (step == 1) {
    for (; l + W <= count; l += W) {
      const compute<T> x = load(from + l);
      low = minimum(low, x), high = maximum(high, x);
    }
  }
  for (; l < count; ++l) {
    const compute<T> x = broadcast(from + l * step);
    low = minimum(low, x), high = maximum(high, x);
  }
  return checked({f64(hmin(low)), f64(hmax(high))});
}
inline Range range_of_row(const bool* from, i64 count, i64 step) {
  return range_of_row(reinterpret_cast<const u8*>(from), count, step);
}

// Of base[i * by_row + j * by_key] over the spans.
template <class T>
inline Range range_of(const T* base, i64 by_row, Span i, i64 by_key, Span j) {
  const i64 rows = by_row ? i.end - i.first : 1, keys = by_key ? j.end - j.first : 1;
  const T* const from = base + i.first * by_row + j.first * by_key;
  Range all = by_key ? range_of_row(from, keys, by_key) : range_of_row(from, rows, by_row);
  for (i64 r = 1; by_key && r < rows; ++r)
    all = hull(all, range_of_row(from + r * by_row, keys, by_key));
  const bool told_apart = is_float<T> || sizeof(T) < 8 || (all.low >= -EXACT && all.high <= EXACT);
  return told_apart ? all : anything();
}

// ---- arithmetic ---------------------------------------------------------------------------------
inline Range neg(Range x) { return {-x.high, -x.low}; }
inline Range add(Range a, Range b) { return checked({a.low + b.low, a.high + b.high}); }
inline Range sub(Range a, Range b) { return add(a, neg(b)); }
inline Range mul(Range a, Range b) {
  const f64 all[] = {a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high};
  Range r{all[0], all[0]};
  for (f64 x : all) {
    if (!(x == x)) return anything();
    r = hull(r, {x, x});
  }
  return r;
}
inline Range div(Range a, Range b) {
  return b.low <= 0 && b.high >= 0 ? anything() : mul(a, {1 / b.high, 1 / b.low});
}
inline Range abs(Range x) {
  const Range y = neg(x);
  return {x.low > 0 ? x.low : y.low > 0 ? y.low : 0, x.high > y.high ? x.high : y.high};
}
inline Range maximum(Range a, Range b) {
  return {a.low > b.low ? a.low : b.low, a.high > b.high ? a.high : b.high};
}
inline Range minimum(Range a, Range b) { return neg(maximum(neg(a), neg(b))); }
inline Range fmax(Range a, Range b) { return maximum(a, b); }
inline Range fmin(Range a, Range b) { return minimum(a, b); }
inline Range floor(Range x) { return {__builtin_floor(x.low), __builtin_floor(x.high)}; }
inline Range div_floor(Range a, Range b) {
  if (b.low <= 0) return anything();
  const Range at_low = {__builtin_floor(a.low / b.high), __builtin_floor(a.low / b.low)};
  const Range at_high = {__builtin_floor(a.high / b.high), __builtin_floor(a.high / b.low)};
  return hull(at_low, at_high);
}
inline Range remainder(Range a, Range b) {
  if (b.low <= 0) return anything();
  const bool same = certain(b) && __builtin_floor(a.low / b.low) == __builtin_floor(a.high / b.low);
  const f64 base = same ? __builtin_floor(a.low / b.low) * b.low : 0;
  return same ? Range{a.low - base, a.high - base} : Range{0, b.high};
}
inline Range tanh(Range x) { return {x.low < 0 ? -1.0 : 0.0, x.high > 0 ? 1.0 : 0.0}; }
inline Range sigmoid(Range) { return {0, 1}; }

// ---- truth --------------------------------------------------------------------------------------
inline Range lt(Range a, Range b) {
  return a.high < b.low ? sure(true) : a.low >= b.high ? sure(false) : either();
}
inline Range ge(Range a, Range b) { const Range r = lt(a, b); return {1 - r.high, 1 - r.low}; }
inline Range gt(Range a, Range b) { return lt(b, a); }
inline Range le(Range a, Range b) { return ge(b, a); }
inline Range eq(Range a, Range b) {
  if (a.high < b.low || b.high < a.low) return sure(false);
  return certain(a) && certain(b) ? sure(true) : either();
}
inline Range logical_not(Range x) { return {1 - x.high, 1 - x.low}; }
inline Range ne(Range a, Range b) { return logical_not(eq(a, b)); }
inline Range logical_and(Range a, Range b) { return minimum(a, b); }
inline Range logical_or(Range a, Range b) { return maximum(a, b); }
inline Range logical_xor(Range a, Range b) { return ne(a, b); }
inline Range truth(Range x) { return ne(x, {0, 0}); }
inline Range select(Range which, Range a, Range b) {
  return which.low > 0 ? a : which.high < 1 ? b : hull(a, b);
}

// ---- casts: T is the type that the value is converted to ----------------------------------------
template <class T> inline Range cast(Range x) {
  if constexpr (same<T, bool>) {
    return truth(x);
  } else if constexpr (is_float<T>) {
    return real<T>(x);
  } else {
    return whole<T>({__builtin_floor(x.low), __builtin_ceil(x.high)});
  }
}
template <class T> inline Range round_to(Range x) {
  if constexpr (same<T, f16> || same<T, bf16> || same<T, f8e4m3fn> || same<T, f8e5m2>) {
    const f64 most = same<T, bf16> ? ENDLESS : same<T, f8e4m3fn> ? 448 : 57344;
    const f64 step = same<T, f16> ? 1e-3 : same<T, bf16> ? 8e-3 : 0.25;
    // Nothing that is finite becomes infinite: scores are numbers.
    const Range within = {x.low < -most && x.low > -ENDLESS ? -most : x.low,
                          x.high > most && x.high < ENDLESS ? most : x.high};
    return rounded(within, step);
  } else {
    return whole<T>(x);
  }
}

// ---- what a tile's scores come to ---------------------------------------------------------------
// A score below this takes no probability from one above LIVE, whatever those are.
constexpr f64 DEAD = -1e34, LIVE = -1e32;
// Any number that a product of queries and keys may be.
inline Range any_score() { return {-1e30, 1e30}; }

// Whether all scores of a tile are dead, all minus infinity, and the conditions that hold in the
// whole tile or nowhere.
template <int Conditions> struct Verdict {
  bool dead, gone, known;
  bool value[Conditions + 1];
};
template <class... Ranges>
inline Verdict<sizeof...(Ranges)> verdict(Range score, Ranges... conditions) {
  return {score.high < DEAD, score.high == -ENDLESS, (certain(conditions) && ...),
          {conditions.low > 0 ..., false}};
}

// What evaluates conditions, and what has them from the verdict.
struct Open {
  mask operator()(int, mask x) const { return x; }
};
template <int Conditions> struct Decided {
  const bool (&value)[Conditions + 1];
  mask operator()(int place, mask) const { return splat(value[place]); }
};

}  // namespace rw
