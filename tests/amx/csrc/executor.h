// What each AMX instruction does to the tiles and to memory.
#pragma once

#include <cstdint>

#include "decoder.h"
#include "tiles.h"

namespace amx {

enum class Fault {
  kNone,
  kUndefined,   // #UD, which Linux delivers as SIGILL
  kProtection,  // #GP, which Linux delivers as SIGSEGV
};

struct Outcome {
  Fault fault = Fault::kNone;
  const char* reason = "";
};

// An instruction's memory operand. `stride` is that of a tile's rows, in bytes.
struct Address {
  uint8_t* start;
  int64_t stride;
};

// Touches a tile's rows in memory and nothing beside them. Where memory faults, the tiles are as after the rows before
// it, and `start_row` says which row comes next, as the processor does it.
Outcome Execute(const Instruction& instruction, Address address, Tiles& tiles);

}  // namespace amx
