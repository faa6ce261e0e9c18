"""Checks of values: raised at once outside jit, recorded by checkify inside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxce import checks

INF, NAN = np.inf, np.nan
BAD = [
    (checks.distribution, [[0.5, 0.5], [0.7, 0.4]], {}, r"sums of 1.*1\.1.* at flat index 1"),
    (checks.distribution, [[0.5, 0.5], [1.5, -0.5]], {}, r"at least 0.*-0\.5 at flat index 3"),
    (checks.distribution, [[NAN, 0.5]], {}, r"finite.*nan at flat index 0"),
    (checks.distribution, [[INF, 0.5]], {}, r"finite.*inf at flat index 0"),
    (checks.distribution, [[0.0, 0.0]], {}, r"sums of 1.* 0\.0 at flat index 0"),
    (checks.logits, [[0.0, NAN]], {}, r"without NaN.*nan at flat index 1"),
    (checks.logits, [[0.0, 1.0], [0.0, INF]], {}, r"without NaN.*inf at flat index 3"),
    (checks.logits, [[0.0, 1.0], [-INF, -INF]], {}, r"above -inf.*1 without.*flat index 1"),
]
GOOD = [
    (checks.distribution, [[0.5, 0.5], [1.0, 0.0]], {}),
    (checks.distribution, [[0.5, 0.5, NAN]], {"where": np.array([True, True, False])}),
    (checks.distribution, [[0.3, 0.3]], {"where": np.array([False, False])}),
    (checks.distribution, np.zeros((0, 3)), {}),
    (checks.logits, [[0.0, -INF]], {}),
    (checks.logits, [[0.0, NAN]], {"where": np.array([True, False])}),
    (checks.logits, [[-INF, -INF]], {"where": np.array([False, False])}),
]


@pytest.mark.parametrize(("check", "values", "keywords", "message"), BAD)
def test_bad_values_raise(check, values, keywords, message):
    values = jnp.asarray(values, jnp.float32)
    with pytest.raises(ValueError, match=message):
        check(values, **keywords)


@pytest.mark.parametrize(("check", "values", "keywords", "message"), BAD)
def test_bad_values_are_recorded_inside_jit(check, values, keywords, message):
    values = jnp.asarray(values, jnp.float32)
    error, _ = jax.jit(checkify.checkify(lambda x: check(x, **keywords)))(values)
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        error.throw()


@pytest.mark.parametrize(("check", "values", "keywords"), GOOD)
def test_good_values_pass(check, values, keywords):
    values = jnp.asarray(values, jnp.float32)
    check(values, **keywords)
    error, _ = jax.jit(checkify.checkify(lambda x: check(x, **keywords)))(values)
    assert error.get() is None


@pytest.mark.parametrize("bad", [[0, 4], [0, -1], [-100, 1]])
def test_labels(bad):
    y = jnp.asarray(bad, jnp.int32)
    with pytest.raises(ValueError, match=r"labels: expected class indices in \[0, 4\)"):
        checks.labels(y, 4)
    error, _ = jax.jit(checkify.checkify(lambda y: checks.labels(y, 4)))(y)
    with pytest.raises(checkify.JaxRuntimeError, match=r"expected class indices in \[0, 4\)"):
        error.throw()
    checks.labels(jnp.where((y < 0) | (y > 3), 0, y), 4)
    checks.labels(y, 4, ignore_index=int(y[(y < 0) | (y > 3)][0]))


def test_types_are_named():
    with pytest.raises(TypeError, match="labels: expected an integer dtype"):
        checks.labels(jnp.zeros(3), 4)
    with pytest.raises(TypeError, match="x: expected a floating dtype"):
        checks.logits(jnp.zeros(3, jnp.int32))


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="under x64 no integer is cut")
def test_labels_that_jax_would_cut():
    """2**32 is class 0 to a compiled function, which the check is there to tell."""
    with pytest.raises(ValueError, match=r"labels: expected integers .* got 4294967296"):
        checks.labels(np.array([1, 2**32]), 4)
    checks.labels(np.array([1, 3]), 4)


def test_a_training_step_can_be_told():
    """What it is for: the same step, checked or not, with one line changed."""

    def step(x, y):
        checks.labels(y, x.shape[-1])
        return x.sum()

    checked = jax.jit(checkify.checkify(step))
    assert checked(jnp.ones((2, 3)), jnp.array([0, 2]))[0].get() is None
    assert "got 1 others, the first 3" in checked(jnp.ones((2, 3)), jnp.array([0, 3]))[0].get()
