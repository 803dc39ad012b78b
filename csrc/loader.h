// Object bytes -> executable memory, once per content, for the life of the process.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "llvm/Support/Error.h"

namespace jax_nano {

// One phase of a kernel. `buffers` holds the operands' addresses, then the results'.
using Entry = void (*)(int64_t round, int64_t task, void* shared, void* local, void* const* buffers);

struct Phase {
  std::string symbol;
  int64_t tasks;  // may run at once

  bool operator==(const Phase&) const = default;
};

struct Buffer {
  int64_t type;  // XLA_FFI_DataType
  int64_t elements;

  bool operator==(const Buffer&) const = default;
};

// What travels with an object: how its entry points want to be called.
struct Description {
  std::vector<Phase> phases;  // follow one another, in every round
  int64_t rounds;             // follow one another
  int64_t shared_bytes;       // scratch that all tasks of an execution see
  int64_t local_bytes;        // scratch of each thread
  std::vector<Buffer> operands;
  std::vector<Buffer> results;
  std::string features;  // LLVM's names of the instruction sets the object uses, separated by commas

  bool operator==(const Description&) const = default;
};

struct Kernel {
  Description description;
  std::vector<Entry> entries;  // one a phase
  std::string object;

  // Whether a second thread would find something to do.
  bool parallel() const {
    return std::any_of(description.phases.begin(), description.phases.end(),
                       [](const Phase& p) { return p.tasks > 1; });
  }
};

// Makes `object` executable under `key`, a hash of its content and description. Does nothing where it is there already.
// Fails, without loading anything, on a processor that lacks one of the features, or where Linux denies tile registers.
llvm::Error Load(uint64_t key, std::string_view object, Description description);

// The kernel loaded under `key`, or nullptr. The pointer stays valid until the process ends.
const Kernel* Find(uint64_t key);

}  // namespace jax_nano
