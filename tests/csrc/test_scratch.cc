#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "check.h"
#include "limits.h"
#include "pages.h"
#include "pool.h"
#include "scratch.h"

namespace jax_nano::test {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

bool AlignedTo(const void* data, size_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

TEST(scratch_of_any_size_is_there_to_its_last_byte) {
  for (size_t bytes : {size_t{1}, kSmallPage, kSmallPage + 1, kHugePage / 2 - 1, kHugePage / 2, kHugePage + 1}) {
    Scratch scratch(bytes);
    EXPECT(scratch.ok());
    EXPECT(AlignedTo(scratch.data(), bytes >= kHugePage / 2 ? kHugePage : kSmallPage));
    static_cast<char*>(scratch.data())[0] = 1;
    static_cast<char*>(scratch.data())[bytes - 1] = 1;
  }
}

TEST(zero_bytes_of_scratch_are_always_there) {
  Scratch scratch(0);
  EXPECT(scratch.ok());
  EXPECT(scratch.data() == nullptr);
}

TEST(scratch_that_was_returned_is_given_again) {
  void* first = nullptr;
  {
    Scratch scratch(3 * kMiB);
    first = scratch.data();
  }
  int64_t held = GetScratchUse().held;
  Scratch again(3 * kMiB);
  EXPECT(again.data() == first);
  EXPECT(GetScratchUse().held == held);
}

TEST(scratch_above_the_limit_goes_back_to_the_system) {
  std::vector<std::unique_ptr<Scratch>> many;
  for (int i = 0; i < 5; ++i) many.push_back(std::make_unique<Scratch>(100 * kMiB));
  EXPECT(GetScratchUse().held >= static_cast<int64_t>(500 * kMiB));
  many.clear();
  EXPECT(GetScratchUse().held <= GetScratchUse().limit);
}

TEST(more_blocks_than_the_stock_has_room_for) {
  std::vector<std::unique_ptr<Scratch>> many;
  for (int i = 0; i < 300; ++i) many.push_back(std::make_unique<Scratch>(kSmallPage));
  FailingNew failing(0);  // giving back never allocates
  many.clear();
  EXPECT(!failing.failed());
  EXPECT(GetScratchUse().held <= GetScratchUse().limit);
}

TEST(scratch_that_no_memory_is_left_for_is_not_ok) {
  int64_t held = GetScratchUse().held;
  for (size_t bytes : {size_t{1} << 46, size_t{1} << 62, size_t{INT64_MAX}}) {
    Scratch scratch(bytes);
    EXPECT(!scratch.ok());
  }
  EXPECT(GetScratchUse().held == held);
}

TEST(scratch_within_a_limit_of_address_space) {
  AddressSpaceLimit limit(400 * kMiB);
  Scratch first(300 * kMiB), second(300 * kMiB);
  EXPECT(first.ok());
  EXPECT(!second.ok());
}

// Whoever holds a block has it alone: ThreadSanitizer sees the writes of two holders, and the bytes tell as well.
TEST(threads_share_no_scratch) {
  AtOnce(8, [](int thread) {
    for (int i = 0; i < 200; ++i) {
      size_t bytes = size_t{4096} << (i + thread) % 11;
      Scratch scratch(bytes);
      auto* data = static_cast<unsigned char*>(scratch.data());
      std::memset(data, thread + 1, 4096);
      data[bytes - 1] = static_cast<unsigned char>(thread + 1);
      for (size_t at : {size_t{0}, size_t{4095}, bytes - 1}) EXPECT(data[at] == thread + 1);
      EXPECT(GetScratchUse().held > 0);
    }
  });
}

}  // namespace
}  // namespace jax_nano::test
