// The pages behind large results.
#pragma once

#include <cstddef>
#include <span>

namespace jax_nano {

inline constexpr size_t kHugePage = size_t{2} << 20;
inline constexpr size_t kSmallPage = size_t{4} << 10;

constexpr size_t RoundUp(size_t bytes, size_t page) { return (bytes + page - 1) / page * page; }

// Asks Linux to back a large result by huge pages where its memory is fresh: a fault for every 2 MiB, not for every
// 4 KiB. NumPy does the same for its arrays.
void PreferHugePages(void* data, size_t bytes);

// The same for several results, of which neighbours in memory count as one. Puts them in the order of memory.
void PreferHugePages(std::span<std::span<char>> results);

// The same for all of the large mappings that addresses are in: as glibc does where its tunable hugetlb is 1. Does
// nothing before Linux 6.11, which is slow to say what a mapping is, and in the heaps of glibc's further arenas, whose
// memory stays. Never throws.
void PreferHugePagesAround(std::span<void* const> addresses) noexcept;

}  // namespace jax_nano
