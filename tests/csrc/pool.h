// Threads for tests, as XLA's pool offers them.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace jax_nano::test {

class Pool {
 public:
  explicit Pool(int64_t threads);
  ~Pool();  // after all that was scheduled has run

  void Schedule(std::function<void()> work);
  int64_t size() const { return static_cast<int64_t>(threads_.size()); }

 private:
  void Work();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool closing_ = false;
  std::vector<std::thread> threads_;
};

// Calls function(0) to function(count - 1), each on a thread of its own, all at once.
void AtOnce(int count, const std::function<void(int)>& function);

}  // namespace jax_nano::test
