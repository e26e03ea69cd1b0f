// Convolutions of images that lie as [batch, row, column, channel], on weights packed for them.
//
// What a filter sees of one row of an image lies in one piece, so a convolution is a sum of
// products of matrices: tiles of neighbouring pixels by steps of filters, summed in registers over
// all that a filter sees. Sums run over rows, then columns, then channels, each step an fma, and
// go to a total every CHAIN steps, as long chains lose last bits: the same bits however the work
// is cut. An epilogue is applied to a tile while it lies in the innermost cache. Images with
// margins are copied into a frame of zeros, block by block.
#pragma once

#include "loops.h"

namespace rw {
namespace convolution {

constexpr i64 ENOUGH = 1 << 16;         // products, for a thread
constexpr i64 BLOCK_BYTES = 192 << 10;  // of images that are worked on at a time
constexpr i64 NEAR_BYTES = 128 << 10;   // of weights that stay in the cache of a core
constexpr i64 WHOLE_BYTES = 1 << 20;    // of all images, where they are a block
constexpr i64 UNITS = 8;                // for each thread, where there are as many
constexpr i64 CHAIN = 512;              // products that are summed one after another

// What is known of a convolution while compiling.
template <int Height, int Width, int Down, int Across, int Top, int Left>
struct Window {
  static constexpr int height = Height, width = Width;  // what a filter sees, in pixels
  static constexpr int down = Down, across = Across;    // strides
  static constexpr int top = Top, left = Left;          // margins, the same at the other ends
};

struct Sizes {
  i64 batch, height, width, channels;  // of the images
  i64 rows, columns, filters;          // of the results
};

// How `Columns` pixels by `Steps` steps of filters are cut: tiles of `high` by `wide`, and at the
// ends of `low` and of `narrow`. Their sums and a step of weights take the registers there are.
// High tiles read fewer weights, wide ones write longer runs, which counts where sums are short.
template <i64 Columns, i64 Steps, i64 Depth>
struct Tiling {
  static constexpr i64 columns = Columns;
  static constexpr int several = Depth >= 256 && Columns >= 14 ? 2 : 4;
  static constexpr int most_steps = REGISTER == 64 ? several : 1;
  static constexpr int wide = Steps < most_steps ? Steps : most_steps, narrow = Steps % wide;
  static constexpr int most = REGISTER == 64 ? (wide > 2 ? 28 / wide : 14) : REGISTER == 32 ? 6 : 3;
  static constexpr i64 tiles = (Columns + most - 1) / most;
  static constexpr int high = (Columns + tiles - 1) / tiles, low = Columns % high;
};

// The same where each channel has a filter of its own.
template <i64 Columns, i64 Steps>
struct DepthwiseTiling {
  static constexpr int wide = REGISTER == 64 && Steps > 1 ? 2 : 1, narrow = Steps % wide;
  static constexpr int most = REGISTER == 64 ? 7 : REGISTER == 32 ? 4 : 2;
  static constexpr i64 tiles = (Columns + most - 1) / most;
  static constexpr int high = (Columns + tiles - 1) / tiles, low = Columns % high;
};

RW_INLINE i64 steps_of(i64 count) { return (count + W - 1) / W; }

// ---- tiles --------------------------------------------------------------------------------------
// Addresses of R pixels `bytes` apart, one register for three of them.
template <int R>
struct Pixels {
  static constexpr int GROUPS = (R + 2) / 3;
  const char* group[GROUPS];
  i64 bytes;

