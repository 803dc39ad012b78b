// From bytes to an AMX instruction: those that LLVM emits for sapphirerapids and graniterapids.
//
// Source: Intel SDM, volume 2: the pages of the instructions, and section 2.3 for the VEX prefix.
#pragma once

#include <cstdint>

namespace amx {

enum class Mnemonic : uint8_t {
  kLdtilecfg,
  kSttilecfg,
  kTileloadd,
  kTileloaddt1,
  kTilestored,
  kTilezero,
  kTilerelease,
  kTdpbf16ps,
  kTdpfp16ps,
  kTdpbssd,
  kTdpbsud,
  kTdpbusd,
  kTdpbuud,
};
constexpr int kMnemonics = static_cast<int>(Mnemonic::kTdpbuud) + 1;
const char* Name(Mnemonic mnemonic);

// base + index << scale + displacement. Registers by their encoding: rax is 0, r15 is 15.
struct Memory {
  static constexpr int8_t kNone = -1;
  static constexpr int8_t kRip = -2;  // as a base: the address of the following instruction
  int8_t base = kNone;
  int8_t index = kNone;
  uint8_t scale = 0;
  int32_t displacement = 0;
};

struct Instruction {
  Mnemonic mnemonic = {};
  uint8_t length = 0;       // bytes
  uint8_t tile = 0;         // what is loaded, stored, zeroed or accumulated
  uint8_t sources[2] = {};  // of a product: the rows, then the columns
  Memory memory = {};
};

enum class Verdict {
  kDecoded,
  kUndefined,  // an opcode of AMX, but no instruction
  kOther,      // nothing of AMX
};

struct Decoded {
  Verdict verdict;
  const char* reason = "";  // of kUndefined
  Instruction instruction = {};
};

// Reads no byte beyond the instruction.
Decoded Decode(const uint8_t* code);

}  // namespace amx
