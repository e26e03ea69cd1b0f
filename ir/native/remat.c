// Annealing of schedules with recomputation; `passes/remat/twin.py` is the same in Python.
//
// Steps stand in slots, most of which are empty. A value lives from the slot that makes it to the
// last one that reads it before it is made again; one that is kept from the first slot that makes it
// to the end, and is nothing but in the way where it is made once more. A tree over the slots holds how many bytes live
// at each, so that a lifetime is added or taken away, and the peak known, in the logarithm of
// their number (as in FastSA: Imanishi et al., NeurIPS 2023). Moves are sets of steps put in, taken
// out or shifted; one that makes a schedule worse is undone unless chance says otherwise.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  int32_t steps, values;
  const int32_t *reads_at, *reads;  // reads[reads_at[s] .. reads_at[s + 1]] of step s
  const int32_t *makes_at, *makes;
  const int32_t *maker;
  const int64_t *bytes, *workspace;
  const double *seconds;
  const uint8_t *again, *kept;
} Problem;

typedef struct {
  int64_t moves;
  int64_t budget;
  uint64_t seed;
  double hot, cold;      // temperatures, in relative worth, first and last
  double stiff;          // worth of bytes over the budget
  int32_t slots;         // a power of two
} Settings;

// Where a value is made and read, by slot: twice the slot, and one more where it is made.
typedef struct {
  int32_t *at;
  int32_t count, room;
} Events;

typedef struct {
  int32_t step, slot, put;  // a step that was put into a slot, or taken out of it
} Change;

enum { BLOCKS = 64, DEPTH = 24, MOST_ADDED = 96, TRIES = 24, NEAR = 96 };
enum { MOST_WANTED = 3, MOST_EXCHANGED = 3 };
// A better schedule is noted down when it is better by so much, or the last.
static const double NOTABLE = 1e-5;

typedef struct {
  const Problem *p;
  Settings set;
  uint64_t random;
  int32_t *slot;       // the step in each, or -1
  Events *events;
  int32_t *runs;       // of each step
  int32_t *filled, *place, filled_count;  // slots that are not empty, and where each stands there
  int64_t *most, *add;
  double seconds, limit;  // those of the schedule, and the most that the move at hand may lead to
  Change *changes;     // of the move at hand
  int32_t changed, changes_room;
  int32_t added;
} State;

// --- chance --------------------------------------------------------------------------------------

static uint64_t next_random(State *s) {
  s->random ^= s->random >> 12;
  s->random ^= s->random << 25;
  s->random ^= s->random >> 27;
  return s->random * 2685821657736338717ULL;
}

static int32_t below(State *s, int32_t n) {
  return (int32_t)(((next_random(s) >> 32) * (uint64_t)n) >> 32);
}

static double uniform(State *s) {
  return (double)(next_random(s) >> 11) * (1.0 / 9007199254740992.0);
}

// --- bytes by slot -------------------------------------------------------------------------------

static void raise_to_root(State *s, int32_t node) {
  for (node >>= 1; node; node >>= 1) {
    const int64_t a = s->most[2 * node], b = s->most[2 * node + 1];
    s->most[node] = (a > b ? a : b) + s->add[node];
  }
}

static void add_bytes(State *s, int32_t first, int32_t last, int64_t bytes) {
  if (first > last || !bytes) return;
  int32_t low = first + s->set.slots, high = last + s->set.slots + 1;
  const int32_t from = low, to = high - 1;
  for (; low < high; low >>= 1, high >>= 1) {
    if (low & 1) { s->most[low] += bytes; s->add[low] += bytes; ++low; }
    if (high & 1) { --high; s->most[high] += bytes; s->add[high] += bytes; }
  }
  raise_to_root(s, from);
  raise_to_root(s, to);
}

// Most bytes of each of BLOCKS stretches of slots.
static void block_peaks(const State *s, int64_t *peaks) {
  int64_t above[2 * BLOCKS];
  above[1] = 0;
  for (int32_t node = 1; node < BLOCKS; ++node)
    above[2 * node] = above[2 * node + 1] = above[node] + s->add[node];
  for (int32_t b = 0; b < BLOCKS; ++b) peaks[b] = above[BLOCKS + b] + s->most[BLOCKS + b];
}

