"""Elementwise programs read out of jaxprs: what is in them, when two are equal, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from elementwise_runner import program
from jax import lax

from jax_nano.ir.program import Constant, Input, Operation, Program, Unfusable

X = jax.ShapeDtypeStruct((), jnp.float32)
NARROW = jax.ShapeDtypeStruct((), jnp.bfloat16)


def names(program):
    return [operation.name for operation in program.operations]


def test_a_program_holds_inputs_constants_and_operations_by_number():
    assert program(lambda x, y: x * y + 2, X, X) == Program(
        inputs=(
            Input(argument=0, dtype="f32"),
            Input(argument=1, dtype="f32"),
        ),
        constants=(Constant.of(2, "f32"),),
        operations=(
            Operation(name="mul", operands=(0, 1), dtype="f32"),
            Operation(name="add", operands=(3, 2), dtype="f32"),
        ),
        results=(4,),
    )


def test_a_program_prints_one_line_for_each_value():
    text = str(program(lambda x, b: jnp.tanh(x + b) * 0.5, X, X))
    assert text == (
        "%0: f32 = argument 0\n"
        "%1: f32 = argument 1\n"
        "%2: f32 = 0.5\n"
        "%3: f32 = add %0 %1\n"
        "%4: f32 = tanh %3\n"
        "%5: f32 = mul %4 %2\n"
        "return %5"
    )


def test_constants_differ_by_their_bits():
    nan, zero = Constant.of(np.nan, "f32"), Constant.of(0.0, "f32")
    assert nan == Constant.of(np.nan, "f32")
    assert zero != Constant.of(-0.0, "f32")
    assert zero != Constant.of(0, "s32")
    assert np.isnan(nan.number)
    assert Constant.of(-1, "u8").number == 255


def test_arguments_that_are_not_used_are_left_out_but_the_product_stays():
    found = program(lambda x, a, b: b * 2.0, X, X, X)
    assert [source.argument for source in found.inputs] == [0, 2]


def test_several_results_share_what_they_have_in_common():
    found = program(lambda x, b: (x + b, jax.nn.relu(x + b)), X, X)
    assert names(found) == ["add", "max"]
    assert found.results == (3, 4)


def test_calls_are_inlined():
    found = program(lambda x: jax.jit(lambda y: y + 1)(jax.nn.relu(x)), X)  # relu is a custom_jvp of a jit
    assert names(found) == ["max", "add"]


def test_the_activations_of_jax_are_programs():
    activations = (
        "celu elu gelu hard_sigmoid hard_swish hard_tanh leaky_relu log_sigmoid mish relu relu6 selu sigmoid silu "
        "soft_sign softplus sparse_plus sparse_sigmoid squareplus tanh"
    )
    for name in activations.split():
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            assert program(getattr(jax.nn, name), jax.ShapeDtypeStruct((), dtype)).results, name


def test_their_derivatives_are_programs():
    def backward(x, g):
        return jax.vjp(jax.nn.gelu, x)[1](g)[0]

    assert "tanh" in names(program(backward, X, X))


def test_copies_are_no_operations():
    assert names(program(lambda x: jnp.copy(x) + 1, X)) == ["add"]
    assert "erfc" in names(program(lambda x: jax.nn.gelu(x, approximate=False), X))


def test_a_mask_is_a_select():
    found = program(lambda x, m: jnp.where(m, x, -1e9), X, jax.ShapeDtypeStruct((), bool))
    assert found.operations == (Operation(name="select_n", operands=(1, 2, 0), dtype="f32"),)
    assert found.inputs[1] == Input(argument=1, dtype="pred")
    assert found.constants == (Constant.of(-1e9, "f32"),)


def test_conversions_of_constants_are_done_at_once(x64):
    found = program(lambda x: lax.convert_element_type(np.float64(0.1), np.float32) * x, X)
    assert found.constants == (Constant.of(np.float32(0.1), "f32"),)
    assert names(found) == ["mul"]


def test_parameters_that_matter_are_kept():
    found = program(lambda x: lax.integer_pow(lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN), 3), X)
    assert found.operations[0].param("rounding_method") == 1
    assert found.operations[1].param("y") == 3


def test_a_widened_program_rounds_what_is_converted_and_its_results():
    wide = program(lambda x, b: jnp.tanh(x.astype(jnp.bfloat16) + b) * 2, X, NARROW).widened()
    assert [(operation.name, operation.dtype) for operation in wide.operations] == [
        ("convert", "f32"),
        ("convert", "bf16"),
        ("convert", "f32"),
        ("add", "f32"),
        ("tanh", "f32"),
        ("mul", "f32"),
        ("convert", "bf16"),
    ]
    assert [operation.operands for operation in wide.operations[:2]] == [(1,), (0,)]
    assert wide.constants == (Constant.of(2, "f32"),)


def test_a_widened_program_of_wide_types_is_the_same():
    found = program(lambda x, b: jax.nn.gelu(x + b), X, X)
    assert found.widened() == found


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (lambda x: lax.reduce_precision(x, 4, 3), "reduce_precision is not elementwise, or has no vector code"),
        (lambda x: lax.rem(x, x), "rem of f32 has no vector code"),
        (lambda x: lax.select_n((x > 0).astype(np.int32), x, x, x), "select_n by s32 among 3"),
        (lambda x: lax.complex(x, x).real, "complex64[] is no array of numbers"),
    ],
)
def test_what_is_not_elementwise_is_refused_with_the_reason(f, reason):
    with pytest.raises(Unfusable) as error:
        program(f, X)
    assert str(error.value) == reason


def test_operations_of_types_without_vector_code_are_refused(x64):
    with pytest.raises(Unfusable, match="sin of f64 has no vector code"):
        program(jnp.sin, jax.ShapeDtypeStruct((), jnp.float64))
    with pytest.raises(Unfusable, match="div of s64 has no vector code"):
        program(lambda x: lax.div(x, x), jax.ShapeDtypeStruct((), jnp.int64))