  static Pixels at(const f32* x, i64 step) {
    Pixels made;
    made.bytes = step * i64(sizeof(f32));
    RW_UNROLL for (int g = 0; g < GROUPS; ++g) made.group[g] = (const char*)(x + 3 * g * step);
    return made;
  }
  const f32* operator[](int r) const {
    return (const f32*)(group[r / 3] + r % 3 * bytes);
  }
  void advance(i64 by) {
    RW_UNROLL for (int g = 0; g < GROUPS; ++g) {
      group[g] += by;
      asm volatile("" : "+r"(group[g]));  // else gcc makes one of each pixel, and lacks registers
    }
  }
};

template <int R, int P>
RW_INLINE void clear(F (&sums)[R][P * f32v::K]) {
  RW_UNROLL for (int r = 0; r < R; ++r) {
    RW_UNROLL for (int p = 0; p < P * f32v::K; ++p) sums[r][p] = F{};
  }
}

// Sums written to [R][P], or added to what is there.
template <int R, int P>
RW_INLINE void keep(const F (&sums)[R][P * f32v::K], f32* to, bool more = false) {
  RW_UNROLL for (int r = 0; r < R; ++r) {
    RW_UNROLL for (int p = 0; p < P; ++p) {
      f32v sum;
      RW_UNROLL for (int c = 0; c < f32v::K; ++c) sum.c[c] = sums[r][p * f32v::K + c];
      f32* const at = to + (r * P + p) * W;
      if (more) sum = add(load(at), sum);
      store(at, sum);
    }
  }
}

// Adds a number of each pixel times P steps of filters to sums.
template <int R, int P>
RW_INLINE void multiply(F (&sums)[R][P * f32v::K], const Pixels<R>& pixels, const f32* w,
                        i64 apart) {
  constexpr int K = f32v::K;
  F right[P * K];
  RW_UNROLL for (int p = 0; p < P; ++p) {
    const f32v loaded = load(w + p * apart);
    RW_UNROLL for (int c = 0; c < K; ++c) right[p * K + c] = loaded.c[c];
  }
  RW_UNROLL for (int r = 0; r < R; ++r) {
    const F left = all(*pixels[r]);
    RW_UNROLL for (int p = 0; p < P * K; ++p) sums[r][p] = fma(left, right[p], sums[r][p]);
  }
}

// sums[R][P] of R pixels, `step` apart, by P steps of filters. A filter sees `height` rows,
// `row` apart, of `depth` numbers; w: steps of W filters [height][depth][W], `apart`. Meanwhile the
// step of filters at `next` is brought.
template <int R, int P>
__attribute__((noinline)) void dense_tile(const f32* x, i64 step, i64 row, i64 height, i64 depth,
                                          const f32* w, i64 apart, const f32* next, f32* to) {
  F sums[R][P * f32v::K];
  clear<R, P>(sums);
  bool more = false;
  i64 left = CHAIN;
  for (i64 h = 0; h < height; ++h) {
    auto pixels = Pixels<R>::at(x + h * row, step);
    for (i64 k = 0; k < depth;) {
      const i64 stop = size_min(depth, k + left);
      left -= stop - k;
      for (; k < stop; ++k, w += W, next += W) {
        __builtin_prefetch(next, 0, 2);
        multiply<R, P>(sums, pixels, w, apart);
        pixels.advance(sizeof(f32));
      }
      if (left == 0) {
        keep<R, P>(sums, to, more);
        clear<R, P>(sums);
        more = true, left = CHAIN;
      }
    }
  }
  keep<R, P>(sums, to, more);
}

// The same where each channel has a filter of its own, for the P steps of channels that pixels of
// `rows` have; w: steps of W channels [height][width][W].
template <int R, int P, class Window>
__attribute__((noinline)) void depthwise_tile(const f32* const* rows, i64 x, const f32* w,
                                              f32* to) {
  constexpr int K = f32v::K;
  constexpr i64 apart = Window::height * Window::width * W;
  F sums[R][P * K];
  clear<R, P>(sums);
  for (i64 h = 0; h < Window::height; ++h) {
    const f32* from = rows[h] + x;
    for (i64 k = 0; k < Window::width; ++k, w += W, from += P * W) {
      RW_UNROLL for (int p = 0; p < P; ++p) {
        const f32v right = load(w + p * apart);
        RW_UNROLL for (int r = 0; r < R; ++r) {
          const f32v left = load(from + (r * Window::across * P + p) * W);
          RW_UNROLL for (int c = 0; c < K; ++c) {
            sums[r][p * K + c] = fma(left.c[c], right.c[c], sums[r][p * K + c]);
          }
        }
      }
    }
  }
  keep<R, P>(sums, to);
}

// ---- blocks of images ---------------------------------------------------------------------------
// Rows of `deep` images with their margins, `row` numbers apart, and the images `image`, for `rows`
// by `columns` of each result from column `left` of a row on: the first is pixel number `pixel`.
struct Block {
  const f32* x;
  i64 row, image, pixel, deep, rows, left, columns;
};

// Rows `first` to `first + count` of an image, counted from its upper margin, copied to `to`.
template <class Window>
inline void copy_with_margins(const f32* image, const Sizes& s, i64 first, i64 count, f32* to) {
  const i64 length = s.width * s.channels, margin = Window::left * s.channels;
  const auto zeros = [](f32* at, i64 number) {
    steps<1>(0, number, [&](i64 k, auto n) { store(at + k, f32v{}, n); });
  };
  for (i64 r = first - Window::top; count > 0; ++r, --count, to += length + 2 * margin) {
    if (r < 0 || r >= s.height) {
      zeros(to, length + 2 * margin);
      continue;
    }
    const f32* const from = image + r * length;
    f32* const at = to + margin;
    zeros(to, margin);
    steps<1>(0, length, [&](i64 k, auto n) { store(at + k, load(from + k, n), n); });
    zeros(at + length, margin);
  }
}

// How the work is cut: into blocks of `deep` images, `downs` and `acrosses` of these by `high` rows
// and `across` tiles of a row, each by `groups` of the `most` wide steps of filters.
struct Cut {
  i64 deep, high, across, downs, acrosses, most, blocks, groups;
};

// All images are one where weights are many, which then are read once.
template <class Window, class Tiling>
inline Cut cut_of(const Sizes& s) {
  constexpr int R = Tiling::high, wide = Tiling::wide;
  constexpr bool flat = Window::height == 1 && Window::top == 0 && Window::left == 0;
  constexpr i64 number = sizeof(f32);
  const i64 row_bytes = (s.width + 2 * Window::left) * s.channels * number;
  const i64 image_bytes = (s.height + 2 * Window::top) * row_bytes;
  const i64 most = (steps_of(s.filters) + wide - 1) / wide;
  const i64 weights = most * wide * W * Window::height * Window::width * s.channels;
  const bool whole = weights * number > WHOLE_BYTES && s.batch * image_bytes <= WHOLE_BYTES;
  const i64 tiles = (s.columns + R - 1) / R;
  i64 high = s.rows, across = tiles;
  if (!whole && flat) {
    high = 1;
    across = BLOCK_BYTES / (R * Window::across * s.channels * number);
    across = size_max(1, size_min(tiles, across));
  } else if (!whole) {
    high = BLOCK_BYTES / row_bytes - Window::height + Window::down;
    high = size_max(1, size_min(s.rows, high / Window::down));
  }
  const i64 deep = whole ? s.batch : 1;
  const i64 downs = (s.rows + high - 1) / high, acrosses = (tiles + across - 1) / across;
  const i64 blocks = s.batch / deep * downs * acrosses;
  const i64 wanted = UNITS * omp_get_max_threads();
  const i64 groups = size_min(most, (wanted + blocks - 1) / blocks);
  return {deep, (s.rows + downs - 1) / downs, (tiles + acrosses - 1) / acrosses,
          downs, acrosses, most, blocks, groups};
}

// Block number `unit` of those that images are cut into, with margins copied to `scratch`, unless
// it is the block that was there `last`.
template <class Window, class Tiling>
inline Block block_of(const f32* images, const Sizes& s, const Cut& cut, i64 unit, i64 last,
                      f32* scratch) {
  const i64 row = (s.width + 2 * Window::left) * s.channels;
  const i64 image = s.height * s.width * s.channels, run = cut.across * Tiling::high;
  const i64 a = unit % cut.acrosses, d = unit / cut.acrosses % cut.downs;
  const i64 n = unit / cut.acrosses / cut.downs;
  const i64 top = d * cut.high, rows = size_min(cut.high, s.rows - top), left = a * run;
  const i64 seen = (rows - 1) * Window::down + Window::height;
  const f32* const from = images + n * image;
  Block block{from + top * Window::down * row, row, image, (n * s.rows + top) * s.columns + left,
              cut.deep, rows, left, size_min(run, s.columns - left)};
  if (scratch) {
    for (i64 i = 0; i < cut.deep && unit != last; ++i) {
      copy_with_margins<Window>(from + i * image, s, top * Window::down, seen,
                                scratch + i * seen * row);
    }
    block.x = scratch, block.image = seen * row;
  }
  return block;
}

// work(block, first step, steps) for units that make up the result.
template <class Window, class Tiling, class Work>
void each_block(const f32* images, const Sizes& s, i64 products, Work work) {
  const Cut cut = cut_of<Window, Tiling>(s);
  const i64 units = cut.blocks * cut.groups;
  const i64 row_bytes = (s.width + 2 * Window::left) * s.channels * i64(sizeof(f32));
  const i64 held = cut.deep * ((cut.high - 1) * Window::down + Window::height) * row_bytes;
  parallel_units(units, 1 + ENOUGH / (1 + products / units), [=](i64 begin, i64 end) {
    constexpr bool copied = Window::top > 0 || Window::left > 0;
    f32* const scratch =
        copied ? static_cast<f32*>(aligned_alloc(64, (held + 63) / 64 * 64)) : nullptr;
    for (i64 at = begin, last = -1; at < end; ++at) {
      const i64 unit = at / cut.groups, group = at % cut.groups;
      const Block block = block_of<Window, Tiling>(images, s, cut, unit, last, scratch);
      last = unit;
      const i64 first = cut.most * group / cut.groups * Tiling::wide;
      const i64 stop = cut.most * (group + 1) / cut.groups * Tiling::wide;
      work(block, first, size_min(stop, steps_of(s.filters)) - first);
    }
    free(scratch);
  });
}

// Tiles of a row: each(first pixel, pixels).
template <class Tiling, class Each>
RW_INLINE void each_tile(i64 columns, Each each) {
  i64 c = 0;
  for (; c + Tiling::high <= columns; c += Tiling::high) each(c, Width<Tiling::high>{});
  if constexpr (Tiling::low > 0) {
    if (c < columns) each(c, Width<Tiling::low>{});
  }
}

// And steps of filters: each(first step, steps).
template <class Tiling, class Each>
RW_INLINE void each_step(i64 begin, i64 end, Each each) {
  i64 f = begin;
  for (; f + Tiling::wide <= end; f += Tiling::wide) each(f, Width<Tiling::wide>{});
  if constexpr (Tiling::narrow > 0) {
    if (f < end) each(f, Width<Tiling::narrow>{});
  }
}

// Has the lines of a tile brought: for writing, if For is 1.
template <int R, int P, int For>
RW_INLINE void ask(const f32* at, i64 apart, Width<For>) {
  RW_UNROLL for (int r = 0; r < R; ++r) {
    RW_UNROLL for (int p = 0; p < P; ++p) __builtin_prefetch(at + r * apart + p * W, For, 3);
  }
}

// A tile's sums, from filter number `filter` on, of which there are `left`, to y; pixels lie
// `apart`.
template <int R, int P, class Finish>
RW_INLINE void give(const f32* sums, f32* y, i64 at, i64 apart, i64 filter, i64 left,
                    Finish finish) {
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p, sums += W) {
      const i64 place = at + r * apart + p * W, rest = left - p * W;
      if (rest >= W) {
        store(y + place, finish(load(sums), place, filter + p * W, Whole{}));
      } else if (rest > 0) {
        const int n = static_cast<int>(rest);
        store(y + place, finish(load(sums), place, filter + p * W, n), n);
      }
    }
  }
}

