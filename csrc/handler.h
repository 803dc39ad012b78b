// The XLA FFI handlers of the custom call "jax_nano".
#pragma once

#include "xla/ffi/api/c_api.h"

namespace jax_nano {

XLA_FFI_Handler* InstantiateHandler();
XLA_FFI_Handler* ExecuteHandler();

}  // namespace jax_nano
