#include "run.h"

#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <new>
#include <thread>

#include "scratch.h"

namespace jax_nano {
namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

std::atomic<int64_t> executed{0};
std::atomic<int64_t> most_threads{kUnlimited};
std::atomic<int> computing{0};  // threads that compute now, of all executions

// A seat among the threads that compute, held while it lives. Who holds one waits for no other, so each becomes free.
class Seat {
 public:
  // Of an execution's own thread: waits until there is one.
  struct Wait {};
  explicit Seat(Wait) {
    for (int now; !Take(now);) computing.wait(now, std::memory_order_relaxed);
    held_ = true;
  }
  // Of a helper: `held` says whether there was one.
  Seat() {
    int now;
    held_ = Take(now);
  }
  Seat(const Seat&) = delete;
  Seat& operator=(const Seat&) = delete;
  ~Seat() {
    if (!held_) return;
    computing.fetch_sub(1, std::memory_order_release);
    computing.notify_one();
  }

  bool held() const { return held_; }

 private:
  // Takes one unless as many as there may be compute; `now` is how many did.
  static bool Take(int& now) {
    now = computing.load(std::memory_order_relaxed);
    while (now < most_threads.load(std::memory_order_relaxed))
      if (computing.compare_exchange_weak(now, now + 1, std::memory_order_acquire)) return true;
    return false;
  }

  bool held_;
};

void RunAlone(const Kernel& kernel, void* const* buffers, void* shared, void* local) {
  const Description& description = kernel.description;
  for (int64_t round = 0; round < description.rounds; ++round)
    for (size_t phase = 0; phase < kernel.entries.size(); ++phase)
      for (int64_t task = 0; task < description.phases[phase].tasks; ++task)
        kernel.entries[phase](round, task, shared, local, buffers);
}

// Moves this thread to another processor than `cpu`, where it may run on others. Where all look busy, if only with
// threads about to sleep, Linux wakes a thread beside the one that wakes it, and may let a processor idle for
// milliseconds before it moves either there.
void Leave(int cpu) {
  cpu_set_t allowed, others;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  others = allowed;
  CPU_CLR(cpu, &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return;
  cpu_set_t now;  // another, where somebody else has changed it meanwhile: then it stays
  if (sched_getaffinity(0, sizeof now, &now) != 0 || CPU_EQUAL(&now, &others))
    sched_setaffinity(0, sizeof allowed, &allowed);
}

// One execution on several threads. Tasks of all rounds and phases are numbered in order; threads take the next number.
// A task starts when all tasks of earlier phases are done: they have been begun, as numbers are taken in order, so a
// thread never waits for work that is still queued.
class Execution {
 public:
  Execution(const Kernel& kernel, void* const* buffers, void* shared)
      : kernel_(kernel), buffers_(buffers), shared_(shared), local_bytes_(kernel.description.local_bytes) {
    for (const Phase& phase : kernel.description.phases) per_round_ += phase.tasks;
    total_ = per_round_ * kernel.description.rounds;
  }

  // Takes tasks until none is left. A helper that comes late finds none, and touches nothing of the caller's.
  void Work(void* local) {
    for (int64_t number; (number = next_.fetch_add(1, std::memory_order_relaxed)) < total_;) {
      int64_t round = number / per_round_, first = round * per_round_, task = number - first;
      size_t phase = 0;
      for (; task >= kernel_.description.phases[phase].tasks; ++phase) task -= kernel_.description.phases[phase].tasks;
      Await(number - task);
      kernel_.entries[phase](round, task, shared_, local, buffers_);
      done_.fetch_add(1, std::memory_order_release);
    }
  }

  // Takes part with scratch of its own; without memory for it, or where threads enough compute, leaves the tasks to the
  // others. The caller may return at any time before a task is taken, so until then only members are read.
  void Help() {
    if (next_.load(std::memory_order_relaxed) >= total_) return;
    Seat seat;
    if (!seat.held()) return;
    if (sched_getcpu() == caller_cpu_) Leave(caller_cpu_);
    Scratch local(static_cast<size_t>(local_bytes_));
    if (local.ok()) Work(local.data());
  }

  void AwaitAll() const { Await(total_); }

 private:
  void Await(int64_t tasks) const {
    for (int spins = 0; done_.load(std::memory_order_acquire) < tasks; ++spins) {
      if (spins < 2000) {
        _mm_pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

  const Kernel& kernel_;
  void* const* buffers_;
  void* shared_;
  int64_t local_bytes_;
  int caller_cpu_ = sched_getcpu();
  int64_t per_round_ = 0;
  int64_t total_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int64_t> done_{0};
};

}  // namespace

void LimitThreads(int64_t threads) {
  most_threads.store(threads < 1 ? kUnlimited : threads, std::memory_order_relaxed);
}

bool Run(const Kernel& kernel, void* const* buffers, int64_t threads, const Schedule& schedule) {
  const Description& description = kernel.description;
  Seat seat(Seat::Wait{});
  Scratch shared(static_cast<size_t>(description.shared_bytes));
  Scratch local(static_cast<size_t>(description.local_bytes));
  if (!shared.ok() || !local.ok()) return false;
  executed.fetch_add(1, std::memory_order_relaxed);

  int64_t most = 0;
  for (const Phase& phase : description.phases) most = std::max(most, phase.tasks);
  int64_t helpers = std::min({threads, most, most_threads.load(std::memory_order_relaxed)}) - 1;
  if (helpers <= 0) {
    RunAlone(kernel, buffers, shared.data(), local.data());
    return true;
  }
  auto execution = std::make_shared<Execution>(kernel, buffers, shared.data());
  try {
    for (int64_t i = 0; i < helpers; ++i) schedule([execution] { execution->Help(); });
  } catch (const std::bad_alloc&) {
    // Helpers that were found use this call's memory, so it goes on with those, or alone.
  }
  execution->Work(local.data());
  execution->AwaitAll();
  return true;
}

int64_t ExecutedKernels() { return executed.load(std::memory_order_relaxed); }

}  // namespace jax_nano
