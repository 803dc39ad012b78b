// Scratch memory, kept between executions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace jax_nano {

// A block of scratch, on huge pages where it is large; returned to the process-wide stock when it goes.
class Scratch {
 public:
  // Check ok() before use: memory may have run out. Zero bytes are always there.
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  bool ok() const { return wanted_ == 0 || data_ != nullptr; }
  void* data() const { return data_; }

 private:
  size_t wanted_;
  size_t size_ = 0;
  void* data_ = nullptr;
};

struct ScratchUse {
  int64_t held;   // bytes taken from the system, in use or in stock
  int64_t limit;  // bytes that the stock may keep
};
ScratchUse GetScratchUse();

}  // namespace jax_nano