// ---- convolutions -------------------------------------------------------------------------------
// Results go through finish(sum, place, filter, n): n of them, for neighbouring filters, whose
// place in y is told. w: steps of W filters [height][width][channels][W].
// `other`: an image like y that is read there, or nothing.
template <class Window, class Tiling, class Finish>
inline void dense(const Sizes& s, const f32* x, const f32* w, const f32* other, f32* y,
                  Finish finish) {
  if (s.batch == 0) return;
  const i64 depth = Window::width * s.channels, apart = Window::height * depth * W;
  const i64 products = s.batch * s.rows * s.columns * s.filters * Window::height * depth;
  each_block<Window, Tiling>(x, s, products, [=](const Block& b, i64 first, i64 count) {
    const i64 step = Window::across * s.channels;
    const auto one = [&](i64 r, i64 c, i64 f, const f32* next, auto high, auto wide) {
      constexpr int R = decltype(high)::count, P = decltype(wide)::count;
      const f32* const from =
          b.x + r / b.rows * b.image + r % b.rows * Window::down * b.row + (b.left + c) * step;
      const i64 filters = s.filters, at = (b.pixel + r * s.columns + c) * filters + f * W;
      ask<R, P>(y + at, filters, Width<1>{});
      if (other) ask<R, P>(other + at, filters, Width<0>{});
      alignas(64) f32 sums[R * P * W];
      dense_tile<R, P>(from, step, b.row, Window::height, depth, w + f * apart, apart, next, sums);
      give<R, P>(sums, y, at, filters, f * W, filters - f * W, finish);
    };
    const i64 rows = b.deep * b.rows;
    if (count * apart * i64(sizeof(f32)) <= NEAR_BYTES) {
      for (i64 r = 0; r < rows; ++r) {
        each_tile<Tiling>(b.columns, [&](i64 c, auto high) {
          each_step<Tiling>(first, first + count,
                            [&](i64 f, auto wide) { one(r, c, f, w, high, wide); });
        });
      }
    } else {
      each_step<Tiling>(first, first + count, [&](i64 f, auto wide) {
        constexpr int P = decltype(wide)::count;
        const f32* next = w + (f + P) * apart;  // the first P tiles bring the next P steps
        const f32* const stop = next + P * apart;
        for (i64 r = 0; r < rows; ++r) {
          each_tile<Tiling>(b.columns, [&](i64 c, auto high) {
            one(r, c, f, next < stop ? next : w, high, wide);
            next += apart;
          });
        }
      });
    }
  });
}

