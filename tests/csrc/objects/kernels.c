// Kernels with the signature of Entry (csrc/loader.h), compiled to an object that the tests load.
#include <stdint.h>

static const int64_t weights[] = {3, 5, 7, 11};

// buffers[1][task] = buffers[0][task] * weights[round], beside scratch that it writes.
void scale(int64_t round, int64_t task, void* shared, void* local, void* const* buffers) {
  const int64_t* in = buffers[0];
  int64_t* out = buffers[1];
  *(int64_t*)local = in[task];
  ((int64_t*)shared)[task] = *(int64_t*)local * weights[round & 3];
  out[task] = ((int64_t*)shared)[task];
}

// buffers[1][task] += 1, once a round.
void increment(int64_t round, int64_t task, void* shared, void* local, void* const* buffers) {
  (void)round, (void)shared, (void)local;
  ++((int64_t*)buffers[1])[task];
}
