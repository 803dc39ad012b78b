#include "processor.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mutex>

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/Support/TargetSelect.h"
#include "llvm/TargetParser/Host.h"

namespace jax_nano {
namespace {

constexpr const char* kTiles = "amx-tile";
// Of asm/prctl.h and Intel SDM, volume 1, section 13.1.
constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
constexpr long kTileData = 18;               // XTILEDATA

llvm::SmallVector<llvm::StringRef> Names(std::string_view features) {
  llvm::SmallVector<llvm::StringRef> names;
  llvm::StringRef(features).split(names, ',', /*MaxSplit=*/-1, /*KeepEmpty=*/false);
  return names;
}

struct Features {
  std::mutex mutex;
  llvm::StringMap<bool> present = llvm::sys::getHostCPUFeatures();
  llvm::StringSet<> assumed;
};

Features& Known() {
  static auto* features = new Features;
  return *features;
}

std::string RequestTiles() {
#ifdef SYS_arch_prctl
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0) return "";
  return std::string("Linux denies this process tile data: ") + std::strerror(errno);
#else
  return "this system grants no tile data";
#endif
}

}  // namespace

std::string MissingFeatures(std::string_view features) {
  Features& known = Known();
  std::lock_guard lock(known.mutex);
  std::string missing;
  for (llvm::StringRef name : Names(features)) {
    if (known.present.lookup(name) || known.assumed.contains(name)) continue;
    if (!missing.empty()) missing += ",";
    missing += name;
  }
  return missing;
}

const std::string& TilesDenied() {
  // Never destroyed: programs may still load kernels while the process ends.
  static const auto* granted = new std::string;
  Features& known = Known();
  {
    std::lock_guard lock(known.mutex);
    if (known.assumed.contains(kTiles) || !known.present.lookup(kTiles)) return *granted;
  }
  static const auto* denied = new std::string(RequestTiles());
  return *denied;
}

std::string Refusal(std::string_view features) {
  if (auto missing = MissingFeatures(features); !missing.empty())
    return "this kernel was compiled for a processor with " + missing +
           ", which this one lacks; compile the program on this machine, with JAX_NANO_TARGET unset";
  if (llvm::is_contained(Names(features), kTiles) && !TilesDenied().empty())
    return "this kernel uses tile registers, but " + TilesDenied() + "; compile the program in this process";
  return "";
}

void InitializeCodeGenerator() {
  // LLVM's registry of targets takes no lock.
  static std::once_flag initialized;
  std::call_once(initialized, [] {
    llvm::InitializeNativeTarget();
    llvm::InitializeNativeTargetAsmPrinter();
  });
}

void AssumeFeatures(std::string_view features) {
  Features& known = Known();
  std::lock_guard lock(known.mutex);
  known.assumed.clear();
  for (llvm::StringRef name : Names(features)) known.assumed.insert(name);
}

}  // namespace jax_nano
