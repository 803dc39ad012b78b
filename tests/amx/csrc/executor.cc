#include "executor.h"

#include <immintrin.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <type_traits>

namespace amx {
namespace {

// A row as 32-bit elements, in registers of whatever width there is.
constexpr int kLanes = kRowBytes / 4;
typedef float Floats __attribute__((vector_size(kRowBytes)));
typedef int32_t Integers __attribute__((vector_size(kRowBytes)));

bool AnyOf(const uint8_t* bytes, int count) {
  for (int i = 0; i < count; ++i) {
    if (bytes[i] != 0) return true;
  }
  return false;
}

// The checks say what is wrong, or null.
const char* CheckConfig(const Config& config) {
  if (config.palette > 1) return "palettes are 0 and 1";
  if (AnyOf(config.reserved, 14) || AnyOf(config.reserved_row_bytes, 16) || AnyOf(config.reserved_rows, 8)) {
    return "a reserved byte of the configuration is not 0";
  }
  for (int i = 0; i < kTiles; ++i) {
    if (config.row_bytes[i] > kRowBytes) return "a tile has at most 64 bytes a row";
    if (config.rows[i] > kMaxRows) return "a tile has at most 16 rows";
    if ((config.row_bytes[i] == 0) != (config.rows[i] == 0)) return "a tile has rows and bytes, or neither";
  }
  return nullptr;
}

const char* CheckConfigured(const Config& config, int tile) {
  return config.rows[tile] == 0 ? "a tile is not configured" : nullptr;
}

const char* CheckElements(const Config& config, int tile) {
  if (const char* wrong = CheckConfigured(config, tile)) return wrong;
  return config.row_bytes[tile] % 4 != 0 ? "a row is not a multiple of 4 bytes" : nullptr;
}

const char* CheckRows(const Config& config, int tile) {
  if (const char* wrong = CheckElements(config, tile)) return wrong;
  return config.start_row >= config.rows[tile] ? "start_row is beyond the tile" : nullptr;
}

const char* CheckProduct(const Config& config, int c, int a, int b) {
  if (c == a || c == b || a == b) return "the three tiles of a product must differ";
  for (int tile : {c, a, b}) {
    if (const char* wrong = CheckElements(config, tile)) return wrong;
  }
  if (config.rows[c] != config.rows[a]) return "the accumulator and the first source differ in rows";
  if (config.row_bytes[c] != config.row_bytes[b]) return "the accumulator and the second source differ in columns";
  return config.row_bytes[a] != 4 * config.rows[b] ? "the two sources differ in depth" : nullptr;
}

Outcome Undefined(const char* wrong) { return {Fault::kUndefined, wrong}; }

void Reset(const Config& config, Tiles& tiles) {
  tiles.config = config;
  memset(tiles.data, 0, sizeof(tiles.data));
}

Outcome LoadConfig(const uint8_t* memory, Tiles& tiles) {
  Config config;
  memcpy(&config, memory, sizeof(config));
  // Palette 0 is the initial state, whatever the other bytes.
  if (config.palette == 0) config = {};
  if (const char* wrong = CheckConfig(config)) return {Fault::kProtection, wrong};
  Reset(config, tiles);
  return {};
}

// `copy` moves a row between the tile and memory. Each row is counted only after it is there: memory may fault.
template <typename Copy>
Outcome MoveRows(int tile, Address address, Config& config, Copy copy) {
  while (config.start_row < config.rows[tile]) {
    copy(config.start_row, address.start + config.start_row * address.stride, config.row_bytes[tile]);
    std::atomic_signal_fence(std::memory_order_seq_cst);
    ++config.start_row;
  }
  config.start_row = 0;
  return {};
}

Outcome LoadTile(int tile, Address address, Tiles& tiles) {
  Config& config = tiles.config;
  if (const char* wrong = CheckRows(config, tile)) return Undefined(wrong);
  Tile& data = tiles.data[tile];
  memset(data[config.start_row], 0, sizeof(data) - config.start_row * kRowBytes);
  return MoveRows(tile, address, config,
                  [&](int row, const uint8_t* memory, size_t bytes) { memcpy(data[row], memory, bytes); });
}

Outcome StoreTile(int tile, Address address, Tiles& tiles) {
  if (const char* wrong = CheckRows(tiles.config, tile)) return Undefined(wrong);
  const Tile& data = tiles.data[tile];
  return MoveRows(tile, address, tiles.config,
                  [&](int row, uint8_t* memory, size_t bytes) { memcpy(memory, data[row], bytes); });
}

Outcome ZeroTile(int tile, Tiles& tiles) {
  if (const char* wrong = CheckConfigured(tiles.config, tile)) return Undefined(wrong);
  memset(tiles.data[tile], 0, sizeof(Tile));
  tiles.config.start_row = 0;
  return {};
}

// c: rows x lanes, a: rows x depth, b: depth x lanes, in 32-bit elements of the tiles.
struct Product {
  int rows, lanes, depth;
  Tile& c;
  const Tile& a;
  const Tile& b;
};

template <typename Element, typename Vector>
void AddToRow(uint8_t (&row)[kRowBytes], const Vector& addend, int lanes) {
  Element elements[kLanes];
  memcpy(elements, row, kRowBytes);
  for (int n = 0; n < lanes; ++n) elements[n] += static_cast<Element>(addend[n]);
  memcpy(row, elements, kRowBytes);
}

// Byte `j` of each element, in 32 bits.
template <typename Byte>
Integers WidenByte(const Integers& elements, int j) {
  typedef std::conditional_t<std::is_signed_v<Byte>, int32_t, uint32_t> Words __attribute__((vector_size(kRowBytes)));
  return reinterpret_cast<Integers>(reinterpret_cast<Words>(elements << (24 - 8 * j)) >> 24);
}

// Source: SDM volume 2, TDPBSSD/TDPBSUD/TDPBUSD/TDPBUUD. Sums wrap, so their order does not show.
template <typename AByte, typename BByte>
void MultiplyBytes(const Product& product) {
  Integers b[kMaxRows][4];
  for (int k = 0; k < product.depth; ++k) {
    Integers elements;
    memcpy(&elements, product.b[k], kRowBytes);
    for (int j = 0; j < 4; ++j) b[k][j] = WidenByte<BByte>(elements, j);
  }
  for (int m = 0; m < product.rows; ++m) {
    Integers sum = {};  // at most 64 products of 16 bits
    for (int k = 0; k < product.depth; ++k) {
      for (int j = 0; j < 4; ++j) sum += int32_t{static_cast<AByte>(product.a[m][4 * k + j])} * b[k][j];
    }
    AddToRow<uint32_t>(product.c[m], sum, product.lanes);
  }
}

float FromBf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
float FromFp16(uint16_t bits) { return _cvtsh_ss(bits); }  // exact for denormals too, whatever MXCSR says

struct Pairs {
  Floats evens, odds;
};

template <float Widen(uint16_t)>
Pairs WidenRow(const uint8_t (&row)[kRowBytes]) {
  uint16_t elements[2 * kLanes];
  memcpy(elements, row, kRowBytes);
  Pairs pairs;
  for (int n = 0; n < kLanes; ++n) {
    pairs.evens[n] = Widen(elements[2 * n]);
    pairs.odds[n] = Widen(elements[2 * n + 1]);
  }
  return pairs;
}

Floats FusedMultiplyAdd(float a, const Floats& b, Floats c) {
  for (int n = 0; n < kLanes; ++n) c[n] = std::fma(a, b[n], c[n]);
  return c;
}

// Source: SDM volume 2, TDPBF16PS; Intel's instruction set extensions reference, TDPFP16PS. The sums over even and over
// odd depths start from zero and are each a chain of fused operations; their sum is added to the accumulator.
template <float Widen(uint16_t)>
[[gnu::noinline]] void MultiplyPairs(const Product& product) {
  Pairs b[kMaxRows];
  for (int k = 0; k < product.depth; ++k) b[k] = WidenRow<Widen>(product.b[k]);
  for (int m = 0; m < product.rows; ++m) {
    Pairs a = WidenRow<Widen>(product.a[m]);
    Pairs sums = {};
    for (int k = 0; k < product.depth; ++k) {
      sums.evens = FusedMultiplyAdd(a.evens[k], b[k].evens, sums.evens);
      sums.odds = FusedMultiplyAdd(a.odds[k], b[k].odds, sums.odds);
    }
    AddToRow<float>(product.c[m], sums.evens + sums.odds, product.lanes);
  }
}

// The arithmetic of tile products: to nearest even, denormals are zeros both as operands and as results, no exception.
class TileArithmetic {
 public:
  TileArithmetic() { _mm_setcsr(_MM_MASK_MASK | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON | _MM_ROUND_NEAREST); }
  ~TileArithmetic() { _mm_setcsr(saved_); }
  TileArithmetic(const TileArithmetic&) = delete;
  TileArithmetic& operator=(const TileArithmetic&) = delete;

