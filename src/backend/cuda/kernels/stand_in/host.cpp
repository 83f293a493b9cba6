// The stand-in's engine, and the kernels: one shared object, made by
//   g++ -std=c++17 -O2 -ffp-contract=off -fPIC -shared -pthread host.cpp -o ...
#include "cuda.hpp"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

extern "C" unsigned char __start_stand_in_shared[], __stop_stand_in_shared[];

namespace {
constexpr size_t STACK = 128 << 10;
constexpr unsigned MOST_THREADS = 1024;

struct Copy {
  void *to;
  const void *from;
  size_t bytes, filled;
};

#if defined(__x86_64__)
using Context = void *;
extern "C" void stand_in_switch(void **from, void *to);
asm(R"(
.text
.globl stand_in_switch
.type stand_in_switch, @function
stand_in_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size stand_in_switch, .-stand_in_switch
)");
void switch_to(Context &from, Context &to) { stand_in_switch(&from, to); }
void start(Context &context, unsigned char *stack, size_t size, void (*entry)()) {
  void **top = reinterpret_cast<void **>(stack + size);
  *--top = nullptr; // keeps the stack as it is after a call
  *--top = reinterpret_cast<void *>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  context = top;
}
#else
using Context = ucontext_t;
void switch_to(Context &from, Context &to) { swapcontext(&from, &to); }
void start(Context &context, unsigned char *stack, size_t size, void (*entry)()) {
  getcontext(&context);
  context.uc_stack = {stack, 0, size};
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

enum class Wait { NO, BLOCK, WARP, ENDED };

struct Thread {
  Context context;
  uint3 index;
  Wait wait;
  std::vector<std::vector<Copy>> copies;
};

struct Warp {
  // Two generations: who is quick may post anew while others still read.
  unsigned char posts[2][32][stand_in::POST];
  unsigned generation, arrived;
  int operation;
};

struct Engine {
  std::vector<Thread> threads = std::vector<Thread>(MOST_THREADS);
  std::vector<Warp> warps = std::vector<Warp>(MOST_THREADS / 32);
  std::vector<unsigned> ready; // threads that may run
  std::vector<unsigned char> shared;
  unsigned char *stacks;
  Context scheduler;
  unsigned current, count, live, at_barrier;
  uint64_t random;
  bool shuffles;
  void (*call)(const void *);
  const void *params;
  std::string fault;

  Engine() {
    void *memory = mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    stacks = static_cast<unsigned char *>(memory);
    // Who runs over his stack is stopped.
    for (unsigned t = 0; t < MOST_THREADS; ++t) mprotect(stacks + t * STACK, 4096, PROT_NONE);
  }

  unsigned below(size_t bound) {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    return static_cast<unsigned>((random >> 16) % bound);
  }

  void leave() {
    Thread &thread = threads[current];
    const unsigned me = current;
    switch_to(thread.context, scheduler);
    current = me;
    threadIdx = thread.index;
  }

  void fail(const char *what) {
    if (fault.empty()) {
      char text[200];
      std::snprintf(text, sizeof text, "%s (block %u, %u; thread %u)", what, blockIdx.x, blockIdx.y, current);
      fault = text;
    }
  }

  // A faulty thread never runs again; the launch ends when nobody can.
  void stop(const char *what) {
    fail(what);
    threads[current].wait = Wait::BLOCK;
    for (;;) leave();
  }

  void run_block() {
    for (unsigned char *byte = __start_stand_in_shared; byte != __stop_stand_in_shared; ++byte) *byte = 0xff;
    std::fill(shared.begin(), shared.end(), 0xff);
    live = count;
    at_barrier = 0;
    ready.clear();
    for (unsigned t = 0; t < count; ++t) {
      Thread &thread = threads[t];
      thread.index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
      thread.wait = Wait::NO;
      thread.copies.assign(1, {});
      // Stacks that end alike would all want the same lines of the cache.
      start(thread.context, stacks + t * STACK, STACK - t % 64 * 320, entry);
      ready.push_back(t);
    }
    for (unsigned w = 0; w < count / 32; ++w) warps[w].generation = warps[w].arrived = 0;
    while (!ready.empty() && fault.empty()) {
      const size_t next = shuffles ? below(ready.size()) : ready.size() - 1;
      current = ready[next];
      ready[next] = ready.back();
      ready.pop_back();
      threadIdx = threads[current].index;
      switch_to(scheduler, threads[current].context);
    }
    if (live > 0) fail("threads wait for others that never come");
  }

  void wake(unsigned thread) {
    threads[thread].wait = Wait::NO;
    ready.push_back(thread);
  }

  static void entry();
};

Engine &engine() {
  static Engine *one = new Engine;
  return *one;
}

void Engine::entry() {
  Engine &e = engine();
  e.call(e.params);
  Thread &thread = e.threads[e.current];
  thread.wait = Wait::ENDED;
  --e.live;
  for (const auto &group : thread.copies) {
    if (!group.empty()) e.fail("a thread ended before its copies arrived");
  }
  // A barrier that some have reached and others have ended before is a mistake, and found as such when nobody is left to run.
  switch_to(thread.context, e.scheduler);
}
} // namespace

namespace stand_in {
int lane() { return static_cast<int>(engine().current % 32); }

unsigned char *dynamic_shared() { return engine().shared.data(); }

void yield() {
  Engine &e = engine();
  if (e.shuffles && e.below(4) == 0) {
    e.ready.push_back(e.current);
    e.leave();
  }
}

void barrier() {
  Engine &e = engine();
  if (++e.at_barrier == e.count) {
    e.at_barrier = 0;
    for (unsigned t = 0; t < e.count; ++t) {
      if (t != e.current) e.wake(t);
    }
    // Being the last to arrive is no reason to be the first to go on.
    e.ready.push_back(e.current);
    return e.leave();
  }
  e.threads[e.current].wait = Wait::BLOCK;
  e.leave();
}

const unsigned char *post(int operation, const void *data, size_t bytes) {
  Engine &e = engine();
  const unsigned me = e.current, first = me / 32 * 32;
  Warp &warp = e.warps[me / 32];
  auto &posts = warp.posts[warp.generation % 2];
  if (bytes > 0) std::memcpy(posts[me % 32], data, bytes);
  if (warp.arrived > 0 && warp.operation != operation) e.stop("the lanes of a warp meet in different operations");
  warp.operation = operation;
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    ++warp.generation;
    for (unsigned t = first; t < first + 32; ++t) {
      if (t != me) e.wake(t);
    }
    if (e.shuffles) {
      e.ready.push_back(me);
      e.leave();
    }
  } else {
    e.threads[me].wait = Wait::WARP;
    e.leave();
  }
  return &posts[0][0];
}

void copy_later(void *to, const void *from, size_t bytes, size_t filled) {
  Engine &e = engine();
  // Until it is waited for, what is there is garbage.
  std::memset(to, 0xff, bytes);
  e.threads[e.current].copies.back().push_back({to, from, bytes, filled});
}

void commit_copies() {
  Engine &e = engine();
  e.threads[e.current].copies.emplace_back();
}

void await_copies(int groups_left) {
  auto &copies = engine().threads[engine().current].copies;
  // The last group is still open.
  while (static_cast<int>(copies.size()) - 1 > groups_left) {
    for (const Copy &copy : copies.front()) {
      std::memcpy(copy.to, copy.from, copy.filled);
      std::memset(static_cast<unsigned char *>(copy.to) + copy.filled, 0, copy.bytes - copy.filled);
    }
    copies.erase(copies.begin());
  }
}
} // namespace stand_in