// Filters that see one pixel in several: the pixels that they see, then a product of these.
template <class Window, class Tiling, class Finish>
inline void sparse(const Sizes& s, const f32* x, const f32* w, const f32* other, f32* y,
                   Finish finish) {
  const i64 pixels = s.batch * s.rows * s.columns, channels = s.channels;
  if (pixels == 0) return;
  const i64 nbytes = (pixels * channels * i64(sizeof(f32)) + 63) / 64 * 64;
  f32* const seen = static_cast<f32*>(aligned_alloc(64, nbytes));
  parallel_units(pixels, 1 + ENOUGH / channels, [=](i64 begin, i64 end) {
    for (i64 p = begin; p < end; ++p) {
      const i64 c = p % s.columns, r = p / s.columns % s.rows, n = p / s.columns / s.rows;
      const i64 row = n * s.height + r * Window::down;
      const f32* const from = x + (row * s.width + c * Window::across) * channels;
      f32* const to = seen + p * channels;
      steps<1>(0, channels, [&](i64 k, auto n) { store(to + k, load(from + k, n), n); });
    }
  });
  // Rows of as many pixels as the tiles are cut for: of one image, where the batch is not known.
  constexpr i64 row = Tiling::columns;
  const Sizes flat{pixels / row, 1, row, channels, 1, row, s.filters};
  dense<convolution::Window<1, 1, 1, 1, 0, 0>, Tiling>(flat, seen, w, other, y, finish);
  free(seen);
}