 private:
  unsigned saved_ = _mm_getcsr();
};

Outcome Multiply(const Instruction& instruction, Tiles& tiles) {
  int c = instruction.tile, a = instruction.sources[0], b = instruction.sources[1];
  Config& config = tiles.config;
  if (const char* wrong = CheckProduct(config, c, a, b)) return Undefined(wrong);
  Product product = {.rows = config.rows[c],
                     .lanes = config.row_bytes[c] / 4,
                     .depth = config.rows[b],
                     .c = tiles.data[c],
                     .a = tiles.data[a],
                     .b = tiles.data[b]};
  TileArithmetic arithmetic;
  switch (instruction.mnemonic) {
    case Mnemonic::kTdpbf16ps:
      MultiplyPairs<FromBf16>(product);
      break;
    case Mnemonic::kTdpfp16ps:
      MultiplyPairs<FromFp16>(product);
      break;
    case Mnemonic::kTdpbssd:
      MultiplyBytes<int8_t, int8_t>(product);
      break;
    case Mnemonic::kTdpbsud:
      MultiplyBytes<int8_t, uint8_t>(product);
      break;
    case Mnemonic::kTdpbusd:
      MultiplyBytes<uint8_t, int8_t>(product);
      break;
    case Mnemonic::kTdpbuud:
      MultiplyBytes<uint8_t, uint8_t>(product);
      break;
    default:
      break;
  }
  config.start_row = 0;
  return {};
}

}  // namespace

Outcome Execute(const Instruction& instruction, Address address, Tiles& tiles) {
  switch (instruction.mnemonic) {
    case Mnemonic::kLdtilecfg:
      return LoadConfig(address.start, tiles);
    case Mnemonic::kSttilecfg:
      memcpy(address.start, &tiles.config, sizeof(Config));
      return {};
    case Mnemonic::kTileloadd:
    case Mnemonic::kTileloaddt1:
      return LoadTile(instruction.tile, address, tiles);
    case Mnemonic::kTilestored:
      return StoreTile(instruction.tile, address, tiles);
    case Mnemonic::kTilezero:
      return ZeroTile(instruction.tile, tiles);
    case Mnemonic::kTilerelease:
      Reset({}, tiles);
      return {};
    default:
      return Multiply(instruction, tiles);
  }
}

}  // namespace amx
