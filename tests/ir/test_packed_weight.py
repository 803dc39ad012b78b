"""Where the elements of packed weights are."""

import itertools
import re

import numpy as np
import pytest

from jax_nano.ir.dot import Dot, Operand
from jax_nano.ir.dtypes import INT4_PER_WORD
from jax_nano.ir.packed_weight import Panels, rows_of_words, step_bit


@pytest.mark.parametrize("vnni", [1, 2, 4])
def test_a_place_in_panels_is_where_packing_puts_the_element(vnni):
    panels = Panels(matrices=2, rows=8, columns=12, width=4, vnni=vnni)
    matrices = np.arange(panels.elements).reshape(2, panels.rows, panels.columns)
    grouped = matrices.reshape(2, -1, vnni, panels.columns // panels.width, panels.width)
    memory = grouped.transpose(0, 3, 1, 4, 2).ravel()
    per_matrix, per_row, per_column = panels.strides
    for matrix, k, j in itertools.product(range(2), range(panels.rows), range(panels.columns)):
        assert memory[panels.place(matrix * per_matrix + k * per_row + j * per_column)] == matrices[matrix, k, j]


@pytest.mark.parametrize("changes", [{"width": 5}, {"vnni": 3}])
def test_panels_that_do_not_cut_a_matrix(changes):
    shape = {"rows": 8, "columns": 12, "width": 4, "vnni": 2} | changes
    text = f"8 x 12 is not cut into panels of {shape['width']} columns and {shape['vnni']} rows"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        Panels(matrices=1, **shape)


def test_eight_steps_fill_a_word():
    assert sorted(map(step_bit, range(INT4_PER_WORD))) == list(range(0, 32, 4))
    assert [step_bit(k + 1) - step_bit(k) for k in range(0, INT4_PER_WORD, 2)] == [16] * 4
    assert [rows_of_words(rows) for rows in (1, 8, 9)] == [1, 1, 2]


def test_arrays_of_a_product_are_as_they_lie_in_memory():
    matrices = (((1,), (0,)), ((), ()))
    a = Operand(shape=(3, 20), strides=(0, 1), dtype="bf16")
    dot = Dot.of(a, Operand.row_major((20, 5), "s4x8"), matrices, "f32")
    assert [*dot.arrays] == [("lhs", "bf16", 20, 0), ("rhs", "u32", 3 * 5, 1), ("out", "f32", 15, 2)]
    panels = Panels(matrices=1, rows=20, columns=8, width=4, vnni=2)
    dot = Dot.of(a, Operand(shape=(20, 5), strides=panels.strides[1:], dtype="bf16", panels=panels), matrices, "bf16")
    assert dot.arrays[1].elements == panels.elements
