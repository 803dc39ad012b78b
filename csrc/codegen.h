// LLVM IR -> object code or assembly.
#pragma once

#include <memory>
#include <string>

#include "llvm/IR/Module.h"
#include "llvm/Support/Error.h"
#include "llvm/Target/TargetMachine.h"

namespace jax_nano {

// What to compile for, in LLVM's names.
struct Processor {
  std::string cpu;       // baseline and nothing above it, for instance x86-64-v3
  std::string features;  // added to the baseline, for instance +avx512bf16,+avx512vnni
  std::string tune;      // whose scheduling model to use, for instance znver5
};

enum class Output { kObject, kAssembly };

// LLVM's code generator for `processor`. One takes a module through both steps: what it finds out of a processor's
// features is not cheap.
llvm::Expected<std::unique_ptr<llvm::TargetMachine>> TargetMachineOf(const Processor& processor);

// Optimizes `module` in place for `processor`, which `machine` is of.
llvm::Error Optimize(llvm::Module& module, const Processor& processor, llvm::TargetMachine& machine);

// Emits an optimized module.
llvm::Expected<std::string> Emit(llvm::Module& module, llvm::TargetMachine& machine, Output output);

}  // namespace jax_nano
