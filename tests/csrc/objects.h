// Object code to load.
#pragma once

#include <cstdint>
#include <string>

#include "loader.h"

namespace jax_nano::test {

std::string KernelsObject();  // objects/kernels.c: scale, increment
std::string CallsObject();    // objects/calls.c: calls

constexpr int64_t kTasks = 8;
constexpr int64_t kScratch = 4096;

// `scale`, then `increment`, on arrays of kTasks elements.
Description TwoPhases(int64_t rounds = 1);

// A key that no other kernel of this process has.
uint64_t NewKey();

}  // namespace jax_nano::test
