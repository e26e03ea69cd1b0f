// Exact packing of buffers below a capacity; `passes/memory/twin.py` is the same in Python.
//
// Solutions are built from below: a buffer goes on top of what lies under it, or onto the floor, so
// that of all solutions those are looked for in which nothing can drop. The search decides of one
// buffer after another whether it lies as low as it can, or higher. What bounds the rest is, as in
// MiniMalloc (Moffitt, ASPLOS 2023), how high the buffers of a section of time reach at the least;
// as there, times that no open buffer joins any more are searched apart. Beyond it, what lies
// higher than it could must have been lifted by another, and a section that cannot afford a hole
// is filled before any other decision.
#include <stdint.h>
#include <stdlib.h>

typedef struct {
  int32_t count, sections;
  int64_t capacity, nodes;      // and the most decisions to take
  const int64_t *size;          // by buffer; those to be preferred come first
  const int32_t *from, *to;     // the sections from <= s < to that a buffer lives in
} Problem;

enum { FAILS, FITS, ENDED };    // ENDED: after as many nodes as were allowed
enum { FEW = 3 };               // choices of a section that is decided before the lowest buffer
static const int64_t FAR = INT64_MAX;

// Buffers still to be placed, in sections that no others join to the rest. In order of `least`
// where `infer` has gone over them.
typedef struct {
  int32_t *buffer, count, from, to;
} Part;

typedef struct {
  const Problem *p;
  int64_t nodes;
  // By buffer:
  int64_t *offset;              // of the placed
  int64_t *base;                // the top of what is placed under it
  int64_t *least;               // the least offset it may still have
  uint8_t *placed, *refused;    // refused: not to lie at its base
  uint8_t *lifted;              // refused, or another may as well lie there
  int32_t *alike;               // the previous one of the same size and sections, or -1
  // By section:
  int64_t *floor, *rest;        // the top of the placed, the sum of the others
  int32_t *highest;             // the last placed, or -1
  int32_t *joined;              // buffers to be placed that live in it and in the next
  int64_t *top, *second;        // the least two tops of buffers to be placed
  int32_t *owner;               // whose the first of them is
  int64_t *reach;               // how high its buffers come at the least
  int64_t *lowest, *next;       // the least offsets: of all, and if none were taken at the lowest
  int32_t *choices;             // that lie at the lowest; -1: not all can be decided now
} State;

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// --- inference -----------------------------------------------------------------------------------

// Of two like buffers, and of two of one lifetime of which one lies on the other, the preferred one
// lies below: exchanging them changes nothing for others.
static int is_exchangeable(const State *s, int32_t b) {
  const int32_t *from = s->p->from, *to = s->p->to, below = s->highest[from[b]];
  if (s->alike[b] >= 0 && !s->placed[s->alike[b]]) return 1;
  return below > b && from[below] == from[b] && to[below] == to[b] &&
         s->floor[from[b]] == s->base[b];
}

// The least top of the others that live with b.
static int64_t least_top_beside(const State *s, int32_t b) {
  int64_t least = FAR;
  for (int32_t t = s->p->from[b]; t < s->p->to[b]; ++t)
    least = smaller(least, s->owner[t] == b ? s->second[t] : s->top[t]);
  return least;
}

static void find_tops(State *s, const Part *part, int64_t level) {
  for (int32_t t = part->from; t < part->to; ++t) {
    s->top[t] = s->second[t] = FAR;
    s->owner[t] = -1;
  }
  for (int32_t i = 0; i < part->count; ++i) {
    const int32_t b = part->buffer[i];
    s->least[b] = larger(s->base[b], level);
    const int64_t top = s->least[b] + s->p->size[b];
    for (int32_t t = s->p->from[b]; t < s->p->to[b]; ++t) {
      if (top < s->top[t]) {
        s->second[t] = s->top[t];
        s->top[t] = top;
        s->owner[t] = b;
      } else if (top < s->second[t]) {
        s->second[t] = top;
      }
    }
  }
}

static void sort_by_least(const State *s, Part *part) {
  for (int32_t i = 1; i < part->count; ++i) {
    const int32_t b = part->buffer[i];
    int32_t j = i;
    for (; j; --j) {
      const int32_t a = part->buffer[j - 1];
      if (s->least[a] < s->least[b] || (s->least[a] == s->least[b] && a < b)) break;
      part->buffer[j] = a;
    }
    part->buffer[j] = b;
  }
}

// Whether all sections can hold their buffers, none of which lies lower than its least offset.
static int is_within_reach(State *s, const Part *part) {
  for (int32_t t = part->from; t < part->to; ++t) {
    s->reach[t] = s->floor[t];
    s->lowest[t] = FAR;
  }
  for (int32_t i = 0; i < part->count; ++i) {
    const int32_t b = part->buffer[i];
    const int64_t least = s->least[b], size = s->p->size[b];
    for (int32_t t = s->p->from[b]; t < s->p->to[b]; ++t) {
      s->lowest[t] = smaller(s->lowest[t], least);
      s->reach[t] = larger(s->reach[t], least) + size;
    }
  }
  for (int32_t t = part->from; t < part->to; ++t)
    if (s->reach[t] > s->p->capacity) return 0;
  return 1;
}

