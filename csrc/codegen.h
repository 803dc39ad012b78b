// LLVM IR -> object code or assembly.
#pragma once

#include <string>

#include "llvm/IR/Module.h"
#include "llvm/Support/Error.h"

namespace jax_nano {

// What to compile for, in LLVM's names.
struct Processor {
  std::string cpu;       // baseline and nothing above it, for instance x86-64-v3
  std::string features;  // added to the baseline, for instance +avx512bf16,+avx512vnni
  std::string tune;      // whose scheduling model to use, for instance znver5
};

enum class Output { kObject, kAssembly };

// Optimizes `module` in place for `processor`.
llvm::Error Optimize(llvm::Module& module, const Processor& processor);

// Emits an optimized module.
llvm::Expected<std::string> Emit(llvm::Module& module, const Processor& processor, Output output);

}  // namespace jax_nano
