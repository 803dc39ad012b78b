// Runs a loaded kernel's tasks on the caller's thread and on others.
#pragma once

#include <cstdint>
#include <functional>

#include "loader.h"

namespace jax_nano {

// Hands a callable to another thread, some time.
using Schedule = std::function<void(std::function<void()>)>;

// Has no more than `threads` threads of this process compute from now on, those of all kernels that run at once taken
// together, however many Run is told: as many as there are cores for, where XLA's pool has more, or where several
// devices run kernels. Below 1: no limit.
void LimitThreads(int64_t threads);

// Runs `kernel` on at most `threads` threads, the caller's among them, and returns when all tasks are done. Waits where
// as many threads compute as may.
// Returns false, with nothing run, where there is no memory for the kernel's scratch. Throws std::bad_alloc, with
// nothing run, where there is none for anything else; that `schedule` throws it costs helpers only.
bool Run(const Kernel& kernel, void* const* buffers, int64_t threads, const Schedule& schedule);

// How many times Run has run a kernel in this process.
int64_t ExecutedKernels();

}  // namespace jax_nano