// Whether another buffer can still reach into the place that b was refused; else b would drop.
static int is_in_the_way(const State *s, const Part *part, int32_t b) {
  const int32_t *from = s->p->from, *to = s->p->to;
  const int64_t top = s->base[b] + s->p->size[b];
  for (int32_t i = 0; i < part->count && s->least[part->buffer[i]] < top; ++i) {
    const int32_t a = part->buffer[i];
    if (a != b && from[a] < to[b] && from[b] < to[a]) return 1;
  }
  return 0;
}

// Work out the least offsets. 0: no solution agrees with what has been decided.
static int infer(State *s, Part *part) {
  int64_t level = FAR;
  for (int32_t i = 0; i < part->count; ++i) {
    const int32_t b = part->buffer[i];
    s->lifted[b] = s->refused[b] || is_exchangeable(s, b);
    if (!s->lifted[b]) level = smaller(level, s->base[b]);
  }
  if (level == FAR) return 0;
  find_tops(s, part, level);
  for (int32_t i = 0; i < part->count; ++i) {
    const int32_t b = part->buffer[i];
    if (!s->lifted[b]) continue;
    const int64_t top = least_top_beside(s, b);
    if (top == FAR) return 0;
    s->least[b] = larger(s->least[b], top);
  }
  sort_by_least(s, part);
  if (!is_within_reach(s, part)) return 0;
  for (int32_t i = 0; i < part->count; ++i)
    if (s->lifted[part->buffer[i]] && !is_in_the_way(s, part, part->buffer[i])) return 0;
  return 1;
}

// --- decisions -----------------------------------------------------------------------------------

// True when b can lie at its base and nothing to be placed can come under it.
static int is_next(const State *s, int32_t b) {
  if (s->lifted[b]) return 0;
  for (int32_t t = s->p->from[b]; t < s->p->to[b]; ++t)
    if (s->lowest[t] < s->least[b]) return 0;
  return 1;
}

// Count the choices of all sections; the lowest buffer that is next.
static int32_t count_choices(State *s, const Part *part) {
  int32_t first = -1;
  for (int32_t t = part->from; t < part->to; ++t) {
    s->choices[t] = 0;
    s->next[t] = FAR;
  }
  for (int32_t i = 0; i < part->count; ++i) {
    const int32_t b = part->buffer[i], next = is_next(s, b);
    const int64_t otherwise = next ? least_top_beside(s, b) : FAR;
    if (next && first < 0) first = b;
    for (int32_t t = s->p->from[b]; t < s->p->to[b]; ++t) {
      if (s->least[b] > s->lowest[t]) {
        s->next[t] = smaller(s->next[t], s->least[b]);
      } else {
        s->choices[t] = next && s->choices[t] >= 0 ? s->choices[t] + 1 : -1;
        s->next[t] = smaller(s->next[t], otherwise);
      }
    }
  }
  return first;
}

// The section of the fewest choices, the lowest among equals, that cannot do without; -1: none.
static int32_t urgent_section(const State *s, const Part *part) {
  int32_t best = -1;
  for (int32_t t = part->from; t < part->to; ++t) {
    const int32_t n = s->choices[t];
    if (n < 1 || n > FEW || s->next[t] <= s->p->capacity - s->rest[t]) continue;
    if (best < 0 || n < s->choices[best] ||
        (n == s->choices[best] && s->lowest[t] < s->lowest[best]))
      best = t;
  }
  return best;
}

// Fill `chosen` with buffers to try at their bases; return how many. `all`: one of them is there.
static int32_t choose(State *s, const Part *part, int32_t *chosen, int *all) {
  const int32_t first = count_choices(s, part), section = urgent_section(s, part);
  *all = section >= 0;
  if (!*all) {
    chosen[0] = first;
    return 1;
  }
  int32_t count = 0;
  for (int32_t i = 0; i < part->count; ++i) {
    const int32_t b = part->buffer[i];
    const int lives = s->p->from[b] <= section && section < s->p->to[b];
    if (lives && s->least[b] == s->lowest[section]) chosen[count++] = b;
  }
  return count;
}

// --- search --------------------------------------------------------------------------------------

static int search(State *s, const Part *part);

// Solve what is left of a part after b was placed, piece by piece.
static int search_pieces(State *s, const Part *part, int32_t b) {
  const int32_t *from = s->p->from, *to = s->p->to;
  Part piece = {.buffer = malloc((size_t)part->count * sizeof *piece.buffer), .to = part->from};
  int found = FITS;
  for (int32_t t = from[b]; t < to[b] && found == FITS; ++t) {
    if (t + 1 < to[b] && s->joined[t]) continue;
    piece.from = piece.to;
    piece.to = t + 1 < to[b] ? t + 1 : part->to;
    piece.count = 0;
    for (int32_t i = 0; i < part->count; ++i) {
      const int32_t a = part->buffer[i];
      if (a != b && piece.from <= from[a] && to[a] <= piece.to) piece.buffer[piece.count++] = a;
    }
    if (piece.count) found = search(s, &piece);
  }
  free(piece.buffer);
  return found;
}

