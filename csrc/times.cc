#include "times.h"

#include <atomic>
#include <chrono>
#include <mutex>
#include <new>

namespace jax_nano {
namespace {

std::atomic<bool> counting{false};

struct Table {
  std::mutex mutex;
  std::unordered_map<uint64_t, Times> times;
};

// Never destroyed: kernels may run while the process ends.
Table& Counted() {
  static auto* table = new Table;
  return *table;
}

int64_t Now() {
  auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

}  // namespace

void CountTimes(bool wanted) {
  Table& table = Counted();
  std::lock_guard lock(table.mutex);
  if (wanted) table.times.clear();
  counting.store(wanted, std::memory_order_relaxed);
}

std::unordered_map<uint64_t, Times> CountedTimes() {
  Table& table = Counted();
  std::lock_guard lock(table.mutex);
  return table.times;
}

CountedRun::CountedRun(uint64_t key) : key_(key), start_(counting.load(std::memory_order_relaxed) ? Now() : -1) {}

CountedRun::~CountedRun() {
  if (start_ < 0) return;
  int64_t nanoseconds = Now() - start_;
  Table& table = Counted();
  std::lock_guard lock(table.mutex);
  try {
    Times& times = table.times[key_];
    ++times.runs;
    times.nanoseconds += nanoseconds;
  } catch (const std::bad_alloc&) {  // a count is not worth an error
  }
}

}  // namespace jax_nano
