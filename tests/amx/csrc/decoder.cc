#include "decoder.h"

#include <cstring>

namespace amx {
namespace {

// What ModRM says, beyond the choice between a register (mod = 3) and memory.
enum class Form {
  kConfig,  // any memory operand; reg is 0
  kRows,    // a memory operand with a SIB byte, whose index is the stride; reg is the tile
  kNone,    // 11:000:000
  kTile,    // 11:tile:000
  kTiles,   // 11:accumulator:first source; the second source is in VEX.vvvv
};

struct Encoding {
  Mnemonic mnemonic;
  const char* name;
  uint8_t opcode;
  uint8_t prefix;  // VEX.pp: none, 66, F3, F2
  Form form;
};

constexpr uint8_t kNP = 0, k66 = 1, kF3 = 2, kF2 = 3;

constexpr Encoding kEncodings[] = {
    {Mnemonic::kLdtilecfg, "ldtilecfg", 0x49, kNP, Form::kConfig},
    {Mnemonic::kSttilecfg, "sttilecfg", 0x49, k66, Form::kConfig},
    {Mnemonic::kTileloadd, "tileloadd", 0x4B, kF2, Form::kRows},
    {Mnemonic::kTileloaddt1, "tileloaddt1", 0x4B, k66, Form::kRows},
    {Mnemonic::kTilestored, "tilestored", 0x4B, kF3, Form::kRows},
    {Mnemonic::kTilezero, "tilezero", 0x49, kF2, Form::kTile},
    {Mnemonic::kTilerelease, "tilerelease", 0x49, kNP, Form::kNone},
    {Mnemonic::kTdpbf16ps, "tdpbf16ps", 0x5C, kF3, Form::kTiles},
    {Mnemonic::kTdpfp16ps, "tdpfp16ps", 0x5C, kF2, Form::kTiles},
    {Mnemonic::kTdpbssd, "tdpbssd", 0x5E, kF2, Form::kTiles},
    {Mnemonic::kTdpbsud, "tdpbsud", 0x5E, kF3, Form::kTiles},
    {Mnemonic::kTdpbusd, "tdpbusd", 0x5E, k66, Form::kTiles},
    {Mnemonic::kTdpbuud, "tdpbuud", 0x5E, kNP, Form::kTiles},
};

constexpr bool InMnemonicOrder() {
  int i = 0;
  for (const Encoding& encoding : kEncodings) {
    if (static_cast<int>(encoding.mnemonic) != i++) return false;
  }
  return i == kMnemonics;
}
static_assert(InMnemonicOrder(), "Name() finds an encoding by its mnemonic's number");

constexpr bool HasMemory(Form form) { return form == Form::kConfig || form == Form::kRows; }

// The three-byte VEX prefix, as numbers: the inverted fields already turned back.
struct Vex {
  uint8_t r, x, b;  // bit 3 of ModRM.reg, of SIB.index and of ModRM.rm or SIB.base
  uint8_t map;      // 2: opcodes 0F 38
  bool w, l;
  uint8_t vvvv;
  uint8_t prefix;
};

Vex ReadVex(uint8_t second, uint8_t third) {
  auto fields = static_cast<uint8_t>(~second);
  return {.r = static_cast<uint8_t>(fields >> 7 << 3),
          .x = static_cast<uint8_t>((fields >> 6 & 1) << 3),
          .b = static_cast<uint8_t>((fields >> 5 & 1) << 3),
          .map = static_cast<uint8_t>(second & 31),
          .w = (third & 128) != 0,
          .l = (third & 4) != 0,
          .vvvv = static_cast<uint8_t>(~third >> 3 & 15),
          .prefix = static_cast<uint8_t>(third & 3)};
}

int32_t ReadDisplacement(const uint8_t*& code, int bytes) {
  int32_t displacement = 0;
  if (bytes == 1) displacement = static_cast<int8_t>(*code);
  if (bytes == 4) memcpy(&displacement, code, 4);
  code += bytes;
  return displacement;
}

// What follows the ModRM byte. Source: SDM volume 2, tables 2-2 and 2-3, and 2.2.1 for 64-bit mode.
Memory ReadMemory(const uint8_t*& code, uint8_t mod, uint8_t rm, const Vex& vex) {
  Memory memory;
  int displacement_bytes = mod == 1 ? 1 : mod == 2 ? 4 : 0;
  if (rm == 4) {
    uint8_t sib = *code++;
    auto index = static_cast<int8_t>((sib >> 3 & 7) | vex.x);
    memory.scale = sib >> 6;
    if (index != 4) memory.index = index;
    if ((sib & 7) == 5 && mod == 0) {
      displacement_bytes = 4;
    } else {
      memory.base = static_cast<int8_t>((sib & 7) | vex.b);
    }
  } else if (rm == 5 && mod == 0) {
    memory.base = Memory::kRip;
    displacement_bytes = 4;
  } else {
    memory.base = static_cast<int8_t>(rm | vex.b);
  }
  memory.displacement = ReadDisplacement(code, displacement_bytes);
  return memory;
}

const Encoding* Find(uint8_t opcode, uint8_t prefix, bool memory) {
  for (const Encoding& encoding : kEncodings) {
    if (encoding.opcode == opcode && encoding.prefix == prefix && HasMemory(encoding.form) == memory) return &encoding;
  }
  return nullptr;
}

Decoded Undefined(const char* reason) { return {.verdict = Verdict::kUndefined, .reason = reason}; }

}  // namespace

const char* Name(Mnemonic mnemonic) { return kEncodings[static_cast<int>(mnemonic)].name; }

Decoded Decode(const uint8_t* code) {
  const uint8_t* start = code;
  if (code[0] != 0xC4 || (code[1] & 31) != 2) return {.verdict = Verdict::kOther};
  Vex vex = ReadVex(code[1], code[2]);
  uint8_t opcode = code[3];
  if (opcode != 0x49 && opcode != 0x4B && opcode != 0x5C && opcode != 0x5E) return {.verdict = Verdict::kOther};
  if (vex.w || vex.l) return Undefined("VEX.W and VEX.L must be 0");

  uint8_t mod = code[4] >> 6, reg = code[4] >> 3 & 7, rm = code[4] & 7;
  code += 5;
  const Encoding* encoding = Find(opcode, vex.prefix, mod != 3);
  if (!encoding) return Undefined("no instruction that this emulator knows has this prefix and operand");

  Form form = encoding->form;
  Instruction instruction = {.mnemonic = encoding->mnemonic};
  if (form != Form::kTiles && vex.vvvv != 0) return Undefined("VEX.vvvv must be 1111");
  if (form == Form::kRows && rm != 4) return Undefined("rows of a tile are addressed through a SIB byte");
  if ((form == Form::kConfig || form == Form::kNone) && reg != 0) return Undefined("ModRM.reg must be 0");
  if ((form == Form::kTile || form == Form::kNone) && rm != 0) return Undefined("ModRM.rm must be 0");
  if (vex.r != 0 || (form == Form::kTiles && (vex.b != 0 || vex.vvvv > 7))) return Undefined("there are 8 tiles");
  instruction.tile = reg;
  if (form == Form::kTiles) {
    instruction.sources[0] = rm;
    instruction.sources[1] = vex.vvvv;
  }
  if (HasMemory(form)) instruction.memory = ReadMemory(code, mod, rm, vex);
  instruction.length = static_cast<uint8_t>(code - start);
  return {.verdict = Verdict::kDecoded, .instruction = instruction};
}

}  // namespace amx
