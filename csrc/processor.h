// What this processor, and the system on it, can run.
#pragma once

#include <string>
#include <string_view>

namespace jax_nano {

// The features among `features` (LLVM's names, separated by commas) that this processor lacks, separated by commas.
std::string MissingFeatures(std::string_view features);

// Why this process may not use tile registers; empty where it may, and where the processor has none. Asks Linux for
// them, once.
const std::string& TilesDenied();

// Why code that uses these features cannot run here, and what to do; empty where it can.
std::string Refusal(std::string_view features);

// Makes LLVM's code generator for this processor known to LLVM. Any thread may call it, at any time.
void InitializeCodeGenerator();

// Makes just these features count as present besides what the processor has, and tile registers among them as granted:
// for tests, which emulate them.
void AssumeFeatures(std::string_view features);

}  // namespace jax_nano
