#include "memory.h"

#include <stdlib.h>  // defines __GLIBC__

#ifdef __GLIBC__

#include <dlfcn.h>
#include <gnu/libc-version.h>
#include <malloc.h>
#include <stdio.h>

#include <algorithm>
#include <string_view>
#include <thread>

namespace jax_nano {
namespace {

constexpr int kMiB = 1 << 20;

// A heap of an arena other than the first (HEAP_MAX_SIZE). With as much padding, the last of them stays when it is
// empty.
constexpr int kHeap = 64 * kMiB;

// M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, up to which glibc raises both by itself until one of them is set, after which
// it never does again: a program that has run for a while is given back what it had.
constexpr int kGrownMmapThreshold = 32 * kMiB;
constexpr int kGrownTrimThreshold = 2 * kGrownMmapThreshold;
constexpr int kDefaultTopPad = 128 << 10;
constexpr int kDefaultMmapMax = 1 << 16;

}  // namespace

std::string ForeignAllocator() {
  Dl_info used, own;
  if (!dladdr(reinterpret_cast<void*>(&malloc), &used) || !dladdr(reinterpret_cast<void*>(&gnu_get_libc_version), &own))
    return "an unknown place";
  return used.dli_fbase == own.dli_fbase ? "" : used.dli_fname;
}

// glibc sets up its allocator in whichever of these functions is called first, without a lock. Where another allocator
// is used, that would be one of ours, perhaps on two threads at once.
int64_t Arenas() {
  if (!ForeignAllocator().empty()) return 0;
  char* text = nullptr;
  size_t size = 0;
  FILE* stream = open_memstream(&text, &size);
  if (!stream) return 0;
  malloc_info(/*options=*/0, stream);
  fclose(stream);
  int64_t arenas = 0;
  std::string_view rest(text, size), mark = "<heap nr=";
  for (size_t at; (at = rest.find(mark)) != rest.npos; rest.remove_prefix(at + mark.size())) ++arenas;
  free(text);
  return arenas;
}

// -1 becomes the largest size_t in mallopt.
void RetainMemory(int limit) {
  if (!ForeignAllocator().empty()) return;
  // Before glibc 2.35, thresholds above 32 MiB are refused; the same is had by mapping nothing.
  if (!mallopt(M_MMAP_THRESHOLD, limit)) mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, limit);
  mallopt(M_TOP_PAD, limit < 0 ? kHeap : std::min(limit, kHeap));
  if (Arenas() == 1) mallopt(M_ARENA_MAX, 1);
}

void ReleaseMemory() {
  if (!ForeignAllocator().empty()) return;
  mallopt(M_MMAP_THRESHOLD, kGrownMmapThreshold);
  mallopt(M_MMAP_MAX, kDefaultMmapMax);
  mallopt(M_TRIM_THRESHOLD, kGrownTrimThreshold);
  mallopt(M_TOP_PAD, kDefaultTopPad);
  mallopt(M_ARENA_MAX, 8 * static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  malloc_trim(/*pad=*/0);
}

}  // namespace jax_nano

#else

namespace jax_nano {

std::string ForeignAllocator() { return "a C library other than glibc"; }
int64_t Arenas() { return 0; }
void RetainMemory(int) {}
void ReleaseMemory() {}

}  // namespace jax_nano

#endif
