"""Tile configurations."""

import struct
from collections.abc import Mapping


def tile_config(shapes: Mapping[int, tuple[int, int]], *, palette: int = 1, start_row: int = 0) -> bytes:
    """The 64 bytes that LDTILECFG reads.

    Args:
      shapes: (rows, bytes of a row) of each tile in use.
    """
    rows, row_bytes = [0] * 8, [0] * 8
    for tile, shape in shapes.items():
        rows[tile], row_bytes[tile] = shape
    return struct.pack("<BB14x8H16x8B8x", palette, start_row, *row_bytes, *rows)
