#include <sys/mman.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>

#include "check.h"
#include "memory.h"
#include "pages.h"
#include "pool.h"

namespace jax_nano::test {
namespace {

constexpr size_t kMapped = 80 << 20;

class Mapping {
 public:
  Mapping()
      : data_(static_cast<char*>(
            mmap(nullptr, kMapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, /*fd=*/-1, /*offset=*/0))) {}
  ~Mapping() { munmap(data_, kMapped); }
  char* data() const { return data_; }

 private:
  char* data_;
};

TEST(advice_changes_no_byte) {
  Mapping mapping;
  std::memset(mapping.data(), 7, kMapped);
  PreferHugePages(mapping.data(), kMapped);
  PreferHugePages(mapping.data() + 1, kMapped - 2);
  for (size_t at = 0; at < kMapped; at += 4095) EXPECT(mapping.data()[at] == 7);
}

TEST(advice_on_memory_that_is_not_there_is_harmless) {
  void* gone;
  {
    Mapping mapping;
    gone = mapping.data();
  }
  PreferHugePages(nullptr, 0);
  PreferHugePages(nullptr, kMapped);
  PreferHugePages(gone, kMapped);
  PreferHugePages(gone, 1);
  std::array<void*, 4> addresses = {nullptr, gone, &addresses, reinterpret_cast<void*>(UINTPTR_MAX)};
  PreferHugePagesAround(addresses);
  PreferHugePagesAround({});
}

TEST(neighbours_are_one_result) {
  Mapping mapping;
  constexpr size_t kPart = size_t{3} << 20;  // too small to be advised alone
  std::array<std::span<char>, 3> results = {std::span<char>(mapping.data() + 2 * kPart, kPart),
                                            std::span<char>(mapping.data(), kPart),
                                            std::span<char>(mapping.data() + kPart, kPart)};
  PreferHugePages(results);
  EXPECT(results[0].data() == mapping.data());
  std::memset(mapping.data(), 7, 3 * kPart);
  for (size_t at = 0; at < 3 * kPart; at += 4095) EXPECT(mapping.data()[at] == 7);
  std::array<std::span<char>, 2> nothing = {};
  PreferHugePages(nothing);
  PreferHugePages(std::span<std::span<char>>());
}

TEST(threads_give_advice_while_others_write) {
  Mapping mapping;
  AtOnce(6, [&](int thread) {
    size_t part = kMapped / 6, begin = part * static_cast<size_t>(thread);
    std::array<void* const, 2> addresses = {mapping.data() + begin, mapping.data()};
    for (int i = 0; i < 20; ++i) {
      PreferHugePages(mapping.data() + begin, part);
      PreferHugePagesAround(addresses);
      mapping.data()[begin + static_cast<size_t>(i) * 4096] = 1;
    }
  });
}

TEST(the_allocator_is_asked_from_many_threads) {
  AtOnce(4, [](int) {
    EXPECT(!ForeignAllocator().empty());  // the sanitizers bring their own
    for (int i = 0; i < 20; ++i) EXPECT(Arenas() == 0);
  });
  RetainMemory(-1);
  ReleaseMemory();
}

}  // namespace
}  // namespace jax_nano::test
