// CUDA's execution model on one CPU thread: every thread of a block is a coroutine, which gives way
// to the others wherever threads wait for each other. Blocks run one after the other.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

struct Thread {
  ucontext_t context;
  std::vector<char> stack;
  Index at;
  bool done = false;
};

static ucontext_t scheduler;
static std::vector<Thread> threads;
static std::vector<unsigned long> slots;
static int current, alive, arrived, generation;
static const std::function<void()>* body;

static void give_way() { swapcontext(&threads[current].context, &scheduler); }

static void release() {
  arrived = 0;
  ++generation;
}

static void enter() {
  (*body)();
  threads[current].done = true;
  --alive;
  if (alive > 0 && arrived == alive) release();  // the others wait for nobody else
}

static void run_block(const std::function<void()>& kernel) {
  const int count = blockDim.x * blockDim.y;
  threads.resize(count);
  slots.assign(count, 0);
  body = &kernel;
  alive = count, arrived = 0;
  for (int t = 0; t < count; ++t) {
    Thread& thread = threads[t];
    thread.stack.resize(1 << 16);
    thread.done = false;
    thread.at = {t % blockDim.x, t / blockDim.x, 0};
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = &scheduler;
    makecontext(&thread.context, enter, 0);
  }
  while (alive > 0) {
    for (current = 0; current < count; ++current) {
      if (threads[current].done) continue;
      threadIdx = threads[current].at;
      swapcontext(&scheduler, &threads[current].context);
    }
  }
}

static void launch(unsigned blocks, unsigned x, unsigned y, const std::function<void()>& kernel) {
  blockDim = {x, y, 1}, gridDim = {blocks, 1, 1};
  for (unsigned block = 0; block < blocks; ++block) {
    blockIdx = {block, 0, 0};
    run_block(kernel);
  }
}

}  // namespace shim

static void __syncthreads() {
  const int mine = shim::generation;
  if (++shim::arrived == shim::alive) {
    shim::release();
    return;
  }
  while (shim::generation == mine) shim::give_way();
}

// Lanes of a warp run in step: all have written before any reads, and read before any writes again.
template <class T> static T __shfl_xor_sync(unsigned, T x, int step) {
  const int own = threadIdx.y * blockDim.x + threadIdx.x;
  std::memcpy(&shim::slots[own], &x, sizeof(T));
  shim::give_way();
  T other;
  std::memcpy(&other, &shim::slots[own ^ step], sizeof(T));
  shim::give_way();
  return other;
}

static inline double rsqrt(double x) { return 1 / std::sqrt(x); }
static inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

// Giles' approximation, then two steps of Newton's.
static inline double erfinv(double y) {
  if (!(std::abs(y) < 1)) return y == 1 ? INFINITY : y == -1 ? -INFINITY : NAN;
  const double w = -std::log((1 - y) * (1 + y)), s = std::sqrt(w) - 3;
  double x = y * (w < 5 ? 1.5014 + 0.2466 * (w - 2.5) : 2.8330 + 1.0016 * s);
  for (int step = 0; step < 6; ++step) {
    // Near 1 all digits are in what is missing.
    const double over = y > 0.5    ? (1 - y) - std::erfc(x)
                        : y < -0.5 ? std::erfc(-x) - (1 + y)
                                   : std::erf(x) - y;
    x -= over * 0.88622692545275801 * std::exp(x * x);
  }
  return x;
}
static inline float erfinvf(float y) { return float(erfinv(double(y))); }