typedef struct {
  int64_t base;
  uint8_t refused;
} Before;

typedef struct {
  int64_t floor;
  int32_t highest;
} Under;

static int place(State *s, const Part *part, int32_t b) {
  const Problem *p = s->p;
  const int32_t from = p->from[b], to = p->to[b];
  const int64_t size = p->size[b], top = s->base[b] + size;
  Before *before = malloc((size_t)part->count * sizeof *before);
  Under *under = malloc((size_t)(to - from) * sizeof *under);
  s->placed[b] = 1;
  s->offset[b] = s->base[b];
  for (int32_t i = 0; i < part->count; ++i) {
    const int32_t a = part->buffer[i];
    before[i] = (Before){s->base[a], s->refused[a]};
    if (a == b || p->from[a] >= to || from >= p->to[a] || s->base[a] >= top) continue;
    s->base[a] = top;
    s->refused[a] = 0;
  }
  for (int32_t t = from; t < to; ++t) {
    under[t - from] = (Under){s->floor[t], s->highest[t]};
    s->floor[t] = top;
    s->highest[t] = b;
    s->rest[t] -= size;
    s->joined[t] -= t + 1 < to;
  }
  const int found = search_pieces(s, part, b);
  for (int32_t t = from; t < to; ++t) {
    s->floor[t] = under[t - from].floor;
    s->highest[t] = under[t - from].highest;
    s->rest[t] += size;
    s->joined[t] += t + 1 < to;
  }
  for (int32_t i = 0; i < part->count; ++i) {
    s->base[part->buffer[i]] = before[i].base;
    s->refused[part->buffer[i]] = before[i].refused;
  }
  s->placed[b] = 0;
  free(before), free(under);
  return found;
}

static int search(State *s, const Part *part) {
  int32_t *tried = malloc((size_t)part->count * sizeof *tried), count = 0;
  Part own = *part;
  int found = FAILS, all = 0;
  while (found == FAILS && !all) {
    if (s->nodes == s->p->nodes) { found = ENDED; break; }
    ++s->nodes;
    if (!infer(s, &own)) break;
    const int32_t last = count + choose(s, &own, tried + count, &all);
    for (; count < last && found == FAILS; ++count) {
      found = place(s, &own, tried[count]);
      s->refused[tried[count]] = 1;
    }
  }
  while (count) s->refused[tried[--count]] = 0;
  free(tried);
  return found;
}

// --- the door ------------------------------------------------------------------------------------

static void start(State *s) {
  const Problem *p = s->p;
  for (int32_t b = 0; b < p->count; ++b) {
    s->alike[b] = -1;
    for (int32_t a = b - 1; a >= 0 && s->alike[b] < 0; --a)
      if (p->from[a] == p->from[b] && p->to[a] == p->to[b] && p->size[a] == p->size[b])
        s->alike[b] = a;
    for (int32_t t = p->from[b]; t < p->to[b]; ++t) {
      s->rest[t] += p->size[b];
      s->joined[t] += t + 1 < p->to[b];
    }
  }
  for (int32_t t = 0; t < p->sections; ++t) s->highest[t] = -1;
}

static int search_all(State *s) {
  const Problem *p = s->p;
  Part part = {.buffer = malloc((size_t)p->count * sizeof *part.buffer), .to = 0};
  int found = FITS;
  for (int32_t t = 0; t < p->sections && found == FITS; ++t) {
    if (s->joined[t]) continue;
    part.from = part.to;
    part.to = t + 1;
    part.count = 0;
    for (int32_t b = 0; b < p->count; ++b)
      if (part.from <= p->from[b] && p->to[b] <= part.to) part.buffer[part.count++] = b;
    if (part.count) found = search(s, &part);
  }
  free(part.buffer);
  return found;
}

// Look for offsets below the capacity; write them, and how many nodes that took. Returns FITS,
// FAILS when there are none, ENDED when the nodes did not suffice.
int32_t rw_pack(const Problem *p, int64_t *offset, int64_t *nodes) {
  enum { BY_BUFFER = 2, BY_SECTION = 7 };
  const size_t n = (size_t)p->count, m = (size_t)p->sections;
  int64_t *wide = calloc(BY_BUFFER * n + BY_SECTION * m + 1, sizeof *wide), *w = wide;
  int32_t *narrow = calloc(n + 4 * m + 1, sizeof *narrow), *i = narrow;
  uint8_t *flags = calloc(3 * n + 1, sizeof *flags);
  State s = {.p = p, .offset = offset};
  s.base = w, w += n, s.least = w, w += n;
  s.floor = w, w += m, s.rest = w, w += m, s.top = w, w += m, s.second = w, w += m;
  s.reach = w, w += m, s.lowest = w, w += m, s.next = w;
  s.alike = i, i += n, s.highest = i, i += m, s.joined = i, i += m, s.owner = i, i += m;
  s.choices = i;
  s.placed = flags, s.refused = flags + n, s.lifted = flags + 2 * n;
  start(&s);
  const int found = search_all(&s);
  *nodes = s.nodes;
  free(wide), free(narrow), free(flags);
  return found;
}