// The first slot with the most bytes below a node of the tree.
static int32_t peak_below(const State *s, int32_t node) {
  while (node < s->set.slots) {
    node *= 2;
    if (s->most[node + 1] > s->most[node]) ++node;
  }
  return node - s->set.slots;
}

// --- events --------------------------------------------------------------------------------------

// The place of the first event at or after a slot.
static int32_t find_event(const Events *e, int32_t slot) {
  int32_t low = 0, high = e->count;
  while (low < high) {
    const int32_t middle = (low + high) >> 1;
    if (e->at[middle] < 2 * slot) low = middle + 1; else high = middle;
  }
  return low;
}

// The make that an event at place i belongs to, or -1.
static int32_t group_of(const Events *e, int32_t i) {
  while (i >= 0 && !(e->at[i] & 1)) --i;
  return i;
}

// The last slot of the lifetime that begins with the make at place i.
static int32_t until(const Events *e, int32_t i) {
  while (i + 1 < e->count && !(e->at[i + 1] & 1)) ++i;
  return e->at[i] >> 1;
}

// Bytes of a kept value that is made at a slot besides `first`, the first other one or -1.
static void keep_bytes(State *s, int32_t slot, int32_t first, int64_t bytes) {
  const int32_t end = first < 0 ? s->set.slots - 1 : slot < first ? first : slot;
  add_bytes(s, slot, end, bytes);
}

static void put_event(State *s, int32_t v, int32_t slot, int32_t made) {
  Events *e = &s->events[v];
  if (e->count == e->room) {
    e->room = e->room ? 2 * e->room : 4;
    e->at = realloc(e->at, (size_t)e->room * sizeof *e->at);
  }
  const int32_t at = find_event(e, slot), group = group_of(e, at - 1);
  const int32_t before = group < 0 ? -1 : until(e, group);
  if (s->p->kept[v] && made) keep_bytes(s, slot, e->count ? e->at[0] >> 1 : -1, s->p->bytes[v]);
  memmove(e->at + at + 1, e->at + at, (size_t)(e->count - at) * sizeof *e->at);
  e->at[at] = 2 * slot + made;
  ++e->count;
  if (s->p->kept[v]) return;
  if (group >= 0) {
    const int32_t after = until(e, group);
    add_bytes(s, before + 1, after, s->p->bytes[v]);
    add_bytes(s, after + 1, before, -s->p->bytes[v]);
  }
  if (made) add_bytes(s, slot, until(e, at), s->p->bytes[v]);
}

static void take_event(State *s, int32_t v, int32_t slot, int32_t made) {
  Events *e = &s->events[v];
  const int32_t at = find_event(e, slot), group = group_of(e, at - made), kept = s->p->kept[v];
  const int32_t before = group < 0 ? -1 : until(e, group);
  if (made && !kept) add_bytes(s, slot, until(e, at), -s->p->bytes[v]);
  memmove(e->at + at, e->at + at + 1, (size_t)(e->count - at - 1) * sizeof *e->at);
  --e->count;
  if (kept && made) keep_bytes(s, slot, e->count ? e->at[0] >> 1 : -1, -s->p->bytes[v]);
  if (kept || group < 0) return;
  const int32_t after = until(e, group);
  add_bytes(s, before + 1, after, s->p->bytes[v]);
  add_bytes(s, after + 1, before, -s->p->bytes[v]);
}

// --- steps in slots ------------------------------------------------------------------------------

static void fill(State *s, int32_t step, int32_t slot) {
  s->slot[slot] = step;
  s->place[slot] = s->filled_count;
  s->filled[s->filled_count++] = slot;
  ++s->runs[step];
  s->seconds += s->p->seconds[step];
  add_bytes(s, slot, slot, s->p->workspace[step]);
}

static void empty(State *s, int32_t slot) {
  const int32_t step = s->slot[slot], last = s->filled[--s->filled_count];
  s->filled[s->place[slot]] = last;
  s->place[last] = s->place[slot];
  s->slot[slot] = -1;
  --s->runs[step];
  s->seconds -= s->p->seconds[step];
  add_bytes(s, slot, slot, -s->p->workspace[step]);
}

