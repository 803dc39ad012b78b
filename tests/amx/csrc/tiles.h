// A thread's tile registers and their configuration.
//
// Source: Intel SDM, volume 1, chapter 18; volume 2, LDTILECFG.
#pragma once

#include <cstdint>

namespace amx {

constexpr int kTiles = 8;
constexpr int kMaxRows = 16;
constexpr int kRowBytes = 64;

// As in memory. All zero is the initial state: no tile configured.
struct Config {
  uint8_t palette;
  uint8_t start_row;  // where an interrupted load or store goes on
  uint8_t reserved[14];
  uint16_t row_bytes[kTiles];  // "colsb"
  uint8_t reserved_row_bytes[16];
  uint8_t rows[kTiles];
  uint8_t reserved_rows[8];
};
static_assert(sizeof(Config) == 64);

// What lies beyond a tile's configured rows and bytes is zero.
using Tile = uint8_t[kMaxRows][kRowBytes];

struct Tiles {
  Config config;
  alignas(64) Tile data[kTiles];
};

}  // namespace amx
