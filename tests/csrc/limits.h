// Memory that runs out where a test wants it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace jax_nano::test {

// While it lives, operator new throws std::bad_alloc on this thread, once, after `successes` allocations.
class FailingNew {
 public:
  explicit FailingNew(int64_t successes);
  ~FailingNew();

  bool failed() const;
};

// While it lives, operator new on this thread works: for what stands for XLA.
class WorkingNew {
 public:
  WorkingNew();
  ~WorkingNew();

 private:
  int64_t left_;
};

// While it lives, this process may map only so many more bytes.
class AddressSpaceLimit {
 public:
  explicit AddressSpaceLimit(size_t bytes);
  ~AddressSpaceLimit();

 private:
  size_t before_;
};

}  // namespace jax_nano::test