// A step into an empty slot, or out of it, with all its events.
static void touch(State *s, int32_t step, int32_t slot, int32_t put) {
  const Problem *p = s->p;
  void (*const event)(State *, int32_t, int32_t, int32_t) = put ? put_event : take_event;
  for (int32_t i = p->reads_at[step]; i < p->reads_at[step + 1]; ++i)
    event(s, p->reads[i], slot, 0);
  for (int32_t i = p->makes_at[step]; i < p->makes_at[step + 1]; ++i)
    event(s, p->makes[i], slot, 1);
  if (put) fill(s, step, slot); else empty(s, slot);
}

static void change(State *s, int32_t step, int32_t slot, int32_t put) {
  touch(s, step, slot, put);
  if (s->changed == s->changes_room) {
    s->changes_room = s->changes_room ? 2 * s->changes_room : 256;
    s->changes = realloc(s->changes, (size_t)s->changes_room * sizeof *s->changes);
  }
  s->changes[s->changed++] = (Change){step, slot, put};
}

static void put_step(State *s, int32_t step, int32_t slot) { change(s, step, slot, 1); }

static void take_step(State *s, int32_t slot) { change(s, s->slot[slot], slot, 0); }

static void begin(State *s) { s->changed = s->added = 0; }

static void undo(State *s) {
  while (s->changed) {
    const Change c = s->changes[--s->changed];
    touch(s, c.step, c.slot, !c.put);
  }
}

// --- moves ---------------------------------------------------------------------------------------

// The nearest empty slot before one, within reach, or -1.
static int32_t empty_before(const State *s, int32_t slot) {
  for (int32_t t = slot - 1; t >= 0 && t >= slot - NEAR; --t)
    if (s->slot[t] < 0) return t;
  return -1;
}

// Run what makes a value once more, in an empty slot before `slot` and after `peak`; so too what
// makes what that reads, where holding it until then would hold it over the peak.
static int again_before(State *s, int32_t value, int32_t slot, int32_t peak, double patience,
                        int depth) {
  const Problem *p = s->p;
  const int32_t step = p->maker[value];
  if (!p->again[step] || depth == DEPTH || s->added == MOST_ADDED) return 0;
  const int32_t at = empty_before(s, slot);
  if (at <= peak || s->seconds + p->seconds[step] > s->limit) return 0;
  ++s->added;
  put_step(s, step, at);
  for (int32_t i = p->reads_at[step]; i < p->reads_at[step + 1]; ++i) {
    const int32_t read = p->reads[i];
    const Events *e = &s->events[read];
    const int32_t own = find_event(e, at);
    const int32_t is_last = own + 1 == e->count || (e->at[own + 1] & 1);
    if (own == 0) return 0;
    if (!is_last || p->kept[read] || e->at[own - 1] >> 1 > peak) continue;
    if ((double)p->bytes[read] * patience <= (double)p->bytes[value] * uniform(s)) continue;
    if (!again_before(s, read, at, peak, patience, depth + 1)) return 0;
  }
  return 1;
}

// The first slot after one where a value is read that is held over that one for nobody there, or -1.
static int32_t held_for(const State *s, int32_t v, int32_t slot) {
  const Events *e = &s->events[v];
  const int32_t next = find_event(e, slot);
  if (next == 0 || next == e->count || (e->at[next] & 1) || s->p->kept[v]) return -1;
  return e->at[next] >> 1 == slot ? -1 : e->at[next] >> 1;
}

// A value that is held over a slot, the largest of a few, made anew before it is needed.
static int drop_over(State *s, int32_t peak) {
  int32_t value = -1, wanted = 1 + below(s, MOST_WANTED);
  for (int32_t n = 0; n < TRIES && wanted; ++n) {
    const int32_t v = below(s, s->p->values);
    if (!s->p->bytes[v] || held_for(s, v, peak) < 0) continue;
    if (value < 0 || s->p->bytes[v] > s->p->bytes[value]) value = v;
    --wanted;
  }
  if (value < 0) return 0;
  return again_before(s, value, held_for(s, value, peak), peak, 0.5 + 4 * uniform(s), 0);
}

