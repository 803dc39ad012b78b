// How this process's allocator treats freed memory. Where that is not glibc's, there are no arenas, and nothing is kept
// or released.
#pragma once

#include <cstdint>
#include <string>

namespace jax_nano {

// Where malloc comes from if it is not glibc's: the file that has it. Empty where it is glibc's.
std::string ForeignAllocator();

// How many arenas (heaps that threads take turns at) glibc has made. Threads never change theirs, and blocks above
// 64 MiB fit only in the first, which the main thread has.
int64_t Arenas();

// Makes glibc keep freed memory: up to `limit` bytes at the end of its heap, or all of it for -1. Blocks above the
// limit are mapped alone, and unmapped when freed. While there is only one arena, threads to come share it.
void RetainMemory(int limit);

// Takes that back, and returns free memory to the system. Threads go on sharing the arenas that there are.
void ReleaseMemory();

}  // namespace jax_nano
