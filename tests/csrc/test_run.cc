// Run with kernels of instrumented C++, so that the sanitizers see what tasks read and write.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <new>
#include <numeric>
#include <thread>
#include <vector>

#include "check.h"
#include "limits.h"
#include "pool.h"
#include "run.h"
#include "scratch.h"

namespace jax_nano::test {
namespace {

constexpr int64_t kParts = 6, kRounds = 5, kMiB = 1 << 20;
constexpr int64_t kOwn = 1024;  // elements of each thread's own scratch; enough work for helpers to arrive

// Writes part `task` of the scratch that all share, by way of the thread's own.
void Produce(int64_t round, int64_t task, void* shared, void* local, void* const*) {
  auto* own = static_cast<int64_t*>(local);
  std::fill_n(own, kOwn, task);
  static_cast<int64_t*>(shared)[task] = round + std::accumulate(own, own + kOwn, int64_t{0});
}

int64_t Produced(int64_t round) { return kParts * round + kOwn * kParts * (kParts - 1) / 2; }

// Reads all parts: those that the phase before wrote, in this round.
void Consume(int64_t round, int64_t task, void* shared, void*, void* const* buffers) {
  int64_t sum = 0;
  for (int64_t part = 0; part < kParts; ++part) sum += static_cast<int64_t*>(shared)[part];
  static_cast<int64_t*>(buffers[0])[task] += sum + round;
}

// A lone task between the phases of others.
void Count(int64_t, int64_t, void*, void*, void* const* buffers) { ++static_cast<int64_t*>(buffers[1])[0]; }

struct Step {
  Entry entry;
  int64_t tasks;
};

Kernel Make(const std::vector<Step>& steps, int64_t rounds, int64_t local_bytes = kOwn * 8) {
  Kernel kernel{.description = {}, .entries = {}, .object = ""};
  for (Step step : steps) {
    kernel.entries.push_back(step.entry);
    kernel.description.phases.push_back({"", step.tasks});
  }
  kernel.description.rounds = rounds;
  kernel.description.shared_bytes = kParts * static_cast<int64_t>(sizeof(int64_t));
  kernel.description.local_bytes = local_bytes;
  return kernel;
}

Kernel Pipeline(int64_t rounds, int64_t local_bytes = kOwn * 8) {
  return Make({{Produce, kParts}, {Count, 1}, {Consume, 11}}, rounds, local_bytes);
}

// What Pipeline writes. Freed at once after Run, so that AddressSanitizer sees a helper that comes too late.
class Results {
 public:
  bool Run(const Kernel& kernel, int64_t threads, const Schedule& schedule) {
    void* buffers[] = {sums_.data(), count_.data()};
    return jax_nano::Run(kernel, buffers, threads, schedule);
  }

  bool AreThoseOf(int64_t rounds) const {
    int64_t want = 0;
    for (int64_t round = 0; round < rounds; ++round) want += Produced(round) + round;
    for (int64_t sum : sums_)
      if (sum != want) return false;
    return count_[0] == rounds;
  }