// The first slot where somebody reads what the run at a slot makes and nothing else could give, or
// the number of slots.
static int32_t needed_at(const State *s, int32_t slot) {
  const Problem *p = s->p;
  const int32_t step = s->slot[slot];
  int32_t first = s->set.slots;
  for (int32_t i = p->makes_at[step]; i < p->makes_at[step + 1]; ++i) {
    const Events *e = &s->events[p->makes[i]];
    if (e->at[0] != 2 * slot + 1 || e->count == 1 || (e->at[1] & 1)) continue;
    if (e->at[1] >> 1 < first) first = e->at[1] >> 1;
  }
  return first;
}

// The first slot where all that a step reads has been made.
static int32_t ready_at(const State *s, int32_t step) {
  const Problem *p = s->p;
  int32_t ready = 0;
  for (int32_t i = p->reads_at[step]; i < p->reads_at[step + 1]; ++i) {
    const int32_t made = s->events[p->reads[i]].at[0] >> 1;
    if (made >= ready) ready = made + 1;
  }
  return ready;
}

// Take a run out that others can stand for, and what ran for it alone.
static int take_again(State *s, int32_t slot, int depth) {
  const Problem *p = s->p;
  const int32_t step = s->slot[slot];
  if (s->runs[step] < 2 || needed_at(s, slot) < s->set.slots) return 0;
  take_step(s, slot);
  for (int32_t i = p->reads_at[step]; depth < DEPTH && i < p->reads_at[step + 1]; ++i) {
    const Events *e = &s->events[p->reads[i]];
    const int32_t group = group_of(e, find_event(e, slot) - 1);
    if (group < 0 || (group + 1 < e->count && !(e->at[group + 1] & 1))) continue;
    const int32_t maker = p->maker[p->reads[i]], made = e->at[group] >> 1;
    int32_t used = p->kept[p->reads[i]];
    for (int32_t j = p->makes_at[maker]; j < p->makes_at[maker + 1]; ++j) {
      const Events *o = &s->events[p->makes[j]];
      const int32_t at = find_event(o, made);
      used |= !p->kept[p->makes[j]] && at + 1 < o->count && !(o->at[at + 1] & 1);
    }
    if (!used) take_again(s, made, depth + 1);
  }
  return 1;
}

static int take_some(State *s) {
  for (int32_t n = 0; n < TRIES; ++n) {
    const int32_t slot = s->filled[below(s, s->filled_count)];
    if (s->runs[s->slot[slot]] > 1) return take_again(s, slot, 0);
  }
  return 0;
}

// Take a run out, and make anew what is then too much.
static int exchange_some(State *s) {
  if (!take_some(s)) return 0;
  for (int32_t n = 0; n < MOST_EXCHANGED && s->most[1] > s->set.budget; ++n)
    if (!drop_over(s, peak_below(s, 1))) return 0;
  return 1;
}

static int add_some(State *s) {
  const int32_t step = s->slot[s->filled[below(s, s->filled_count)]], slot = below(s, s->set.slots);
  if (!s->p->again[step] || s->slot[slot] >= 0 || slot < ready_at(s, step)) return 0;
  if (s->seconds + s->p->seconds[step] > s->limit) return 0;
  put_step(s, step, slot);
  return 1;
}

static int shift_some(State *s) {
  const int32_t slot = s->filled[below(s, s->filled_count)], step = s->slot[slot];
  const double reach = exp(uniform(s) * log((double)s->set.slots));
  const int32_t far = (int32_t)reach, to = slot + (next_random(s) >> 63 ? far : -far);
  if (to < 0 || to >= s->set.slots || s->slot[to] >= 0) return 0;
  if (to < ready_at(s, step) || to >= needed_at(s, slot)) return 0;
  take_step(s, slot);
  put_step(s, step, to);
  return 1;
}

