#include "pages.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <functional>

namespace jax_nano {
namespace {

// Heaps of glibc's arenas are no larger (HEAP_MAX_SIZE).
constexpr size_t kLargestHeap = size_t{64} << 20;

// A result is looked at where its parts meet.
constexpr size_t kParts = 4;

// struct procmap_query and PROCMAP_QUERY of Linux 6.11's linux/fs.h, which older headers do not have.
struct MappingQuery {
  uint64_t size = sizeof(MappingQuery);
  uint64_t flags = 0;
  uint64_t address = 0;
  uint64_t begin = 0;
  uint64_t end = 0;
  uint64_t unused[8] = {};
};
constexpr unsigned long kMappingQuery = _IOWR('f', 17, MappingQuery);

// Advice: where it fails, nothing is lost.
void Ask(uintptr_t begin, uintptr_t end) {
  begin = RoundUp(begin, kHugePage);
  end = end / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

// Whether pages are in memory, by some of them. Not the outermost ones: malloc writes beside what it gives.
bool Resident(uintptr_t begin, size_t bytes) {
  for (size_t part = 1; part < kParts; ++part) {
    unsigned char state = 0;
    auto* page = reinterpret_cast<void*>((begin + bytes / kParts * part) / kSmallPage * kSmallPage);
    if (mincore(page, kSmallPage, &state) != 0 || !(state & 1)) return false;
  }
  return true;
}

}  // namespace

void PreferHugePages(void* data, size_t bytes) {
  auto begin = reinterpret_cast<uintptr_t>(data);
  if (bytes < 2 * kHugePage) return;
  // Memory that was used before has its pages. Advice would wait until another thread has given back what it frees.
  if (!Resident(begin, bytes)) Ask(begin, begin + bytes);
}

void PreferHugePages(std::span<std::span<char>> results) {
  std::ranges::sort(results, std::ranges::less(), [](std::span<char> result) { return result.data(); });
  for (size_t first = 0; first < results.size();) {
    uintptr_t begin = reinterpret_cast<uintptr_t>(results[first].data()), end = begin;
    do {
      end = std::max(end, reinterpret_cast<uintptr_t>(results[first].data()) + results[first].size());
    } while (++first < results.size() && reinterpret_cast<uintptr_t>(results[first].data()) <= end + kSmallPage);
    PreferHugePages(reinterpret_cast<void*>(begin), end - begin);
  }
}

void PreferHugePagesAround(std::span<void* const> addresses) noexcept {
  int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (maps < 0) return;
  for (void* address : addresses) {
    MappingQuery query{.address = reinterpret_cast<uintptr_t>(address)};
    bool known = ioctl(maps, kMappingQuery, &query) == 0;
    if (known && query.end - query.begin > kLargestHeap) Ask(query.begin, query.end);
  }
  close(maps);
}

}  // namespace jax_nano
