#include "limits.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <new>

namespace jax_nano::test {
namespace {

// Allocations until one fails.
constexpr int64_t kNever = INT64_MAX, kFailed = -1;
thread_local int64_t left = kNever;

void* Allocate(size_t bytes) {
  if (left != kNever && left != kFailed && left-- == 0) return nullptr;
  return std::malloc(bytes ? bytes : 1);
}

size_t MappedBytes() {
  unsigned long pages = 0;
  FILE* file = std::fopen("/proc/self/statm", "r");
  if (!file || std::fscanf(file, "%lu", &pages) != 1) std::abort();
  std::fclose(file);
  return pages * static_cast<size_t>(getpagesize());
}

void SetLimit(size_t bytes) {
  rlimit limit;
  getrlimit(RLIMIT_AS, &limit);
  limit.rlim_cur = bytes;
  setrlimit(RLIMIT_AS, &limit);
}

}  // namespace

FailingNew::FailingNew(int64_t successes) { left = successes; }
FailingNew::~FailingNew() { left = kNever; }
bool FailingNew::failed() const { return left == kFailed; }

WorkingNew::WorkingNew() : left_(left) { left = kNever; }
WorkingNew::~WorkingNew() { left = left_; }

AddressSpaceLimit::AddressSpaceLimit(size_t bytes) {
  rlimit limit;
  getrlimit(RLIMIT_AS, &limit);
  before_ = limit.rlim_cur;
  SetLimit(MappedBytes() + bytes);
}
AddressSpaceLimit::~AddressSpaceLimit() { SetLimit(before_); }

}  // namespace jax_nano::test

void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return jax_nano::test::Allocate(bytes); }
void* operator new(size_t bytes) {
  if (void* data = jax_nano::test::Allocate(bytes)) return data;
  throw std::bad_alloc();
}
void operator delete(void* data) noexcept { std::free(data); }
void operator delete(void* data, size_t) noexcept { std::free(data); }
void operator delete(void* data, const std::nothrow_t&) noexcept { std::free(data); }