 private:
  std::vector<int64_t> sums_ = std::vector<int64_t>(11), count_ = std::vector<int64_t>(1);
};

bool Runs(int64_t rounds, int64_t threads, const Schedule& schedule) {
  Results results;
  return results.Run(Pipeline(rounds), threads, schedule) && results.AreThoseOf(rounds);
}

Schedule To(Pool& pool) {
  return [&pool](std::function<void()> work) { pool.Schedule(std::move(work)); };
}

TEST(phases_and_rounds_follow_one_another_on_any_number_of_threads) {
  for (int64_t threads = 1; threads <= 8; ++threads) {
    Pool pool(threads);
    for (int64_t rounds : {int64_t{0}, int64_t{1}, kRounds})
      for (int i = 0; i < 20; ++i) EXPECT(Runs(rounds, threads, To(pool)));
  }
}

TEST(a_kernel_without_phases_has_nothing_to_do) {
  Pool pool(2);
  int64_t before = ExecutedKernels();
  EXPECT(Run(Make({}, kRounds), nullptr, 8, To(pool)));
  EXPECT(ExecutedKernels() == before + 1);
}

TEST(no_thread_counts_as_the_callers) {
  auto never = [](std::function<void()>) { EXPECT(!"scheduled"); };
  EXPECT(Runs(kRounds, 0, never));
  EXPECT(Runs(kRounds, 1, never));
}

TEST(more_threads_are_asked_for_than_the_pool_has) {
  Pool pool(1);
  for (int i = 0; i < 20; ++i) EXPECT(Runs(kRounds, 64, To(pool)));
}

// With tasks enough for more, so that only the limit counts.
TEST(no_kernel_runs_on_more_threads_than_the_limit) {
  for (int64_t limit : {1, 2, 4, 0}) {
    LimitThreads(limit);
    int64_t scheduled = 0;
    EXPECT(Runs(kRounds, 8, [&scheduled](std::function<void()>) { ++scheduled; }));
    EXPECT(scheduled == (limit ? limit - 1 : 7));
  }
}

std::atomic<int> at_work{0}, most_at_work{0};

void Work(int64_t, int64_t, void*, void*, void* const*) {
  int now = ++at_work;
  for (int most = most_at_work; most < now && !most_at_work.compare_exchange_weak(most, now);) {
  }
  std::this_thread::sleep_for(std::chrono::microseconds(20));
  --at_work;
}

// As those of several devices.
TEST(all_executions_together_run_on_no_more_threads_than_the_limit) {
  for (int limit : {1, 2, 3}) {
    LimitThreads(limit);
    most_at_work = 0;
    Pool pool(4);
    Kernel kernel = Make({{Work, 12}, {Work, 1}, {Work, 5}}, kRounds);
    AtOnce(6, [&](int) {
      for (int i = 0; i < 5; ++i) EXPECT(Run(kernel, nullptr, 4, To(pool)));
    });
    EXPECT(most_at_work <= limit);
  }
  LimitThreads(0);
}

TEST(who_waits_goes_on_when_the_limit_is_raised_or_gone) {
  LimitThreads(1);
  Pool pool(4);
  Kernel kernel = Make({{Work, 12}}, kRounds);
  AtOnce(6, [&](int i) {
    LimitThreads(i % 3);
    EXPECT(Run(kernel, nullptr, 4, To(pool)));
  });
  LimitThreads(0);
}

TEST(many_executions_share_a_pool) {
  Pool pool(4);
  Kernel kernel = Pipeline(kRounds);
  AtOnce(6, [&](int) {
    for (int i = 0; i < 50; ++i) {
      Results results;
      EXPECT(results.Run(kernel, 4, To(pool)));
      EXPECT(results.AreThoseOf(kRounds));
    }
  });
}

// XLA's pool may do that, where it has no thread to spare.
TEST(helpers_may_run_on_the_callers_thread) {
  EXPECT(Runs(kRounds, 8, [](std::function<void()> work) { work(); }));
}

TEST(helpers_may_never_come) {
  EXPECT(Runs(kRounds, 8, [](std::function<void()>) {}));
}

TEST(helpers_that_come_late_touch_nothing) {
  std::vector<std::function<void()>> late;
  EXPECT(Runs(kRounds, 8, [&](std::function<void()> work) { late.push_back(std::move(work)); }));
  Pool pool(4);
  for (auto& work : late) pool.Schedule(std::move(work));
}

TEST(helpers_that_come_at_any_time) {
  Pool pool(4);
  for (int i = 0; i < 200; ++i) {
    auto delayed = [&pool, i](std::function<void()> work) {
      pool.Schedule([work = std::move(work), i] {
        std::this_thread::sleep_for(std::chrono::microseconds(i));
        work();
      });
    };
    EXPECT(Runs(kRounds, 4, delayed));
  }
}

TEST(a_pool_out_of_memory_costs_helpers_only) {
  Pool pool(4);
  for (int successes = 0; successes < 8; ++successes) {
    auto schedule = [&pool, left = successes](std::function<void()> work) mutable {
      if (left-- == 0) throw std::bad_alloc();
      pool.Schedule(std::move(work));
    };
    EXPECT(Runs(kRounds, 8, schedule));
  }
}

TEST(any_allocation_of_run_may_fail) {
  Pool pool(4);
  Kernel kernel = Pipeline(kRounds);
  auto schedule = [&pool](std::function<void()> work) {
    WorkingNew ours;
    pool.Schedule(std::move(work));
  };
  bool failed = true;
  for (int64_t successes = 0; failed; ++successes) {
    Results results;
    FailingNew failing(successes);
    try {
      if (results.Run(kernel, 4, schedule)) EXPECT(results.AreThoseOf(kRounds));
    } catch (const std::bad_alloc&) {
      EXPECT(results.AreThoseOf(0));
    }
    failed = failing.failed();
  }
}

TEST(without_memory_for_scratch_nothing_runs) {
  Pool pool(4);
  EXPECT(Runs(kRounds, 1, To(pool)));
  int64_t before = ExecutedKernels(), held = GetScratchUse().held;
  Results results;
  EXPECT(!results.Run(Pipeline(kRounds, /*local_bytes=*/int64_t{1} << 62), 4, To(pool)));
  EXPECT(results.AreThoseOf(0));
  EXPECT(ExecutedKernels() == before);
  EXPECT(GetScratchUse().held == held);
}

TEST(helpers_without_memory_for_scratch_leave_the_tasks_to_others) {
  Pool pool(4);
  AddressSpaceLimit limit(400 * kMiB);
  Results results;
  EXPECT(results.Run(Pipeline(kRounds, /*local_bytes=*/300 * kMiB), 4, To(pool)));
  EXPECT(results.AreThoseOf(kRounds));
}

// The processors that this thread may run on, while it lives; then, those of before.
class Processors {
 public:
  Processors() { sched_getaffinity(0, sizeof before_, &before_); }
  Processors(const Processors&) = delete;
  Processors& operator=(const Processors&) = delete;
  ~Processors() { sched_setaffinity(0, sizeof before_, &before_); }