#ifndef STAND_IN_KERNELS
#define STAND_IN_KERNELS "../all.cu"
#endif
#include STAND_IN_KERNELS

namespace {
struct Entry {
  const char *symbol;
  size_t size;
  void (*call)(const void *);
};
#define ENTRY(name, Params) {"sae_" #name, sizeof(Params), [](const void *p) { sae_##name(*static_cast<const Params *>(p)); }},
const Entry ENTRIES[] = {KERNELS(ENTRY)};
} // namespace

// Runs a kernel to its end. 0, or what went wrong: 1 no such kernel, 2 not its parameters, 3 not a block, 4 a fault of the
// kernel's, told in `message`.
extern "C" int stand_in_launch(const char *symbol, const unsigned *grid, const unsigned *block, size_t shared, const void *params,
                               size_t size, uint64_t seed, char *message, size_t room) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> guard(mutex);
  for (const Entry &entry : ENTRIES) {
    if (std::strcmp(entry.symbol, symbol) != 0) continue;
    if (entry.size != size) return 2;
    Engine &e = engine();
    e.count = block[0] * block[1] * block[2];
    if (e.count == 0 || e.count > MOST_THREADS || e.count % 32 != 0) return 3;
    e.call = entry.call;
    e.params = params;
    e.shuffles = seed != 0;
    e.random = seed * 0x9e3779b97f4a7c15 + 1;
    e.fault.clear();
    e.shared.resize(shared + 16);
    blockDim = {block[0], block[1], block[2]};
    gridDim = {grid[0], grid[1], grid[2]};
    const size_t blocks = size_t(grid[0]) * grid[1] * grid[2];
    std::vector<size_t> order(blocks);
    for (size_t i = 0; i < blocks; ++i) {
      order[i] = i;
      if (e.shuffles) std::swap(order[i], order[e.below(i + 1)]);
    }
    for (size_t i : order) {
      blockIdx = {unsigned(i % grid[0]), unsigned(i / grid[0] % grid[1]), unsigned(i / grid[0] / grid[1])};
      e.run_block();
      if (!e.fault.empty()) {
        std::snprintf(message, room, "%s: %s", symbol, e.fault.c_str());
        return 4;
      }
    }
    return 0;
  }
  return 1;
}

// The kernels' names, one after another, then null.
extern "C" const char *stand_in_symbol(size_t i) { return i < sizeof ENTRIES / sizeof *ENTRIES ? ENTRIES[i].symbol : nullptr; }
