#include "objects.h"

#include <atomic>
#include <fstream>
#include <iterator>

#include "xla/ffi/api/c_api.h"

namespace jax_nano::test {
namespace {

std::string Content(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

std::string KernelsObject() { return Content(KERNELS_OBJECT); }
std::string CallsObject() { return Content(CALLS_OBJECT); }

Description TwoPhases(int64_t rounds) {
  Buffer buffer{.type = XLA_FFI_DataType_S64, .elements = kTasks};
  return {.phases = {{"scale", kTasks}, {"increment", kTasks}},
          .rounds = rounds,
          .shared_bytes = kScratch,
          .local_bytes = kScratch,
          .operands = {buffer},
          .results = {buffer},
          .features = ""};
}

uint64_t NewKey() {
  static std::atomic<uint64_t> last{1000};
  return ++last;
}

}  // namespace jax_nano::test