static double worth(const State *s) {
  const double budget = (double)s->set.budget;
  const double over = (double)s->most[1] - budget;
  double found = log(s->seconds);
  if (over <= 0) return found;
  int64_t peaks[BLOCKS];
  block_peaks(s, peaks);
  double sum = 0;
  for (int32_t b = 0; b < BLOCKS; ++b)
    if (peaks[b] > s->set.budget) sum += ((double)peaks[b] - budget) / budget;
  return found + s->set.stiff * (over / budget + sum / BLOCKS);
}

// A slot where there is too much: the worst, or the worst of a stretch.
static int32_t some_peak(State *s) {
  if (next_random(s) >> 63) return peak_below(s, 1);
  int64_t peaks[BLOCKS];
  block_peaks(s, peaks);
  const int32_t b = below(s, BLOCKS);
  return peaks[b] > s->set.budget ? peak_below(s, BLOCKS + b) : peak_below(s, 1);
}

static int some_move(State *s) {
  const double which = uniform(s);
  begin(s);
  if (which < 0.25) return drop_over(s, some_peak(s));
  if (which < 0.40) return take_some(s);
  if (which < 0.65) return exchange_some(s);
  if (which < 0.95) return shift_some(s);
  return add_some(s);
}

static void start(State *s, const int32_t *order, int32_t count) {
  const double apart = (double)s->set.slots / (count + 1);
  for (int32_t t = 0; t < s->set.slots; ++t) s->slot[t] = -1;
  for (int32_t i = 0; i < count; ++i) {
    begin(s);
    put_step(s, order[i], (int32_t)((i + 1) * apart));
  }
}

static int32_t finish(const State *s, int32_t *order) {
  int32_t count = 0;
  for (int32_t t = 0; t < s->set.slots; ++t)
    if (s->slot[t] >= 0) order[count++] = s->slot[t];
  return count;
}

static State allocated(const Problem *problem, const Settings *settings) {
  const size_t slots = (size_t)settings->slots;
  State s = {.p = problem, .set = *settings, .random = settings->seed * 2 + 1};
  s.slot = malloc(slots * sizeof *s.slot);
  s.place = malloc(slots * sizeof *s.place);
  s.filled = malloc(slots * sizeof *s.filled);
  s.events = calloc((size_t)problem->values + 1, sizeof *s.events);
  s.runs = calloc((size_t)problem->steps + 1, sizeof *s.runs);
  s.most = calloc(2 * slots, sizeof *s.most);
  s.add = calloc(2 * slots, sizeof *s.add);
  return s;
}

static void release(State *s) {
  for (int32_t v = 0; v < s->p->values; ++v) free(s->events[v].at);
  free(s->slot), free(s->place), free(s->filled), free(s->events), free(s->runs);
  free(s->most), free(s->add), free(s->changes);
}

static int fits(const State *s) { return s->most[1] <= s->set.budget; }

// Anneal an order of `count` runs; `best` has room for as many as there are slots. Returns the
// number of runs in the best order found: of those within the budget, if there are any.
int32_t rw_anneal(const Problem *problem, const Settings *settings, const int32_t *order,
                  int32_t count, int32_t *best) {
  State s = allocated(problem, settings);
  start(&s, order, count);
  memcpy(best, order, (size_t)count * sizeof *best);
  int32_t best_count = count, best_fits = fits(&s);
  double now = worth(&s), least = now;
  const double cooling = log(s.set.cold / s.set.hot);
  for (int64_t n = 0; n < s.set.moves; ++n) {
    const double heat = s.set.hot * exp(cooling * (double)n / (double)s.set.moves);
    const double limit = now - heat * log(uniform(&s) + 1e-300);
    s.limit = exp(limit);
    if (!some_move(&s)) { undo(&s); continue; }
    const double then = worth(&s);
    if (then > limit) { undo(&s); continue; }
    now = then;
    if (fits(&s) > best_fits || (fits(&s) == best_fits && now < least - NOTABLE)) {
      least = now;
      best_fits = fits(&s);
      best_count = finish(&s, best);
    }
  }
  if (fits(&s) >= best_fits && now < least) best_count = finish(&s, best);
  release(&s);
  return best_count;
}
