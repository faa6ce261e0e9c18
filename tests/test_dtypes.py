"""dtypes in and out, and what is refused at trace time with which message."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxce
from tests.cases import BY_ID, CATEGORICAL, MEASURES

EVERY = pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.id)
PAIRS = [m for m in MEASURES if len(m.floating) == 2]


def arguments(measure, dtype, shape=(3, 4)):
    args = measure.sample(np.random.default_rng(0), shape)
    return [jnp.asarray(a, a.dtype if a.dtype == np.int32 else dtype) for a in args]


def gradients(measure, args):
    floats = [args[i] for i in measure.floating]
    return jax.grad(lambda *f: measure.along(*f, args=args).sum(), tuple(range(len(floats))))(
        *floats
    )


@EVERY
@pytest.mark.parametrize(
    ("given", "result"),
    [
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ],
)
@pytest.mark.usefixtures("x64")
def test_dtype_of_result_and_gradient(measure, given, result):
    args = arguments(measure, given)
    out = jax.eval_shape(measure, *args)
    assert out.dtype == result
    assert not out.weak_type
    for grad in jax.eval_shape(lambda *a: gradients(measure, list(a)), *args):
        assert grad.dtype == given


@EVERY
def test_low_precision_is_computed_in_float32(measure):
    args = arguments(measure, "bfloat16")
    wide = [np.asarray(a if a.dtype == jnp.int32 else a.astype("float32")) for a in args]
    want = measure.value(*wide).astype(float)
    # Rounding to bfloat16 leaves the two sums of a KL unequal, so it may be near 0.
    np.testing.assert_allclose(measure(*args), want, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("measure", PAIRS, ids=lambda m: m.id)
def test_mixed_precision(measure):
    """A bfloat16 prediction against a float32 target: each gradient in its own dtype."""
    target, prediction = arguments(measure, "float32")
    args = [target, prediction.astype("bfloat16")]
    assert jax.eval_shape(measure, *args).dtype == "float32"
    one, other = jax.eval_shape(lambda *a: gradients(measure, list(a)), *args)
    assert (one.dtype, other.dtype) == (jnp.float32, jnp.bfloat16)


def test_python_scalars_and_lists():
    assert jaxce.binary_entropy(0.5, base=2) == 1
    assert jaxce.entropy([0.5, 0.5], base=2) == 1
    assert not jaxce.binary_entropy(0.5).weak_type
    assert jaxce.binary_entropy(0.5).dtype == jnp.float32
    assert jaxce.entropy(np.array([0.5, 0.5])).dtype == jnp.float32  # x64 is off
    assert jaxce.cross_entropy_with_logits(0, [0.0, 0.0]) == np.float32(np.log(2))


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint16", "bool", "complex64"])
@EVERY
def test_probabilities_and_logits_are_floating(measure, dtype):
    for i in measure.floating:
        if measure.id == "cross_entropy_with_logits" and i == 0 and "int" in dtype:
            continue  # integer targets are classes
        args = arguments(measure, "float32")
        args[i] = jnp.ones(args[i].shape, dtype)
        with pytest.raises(TypeError, match=f"float.*{dtype}"):
            measure(*args)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32", "int64"])
@pytest.mark.usefixtures("x64")
def test_labels_of_any_integer_dtype(dtype):
    got = jaxce.cross_entropy_with_logits(
        jnp.array([1, 0], dtype), jnp.zeros((2, 300), jnp.float32)
    )
    np.testing.assert_allclose(got, np.log(300), rtol=1e-6)


NAMES = {
    "p": "p",
    "q": "q",
    "x": "q_logits|logits",
    "a": "p_logits",
    "b": "q_logits",
    "y": "p",
}


@pytest.mark.parametrize("measure", PAIRS, ids=lambda m: m.id)
@pytest.mark.parametrize("shapes", [((3,), (3, 1)), ((3, 1), (3,)), ((), (3,)), ((3, 4), (3, 5))])
def test_shapes_that_do_not_fit(measure, shapes):
    args = [jnp.full(s, 0.5) for s in shapes]
    both = "(?s)(?=.*{})(?=.*{})".format(
        *(str(s).replace("(", r"\(").replace(")", r"\)") for s in shapes)
    )
    with pytest.raises(ValueError, match=both) as caught:
        measure(*args)
    for kind in measure.takes:
        assert any(n in str(caught.value) for n in NAMES[kind].split("|"))


@pytest.mark.parametrize("measure", PAIRS, ids=lambda m: m.id)
def test_equal_ranks_broadcast(measure):
    row, rows = (jnp.full(shape, 0.5) for shape in ((1, 4), (3, 4)))
    assert jax.eval_shape(measure, row, rows).shape == jax.eval_shape(measure, rows, rows).shape


def test_labels_that_do_not_fit():
    logits = jnp.zeros((3, 4))
    for shape in ((4,), (3, 1), (3, 4), ()):
        with pytest.raises(ValueError, match=r"\(3,\)"):
            jaxce.cross_entropy_with_logits(jnp.zeros(shape, jnp.int32), logits)
    with pytest.raises(ValueError, match="axis"):
        jaxce.cross_entropy_with_logits(jnp.int32(0), logits, axis=(0, 1))


@pytest.mark.parametrize("measure", CATEGORICAL, ids=lambda m: m.id)
@pytest.mark.parametrize("axis", [2, -3, (0, 0), (1, -1), (0, 5), 1.0, "x", ()])
def test_axis_that_does_not_fit(measure, axis):
    with pytest.raises((TypeError, ValueError), match=r"axis.*expected.*got"):
        measure(*arguments(measure, "float32"), axis=axis)


@pytest.mark.parametrize("measure", CATEGORICAL, ids=lambda m: m.id)
def test_mask_that_does_not_fit(measure):
    args = arguments(measure, "float32")
    for dtype in ("int32", "float32"):
        with pytest.raises((TypeError, ValueError), match=f"where.*bool.*{dtype}"):
            measure(*args, where=jnp.ones((3, 4), dtype))
    for shape in ((3,), (2, 4), (2, 3, 4)):
        with pytest.raises(
            ValueError,
            match=r"where.*\(3, 4\).*" + str(shape).replace("(", r"\(").replace(")", r"\)"),
        ):
            measure(*args, where=jnp.ones(shape, bool))


@pytest.mark.parametrize("measure", [m for m in MEASURES if m.base], ids=lambda m: m.id)
@pytest.mark.parametrize("base", [1, 0, -2, 0.5, np.inf, np.nan, "2", 2j])
def test_base_that_is_none(measure, base):
    kind = (TypeError, ValueError) if isinstance(base, str | complex) else ValueError
    with pytest.raises(kind, match=r"base.*expected.*got"):
        measure(*arguments(measure, "float32"), base=base)


@EVERY
def test_options_are_keywords(measure):
    args = arguments(measure, "float32")
    with pytest.raises(TypeError):
        measure(*args, -1)


def test_errors_come_at_trace_time():
    with pytest.raises(TypeError, match="p"):
        jax.eval_shape(BY_ID["entropy"], jax.ShapeDtypeStruct((3,), np.int32))


@pytest.mark.parametrize(
    ("name", "takes", "arrays"),
    [
        ("entropy_with_logits", "x", 0.1),
        ("cross_entropy_with_logits", "yx", 0.1),
        ("cross_entropy_with_logits", "px", 1.1),  # terms, in a branch that logits of -inf take
    ],
)
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what a CPU's compiler writes out")
def test_narrow_logits_are_not_written_out_wide(name, takes, arrays):
    """Each pass widens what it reads: temporaries in arrays of float32 logits."""
    shape = (256, 4096)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    args = [jax.ShapeDtypeStruct((256,), jnp.int32) if kind == "y" else x for kind in takes]
    compiled = jax.jit(lambda *a: getattr(jaxce, name)(*a).mean()).lower(*args).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < arrays * 4 * np.prod(shape)
