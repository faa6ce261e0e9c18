"""The adapter, inside the real flax.nnx.MultiMetric."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import metrics

nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")

from jaxce.metrics.nnx import NnxMetric  # noqa: E402 - it needs flax


@pytest.fixture(autouse=True)
def promotion():
    """Flax's own average divides a float by an integer."""
    with jax.numpy_dtype_promotion("standard"):
        yield


LOGITS = jnp.array([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0], [0.0, 0.0, 5.0]])
LABELS = jnp.array([0, 1, 2])


def multi():
    return nnx.MultiMetric(
        ce=NnxMetric(metrics.CrossEntropy.empty(base=2)),
        top2=NnxMetric(metrics.Accuracy.empty(top_k=2)),
        loss=NnxMetric(metrics.Mean.empty(), "loss"),
        theirs=nnx.metrics.Average("loss"),
    )


def test_in_a_multi_metric():
    both = multi()
    ours = metrics.CrossEntropy.empty(base=2)
    for i in range(3):
        where = jnp.arange(3) <= i
        both.update(logits=LOGITS, labels=LABELS, loss=jnp.arange(3.0), mask=where)
        ours = ours.update(LOGITS, LABELS, where)
    got = both.compute()
    np.testing.assert_allclose(got["ce"], ours.compute(), rtol=1e-7)
    np.testing.assert_allclose(got["loss"], 4 / 6, rtol=1e-7)
    np.testing.assert_allclose(got["loss"], got["theirs"], rtol=1e-6)
    assert got["top2"] == 1
    both.reset()
    assert all(np.isnan(v) for v in both.compute().values())


def test_in_a_compiled_step():
    both = multi()

    @nnx.jit
    def step(both, logits, labels):
        both.update(logits=logits, labels=labels, loss=logits[:, 0])

    step(both, LOGITS, LABELS)
    step(both, LOGITS, LABELS)
    want = metrics.CrossEntropy.empty(base=2).update(LOGITS, LABELS).compute()
    np.testing.assert_allclose(both.compute()["ce"], want, rtol=1e-7)
    graph, state = nnx.split(both)
    restored = nnx.merge(graph, jax.tree.map(jnp.asarray, state))
    np.testing.assert_allclose(restored.compute()["ce"], want, rtol=1e-7)


def test_a_masked_nan_does_not_count():
    """Where flax multiplies by the mask, and NaN stays NaN."""
    both = multi()
    values = jnp.array([1.0, jnp.nan, 4.0])
    both.update(logits=LOGITS, labels=LABELS, loss=values, mask=~jnp.isnan(values))
    assert both.compute()["loss"] == 2.5


def test_a_collection_takes_what_is_its_own():
    members = {"ce": metrics.CrossEntropy.empty(base=2), "length": metrics.Mean.empty()}
    both = nnx.MultiMetric(
        ours=NnxMetric(metrics.Collection.empty(**members)), theirs=nnx.metrics.Average("loss")
    )
    both.update(logits=LOGITS, labels=LABELS, loss=jnp.ones(3), length=jnp.arange(3.0))
    got = both.compute()
    assert got["theirs"] == 1
    assert got["ours"]["length"] == 1


def test_what_is_missing_is_named():
    with pytest.raises(TypeError, match="labels"):
        multi().update(logits=LOGITS, loss=jnp.ones(3))
