// A kernel that calls what is not in its object.
#include <stdint.h>

int64_t elsewhere(int64_t);

void calls(int64_t round, int64_t task, void* shared, void* local, void* const* buffers) {
  (void)round, (void)shared, (void)local;
  ((int64_t*)buffers[0])[task] = elsewhere(task);
}
