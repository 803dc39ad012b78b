#include "scratch.h"

#include <sys/mman.h>

#include <mutex>
#include <vector>

#include "pages.h"

namespace jax_nano {
namespace {

constexpr size_t kLimit = size_t{256} << 20;
constexpr size_t kBlocks = 256;

struct Block {
  void* data;
  size_t size;
};

struct Stock {
  Stock() { blocks.reserve(kBlocks); }  // so that giving back never allocates

  std::mutex mutex;
  std::vector<Block> blocks;  // the last returned, whose lines are likely in cache, at the back
  size_t kept = 0;
  size_t held = 0;
};

Stock& GetStock() {
  static auto* stock = new Stock;
  return *stock;
}

// Whole huge pages are aligned to their size, so that the kernel can map them as such.
void* Map(size_t size) {
  bool huge = size >= kHugePage;
  size_t slack = huge ? kHugePage : 0;
  void* raw = mmap(nullptr, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  if (!huge) return raw;
  auto start = reinterpret_cast<uintptr_t>(raw);
  auto aligned = RoundUp(start, kHugePage);
  if (aligned > start) munmap(raw, aligned - start);
  if (size_t tail = start + size + slack - (aligned + size)) munmap(reinterpret_cast<void*>(aligned + size), tail);
  madvise(reinterpret_cast<void*>(aligned), size, MADV_HUGEPAGE);
  return reinterpret_cast<void*>(aligned);
}

}  // namespace

Scratch::Scratch(size_t bytes) : wanted_(bytes) {
  if (bytes == 0) return;
  size_ = RoundUp(bytes, bytes >= kHugePage / 2 ? kHugePage : kSmallPage);
  Stock& stock = GetStock();
  {
    std::lock_guard lock(stock.mutex);
    for (size_t i = stock.blocks.size(); i-- > 0;) {
      Block block = stock.blocks[i];
      if (block.size < size_ || block.size > 2 * size_) continue;
      stock.blocks.erase(stock.blocks.begin() + static_cast<ptrdiff_t>(i));
      stock.kept -= block.size;
      data_ = block.data;
      size_ = block.size;
      return;
    }
    stock.held += size_;
  }
  data_ = Map(size_);
  if (data_) return;
  std::lock_guard lock(stock.mutex);
  stock.held -= size_;
}

Scratch::~Scratch() {
  if (!data_) return;
  Stock& stock = GetStock();
  {
    std::lock_guard lock(stock.mutex);
    if (stock.kept + size_ <= kLimit && stock.blocks.size() < kBlocks) {
      stock.blocks.push_back({data_, size_});
      stock.kept += size_;
      return;
    }
    stock.held -= size_;
  }
  munmap(data_, size_);
}

ScratchUse GetScratchUse() {
  Stock& stock = GetStock();
  std::lock_guard lock(stock.mutex);
  return {static_cast<int64_t>(stock.held), static_cast<int64_t>(kLimit)};
}

}  // namespace jax_nano
