// Calls of XLA FFI handlers without XLA.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "pool.h"
#include "xla/ffi/api/c_api.h"

namespace jax_nano::test {

using Attribute = std::variant<int64_t, std::string, std::vector<int64_t>, float>;

struct Array {
  XLA_FFI_DataType type;
  std::vector<int64_t> dims;
  void* data;
};

struct Call {
  XLA_FFI_ExecutionStage stage;
  std::map<std::string, Attribute> attributes;  // sorted by name, as XLA has them
  std::vector<Array> operands;
  std::vector<Array> results;
  Pool* pool = nullptr;  // without one, XLA says that it has none
};

struct Status {
  XLA_FFI_Error_Code code = XLA_FFI_Error_Code_OK;
  std::string message;

  bool ok() const { return code == XLA_FFI_Error_Code_OK; }
  bool Says(std::string_view words) const { return message.find(words) != message.npos; }
};

// Calls the handler. An exception that leaves it ends the process, as it does where XLA calls.
// With `successes`, an allocation of the handler's fails after so many; `failed` tells whether that came to pass.
Status Invoke(XLA_FFI_Handler* handler, const Call& call) noexcept;
Status InvokeFailing(XLA_FFI_Handler* handler, const Call& call, int64_t successes, bool* failed) noexcept;

}  // namespace jax_nano::test
