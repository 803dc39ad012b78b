// How often kernels run and how long, while that is counted: for `python -m jax_nano doctor`.
#pragma once

#include <cstdint>
#include <unordered_map>

namespace jax_nano {

struct Times {
  int64_t runs = 0;
  int64_t nanoseconds = 0;
};

// Begins to count from zero, or ends it; what was counted stays.
void CountTimes(bool wanted);

// What was counted, by the key of each kernel.
std::unordered_map<uint64_t, Times> CountedTimes();

// Counts a run that lasts as long as this object. Where nothing is counted, it reads one atomic.
class CountedRun {
 public:
  explicit CountedRun(uint64_t key);
  ~CountedRun();
  CountedRun(const CountedRun&) = delete;
  CountedRun& operator=(const CountedRun&) = delete;

 private:
  uint64_t key_;
  int64_t start_;  // nanoseconds; negative where it is not counted
};

}  // namespace jax_nano
