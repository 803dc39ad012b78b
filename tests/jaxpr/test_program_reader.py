"""Elementwise programs read out of jaxprs: what is in them, when two are equal, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jax_nano.ir.program import Constant, Input, Operation, Program, Unfusable
from jax_nano.jaxpr.program_reader import program_of

C = (2, 8, 16)


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def program(f, *arguments):
    return program_of(jax.make_jaxpr(f)(*arguments))


def names(program):
    return [operation.name for operation in program.operations]


def test_a_program_holds_inputs_constants_and_operations_by_number():
    assert program(lambda x, y: x * y + 2, array(*C), array(*C)) == Program(
        inputs=(
            Input(argument=0, dtype="f32", axes=(0, 1, 2)),
            Input(argument=1, dtype="f32", axes=(0, 1, 2)),
        ),
        constants=(Constant.of(2, "f32"),),
        operations=(
            Operation(name="mul", operands=(0, 1), dtype="f32"),
            Operation(name="add", operands=(3, 2), dtype="f32"),
        ),
        results=(4,),
    )


def test_a_program_prints_one_line_for_each_value():
    text = str(program(lambda x, b: jnp.tanh(x + b) * 0.5, array(*C), array(16)))
    assert text == (
        "%0: f32 = argument 0 along [0, 1, 2]\n"
        "%1: f32 = argument 1 along [2]\n"
        "%2: f32 = 0.5\n"
        "%3: f32 = add %0 %1\n"
        "%4: f32 = tanh %3\n"
        "%5: f32 = mul %4 %2\n"
        "return %5"
    )


@pytest.mark.parametrize("sizes", [(2, 8, 16), (3, 5, 7)])
def test_programs_do_not_know_sizes(sizes):
    def bias_and_gelu(x, b):
        return jax.nn.gelu(x + b)

    one = program(bias_and_gelu, array(*C), array(16))
    other = program(bias_and_gelu, array(*sizes), array(sizes[-1]))
    assert one == other
    assert hash(one) == hash(other)


def test_constants_differ_by_their_bits():
    nan, zero = Constant.of(np.nan, "f32"), Constant.of(0.0, "f32")
    assert nan == Constant.of(np.nan, "f32")
    assert zero != Constant.of(-0.0, "f32")
    assert zero != Constant.of(0, "s32")
    assert np.isnan(nan.number)
    assert Constant.of(-1, "u8").number == 255


@pytest.mark.parametrize(
    ("f", "shape", "axes", "strides"),
    [
        (lambda x, y: x + y, (), (), (0, 0, 0)),
        (lambda x, y: x + y, (16,), (2,), (0, 0, 1)),
        (lambda x, y: x + y[:, None], (8,), (1,), (0, 1, 0)),
        (lambda x, y: x + y, (8, 1), (1, None), (0, 1, 0)),
        (lambda x, y: x + y, (2, 1, 16), (0, None, 2), (16, 0, 1)),
        (lambda x, y: x + y, (2, 8, 16), (0, 1, 2), (128, 16, 1)),
        (lambda x, y: x + y.T, (16, 8), (2, 1), (0, 1, 8)),
        (lambda x, y: x + y.reshape(16), (1, 16, 1), (None, 2, None), (0, 0, 1)),
        (lambda x, y: x + jnp.squeeze(y, 0), (1, 16), (None, 2), (0, 0, 1)),
        (lambda x, y: x + lax.broadcast_in_dim(y, C, (0, 2)), (2, 16), (0, 2), (16, 0, 1)),
    ],
)
def test_an_input_knows_the_axes_it_lies_along(f, shape, axes, strides):
    source = program(f, array(*C), array(*shape)).inputs[1]
    assert source.axes == axes
    of_argument = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    assert source.strides(of_argument, 3) == strides


def test_work_on_a_row_stays_work_on_a_row():
    found = program(lambda x, b: x * jnp.exp(b * 2), array(*C), array(16))
    assert names(found) == ["mul", "exp", "mul"]
    assert found.inputs[1].axes == (2,)


def test_an_argument_used_in_two_ways_is_two_inputs():
    found = program(lambda x, b: x + b[:, None] + b[None, :], array(8, 8), array(8))
    assert [(source.argument, source.axes) for source in found.inputs] == [(0, (0, 1)), (1, (0,)), (1, (1,))]


def test_arguments_that_are_not_used_are_left_out_but_the_product_stays():
    found = program(lambda x, a, b: b * 2.0, array(*C), array(*C), array(*C))
    assert [source.argument for source in found.inputs] == [0, 2]


def test_axes_of_size_1_do_not_count():
    assert program(lambda x, b: x + b, array(1, 16), array(16)).inputs[0].axes == (None, 1)


def test_several_results_share_what_they_have_in_common():
    found = program(lambda x, b: (x + b, jax.nn.relu(x + b)), array(*C), array(16))
    assert names(found) == ["add", "max"]
    assert found.results == (3, 4)


def test_calls_are_written_out():
    @jax.custom_vjp
    def doubled(x):
        return x * 2

    doubled.defvjp(lambda x: (doubled(x), None), lambda _, g: (g * 2,))

    def f(x):
        x = jax.nn.relu(x)  # custom_jvp and jit
        x = doubled(x)
        x = jax.checkpoint(jnp.tanh)(x)
        x = checkpoint_name(x, "here")
        return lax.stop_gradient(jax.jit(lambda y: y + 1)(x)).copy()

    assert names(program(f, array(*C))) == ["max", "mul", "tanh", "add"]


def test_the_activations_of_jax_are_programs():
    activations = (
        "celu elu gelu hard_sigmoid hard_swish hard_tanh leaky_relu log_sigmoid mish relu relu6 selu sigmoid silu "
        "soft_sign softplus sparse_plus sparse_sigmoid squareplus tanh"
    )
    for name in activations.split():
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            assert program(getattr(jax.nn, name), array(*C, dtype=dtype)).results, name
    assert "erfc" in names(program(lambda x: jax.nn.gelu(x, approximate=False), array(*C)))


def test_their_derivatives_are_programs():
    def backward(x, g):
        return jax.vjp(jax.nn.gelu, x)[1](g)[0]

    assert "tanh" in names(program(backward, array(*C), array(*C)))


def test_a_mask_is_a_select():
    found = program(lambda x, m: jnp.where(m, x, -1e9), array(*C), array(2, 1, 16, dtype=bool))
    assert found.operations == (Operation(name="select_n", operands=(1, 2, 0), dtype="f32"),)
    assert found.inputs[1] == Input(argument=1, dtype="pred", axes=(0, None, 2))
    assert found.constants == (Constant.of(-1e9, "f32"),)


def test_conversions_of_constants_are_done_at_once(x64):
    found = program(lambda x: lax.convert_element_type(np.float64(0.1), np.float32) * x, array(*C))
    assert found.constants == (Constant.of(np.float32(0.1), "f32"),)
    assert names(found) == ["mul"]


def test_parameters_that_matter_are_kept():
    found = program(lambda x: lax.integer_pow(lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN), 3), array(*C))
    assert found.operations[0].param("rounding_method") == 1
    assert found.operations[1].param("y") == 3


def test_uniform_arrays_are_constants():
    twos = np.full(C, 2, np.float32)
    assert program(lambda x: x * twos, array(*C)).constants == (Constant.of(2, "f32"),)


def test_reduced_precision_rounds():
    found = program(lambda x: lax.reduce_precision(x, 8, 7), array(*C))
    assert [(operation.name, operation.dtype) for operation in found.operations] == [
        ("convert", "bf16"),
        ("convert", "f32"),
    ]


def test_an_input_can_be_read_in_another_type():
    found = program(lambda x, b: x + b, array(*C, dtype=jnp.bfloat16), array(16, dtype=jnp.bfloat16))
    read = found.with_input(0, "f32")
    assert [source.dtype for source in read.inputs] == ["f32", "bf16"]
    assert read.operations == (
        Operation(name="convert", operands=(0,), dtype="bf16"),
        Operation(name="add", operands=(2, 1), dtype="bf16"),
    )
    assert read.with_input(0, "f32") == read


def test_a_widened_program_rounds_what_is_converted_and_its_results():
    found = program(lambda x, b: jnp.tanh(x + b) * 2, array(*C, dtype=jnp.bfloat16), array(16, dtype=jnp.bfloat16))
    wide = found.with_input(0, "f32").widened()
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
    found = program(lambda x, b: jax.nn.gelu(x + b), array(*C), array(16))
    assert found.widened() == found


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (lambda x: jnp.cumsum(x, 0), "cumsum is not elementwise, or has no vector code"),
        (lambda x: x + jnp.arange(16.0), "iota is not elementwise, or has no vector code"),
        (lambda x: lax.rem(x, x), "rem of f32 has no vector code"),
        (lambda x: x.sum(), "a result has the shape (), the product (2, 8, 16)"),
        (lambda x: x.T, "a result has the shape (16, 8, 2), the product (2, 8, 16)"),
        (lambda x: x.reshape(4, 4, 16), "a result has the shape (4, 4, 16), the product (2, 8, 16)"),
        (lambda x: (x.reshape(16, 16) * 2).reshape(C), "reshape from (16, 16) to (2, 8, 16) moves elements"),
        (lambda x: x * np.arange(16.0), "a constant array of the shape (16,) is not an argument; make it one"),
        (lambda x: lax.reduce_precision(x, 4, 3), "reduce_precision to 4 bits of exponent and 3 of mantissa"),
        (lambda x: lax.select_n((x > 0).astype(np.int32), x, x, x), "select_n by s32 among 3"),
        (lambda x: lax.complex(x, x).real, "complex64[2,8,16] is no array of numbers"),
    ],
)
def test_what_is_not_elementwise_is_refused_with_the_reason(f, reason):
    with pytest.raises(Unfusable) as error:
        program(f, array(*C))
    assert str(error.value) == reason


def test_the_product_itself_must_lie_along_the_result():
    with pytest.raises(Unfusable, match="the product is read along other axes than the result's"):
        program(lambda x: x + x.T, array(8, 8))


def test_operations_of_types_without_vector_code_are_refused(x64):
    with pytest.raises(Unfusable, match="sin of f64 has no vector code"):
        program(jnp.sin, array(*C, dtype=jnp.float64))
    with pytest.raises(Unfusable, match="div of s64 has no vector code"):
        program(lambda x: lax.div(x, x), array(*C, dtype=jnp.int64))