  const cpu_set_t& before() const { return before_; }

  static void Pin(int cpu) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
  }

 private:
  cpu_set_t before_;
};

std::atomic<int> arrived{0};
thread_local bool is_helper = false;
std::atomic<int> cpu_of_helper{-1};

// Each of two tasks waits for the other, so each has a thread of its own.
void Meet(int64_t, int64_t, void*, void*, void* const*) {
  if (is_helper) cpu_of_helper = sched_getcpu();
  ++arrived;
  while (arrived < 2) std::this_thread::yield();
}

TEST(a_helper_that_begins_on_its_callers_processor_moves_to_another) {
  Processors here;
  if (CPU_COUNT(&here.before()) < 2) return;
  int cpu = sched_getcpu();
  Processors::Pin(cpu);
  std::thread helper;
  cpu_set_t after;
  bool ran = Run(Make({{Meet, 2}}, 1), nullptr, 2, [&](std::function<void()> work) {
    helper = std::thread([&, work = std::move(work)] {
      is_helper = true;
      Processors::Pin(cpu);
      sched_setaffinity(0, sizeof here.before(), &here.before());
      work();
      sched_getaffinity(0, sizeof after, &after);
    });
  });
  helper.join();
  EXPECT(ran);
  EXPECT(cpu_of_helper != cpu);
  EXPECT(CPU_EQUAL(&after, &here.before()));
}

TEST(a_helper_stays_where_it_may_run_on_one_processor_only) {
  Processors here;
  Processors::Pin(sched_getcpu());
  Pool pool(1);
  EXPECT(Runs(kRounds, 2, To(pool)));
}

}  // namespace
}  // namespace jax_nano::test