// P steps of channels of the rows that a filter sees, copied to where they stay in cache.
template <class Window, int P>
struct Rows {
  const Sizes& s;
  i64 length;    // of a row with its margins
  f32* scratch;  // [height][length]
  i64 channels;  // that there are, of P * W
  const f32* seen[Window::height];

  // To the rows that a filter sees from row `top` of the image on; those before `next` are there.
  void move(const f32* image, i64 top, i64 next) {
    for (i64 r = size_max(top, next); r < top + Window::height; ++r) fill(image, r);
    for (i64 h = 0; h < Window::height; ++h) seen[h] = row(top + h);
  }

  f32* row(i64 r) const { return scratch + (r + Window::top) % Window::height * length; }

  void fill(const f32* image, i64 r) const {
    f32* to = row(r) + Window::left * P * W;
    if (r < 0 || r >= s.height) {
      for (i64 i = 0; i < s.width * P; ++i, to += W) store(to, f32v{});
      return;
    }
    const f32* from = image + r * s.width * s.channels;
    for (i64 c = 0; c < s.width; ++c, to += P * W, from += s.channels) {
      if (channels == P * W) {
        RW_UNROLL for (int p = 0; p < P; ++p) store(to + p * W, load(from + p * W));
      } else {
        steps<1>(0, channels, [&](i64 k, auto n) { store(to + k, load(from + k, n)); });
      }
    }
  }
};

