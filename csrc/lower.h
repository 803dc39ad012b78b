// MLIR text -> LLVM IR.
#pragma once

#include <memory>
#include <string_view>

#include "llvm/IR/LLVMContext.h"
#include "llvm/IR/Module.h"
#include "llvm/Support/Error.h"

namespace jax_nano {

// Parses an MLIR module (generic form is accepted) and lowers it to LLVM IR in `context`.
//
// Every public function of the module becomes an entry point of one fixed signature (see loader.h: Entry), under its
// own name: (round, task, shared, local, buffers...) with the buffers taken from an array.
llvm::Expected<std::unique_ptr<llvm::Module>> Lower(std::string_view text, llvm::LLVMContext& context);

}  // namespace jax_nano