// Rows `first` to `first + rows` of an image's result, from channel step f on; its first pixel has
// the number `pixel`.
template <class Window, class Tiling, int P, class Finish>
inline void depthwise_rows(const Sizes& s, const f32* image, const f32* w, f32* y, i64 pixel,
                           i64 first, i64 rows, i64 f, f32* scratch, Finish finish) {
  constexpr i64 apart = Window::height * Window::width * W;
  const i64 length = (s.width + 2 * Window::left) * P * W;
  const i64 filters = s.filters, channels = size_min(P * W, filters - f * W);
  for (i64 i = 0; i < Window::height * length; i += W) store(scratch + i, f32v{});
  Rows<Window, P> held{s, length, scratch, channels, {}};
  i64 next = first * Window::down - Window::top;
  for (i64 r = first; r < first + rows; ++r) {
    const i64 top = r * Window::down - Window::top;
    held.move(image + f * W, top, next);
    next = top + Window::height;
    each_tile<Tiling>(s.columns, [&](i64 c, auto high) {
      constexpr int R = decltype(high)::count;
      const i64 at = (pixel + r * s.columns + c) * filters + f * W;
      alignas(64) f32 sums[R * P * W];
      depthwise_tile<R, P, Window>(held.seen, c * Window::across * P * W, w + f * apart, sums);
      give<R, P>(sums, y, at, filters, f * W, channels, finish);
    });
  }
}

// The same where each channel has a filter of its own; w: steps of W channels [height][width][W].
template <class Window, class Tiling, class Finish>
inline void depthwise(const Sizes& s, const f32* x, const f32* w, f32* y, Finish finish) {
  if (s.batch == 0) return;
  constexpr int wide = Tiling::wide;
  const i64 steps = steps_of(s.channels), groups = (steps + wide - 1) / wide;
  const i64 wanted = UNITS * omp_get_max_threads() / (s.batch * groups);
  const i64 blocks = size_max(1, size_min(s.rows / Window::height, wanted));
  const i64 work = s.rows * s.columns * wide * W * Window::height * Window::width / blocks;
  const i64 bytes = Window::height * (s.width + 2 * Window::left) * wide * W * i64(sizeof(f32));
  parallel_units(s.batch * blocks * groups, 1 + ENOUGH / (1 + work), [=](i64 begin, i64 end) {
    f32* const scratch = static_cast<f32*>(aligned_alloc(64, bytes));
    for (i64 unit = begin; unit < end; ++unit) {
      const i64 f = unit % groups * wide, block = unit / groups % blocks;
      const i64 n = unit / groups / blocks, first = s.rows * block / blocks;
      const i64 rows = s.rows * (block + 1) / blocks - first;
      const f32* const image = x + n * s.height * s.width * s.channels;
      each_step<Tiling>(f, size_min(f + wide, steps), [&](i64 f, auto count) {
        depthwise_rows<Window, Tiling, decltype(count)::count>(
            s, image, w, y, n * s.rows * s.columns, first, rows, f, scratch, finish);
      });
    }
    free(scratch);
  });
}

}  // namespace convolution
}  // namespace rw
