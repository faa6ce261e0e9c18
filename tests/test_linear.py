"""Linear softmax losses against the plain product in float64, at sizes that divide nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxce import losses
from tests.conftest import thorough


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """As where tokens cannot be spread; see test_linear_sharding.py."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)


REDUCTIONS = thorough([("mean",), ("sum",), (None,)], lambda reduction: reduction != "sum")
ROUNDING = 1e-5  # of the largest entry: float32 products of this length


def problem(tokens=37, features=5, classes=101, scale=1.0, bias=True):
    """Inputs, kernel, bias and labels; the bias is None if there is none."""
    rng = np.random.default_rng(tokens * classes)
    x = rng.standard_normal((tokens, features)).astype(np.float32)
    w = (scale * rng.standard_normal((features, classes))).astype(np.float32)
    b = rng.standard_normal(classes).astype(np.float32) if bias else None
    return x, w, b, rng.integers(0, classes, tokens)


def exact(
    x, w, b, labels, weights, *, label_smoothing=0.0, soft_cap=None, z_loss=0.0, classes=None
):
    """Loss of each token, and the gradients of their weighted sum, in float64."""
    x, w = np.float64(x), np.float64(w)
    b = np.zeros(w.shape[1]) if b is None else np.float64(b)
    raw = x @ w + b
    logits, slope = raw, 1.0
    if soft_cap is not None:
        logits = soft_cap * np.tanh(raw / soft_cap)
        slope = 1 - np.tanh(raw / soft_cap) ** 2
    exists = (np.arange(w.shape[1]) < (classes or w.shape[1])) & (b > -np.inf)
    logits = np.where(exists, logits, -np.inf)
    m = logits.max(-1, keepdims=True)
    log_z = m + np.log(np.exp(logits - m).sum(-1, keepdims=True))
    target = label_smoothing * exists / exists.sum() + (1 - label_smoothing) * (
        labels[:, None] == np.arange(w.shape[1])
    )
    p = np.exp(logits - log_z)
    s = np.where(exists, log_z - np.where(exists, logits, 0), 0)
    loss = (target * s).sum(-1) + z_loss * log_z[:, 0] ** 2
    over_logits = (
        weights[:, None] * (p - target + 2 * z_loss * log_z * p) * np.where(exists, slope, 0)
    )
    return loss, (over_logits @ w.T, x.T @ over_logits, over_logits.sum(0))


def close(ours, exact, tolerance=ROUNDING):
    ours, exact = np.asarray(ours), np.asarray(exact)
    assert ours.shape == exact.shape
    np.testing.assert_allclose(ours, exact, rtol=0, atol=tolerance * (np.abs(exact).max() + 1e-30))


def both_ways(x, w, b, labels, weights, **keywords):
    """Values per token with their pulled-back weights, and the reduced loss with its gradients."""
    given = (x, w) if b is None else (x, w, b)

    def per_token(*given):
        bias = given[2] if len(given) > 2 else None
        return losses.linear_softmax_cross_entropy(*given[:2], labels, bias=bias, **keywords)

    def total(*given):
        bias = given[2] if len(given) > 2 else None
        return losses.linear_softmax_cross_entropy(
            *given[:2], labels, bias=bias, weights=weights, reduction="sum", **keywords
        )

    @jax.jit
    def run(*given):
        values, pull = jax.vjp(per_token, *given)
        return values, pull(weights), jax.value_and_grad(total, tuple(range(len(given))))(*given)

    return run(*given)


CASES = {
    "one of each": ({"tokens": 1, "features": 1, "classes": 1}, {}),
    "primes": ({"tokens": 37, "features": 5, "classes": 101}, {"chunk_size": 8}),
    "primes, small logits": (
        {"tokens": 37, "features": 11, "classes": 2049, "scale": 0.02},
        {"chunk_size": 7},
    ),
    "one token at a time": ({"tokens": 5, "features": 3, "classes": 17}, {"chunk_size": 1}),
    "without bias": (
        {"tokens": 64, "features": 24, "classes": 96, "bias": False},
        {"chunk_size": 16},
    ),
    "smoothed": ({}, {"label_smoothing": 0.1, "chunk_size": 16}),
    "capped": ({}, {"soft_cap": 3.0}),
    "z-loss": ({}, {"z_loss": 0.01, "chunk_size": 10}),
    "all at once": (
        {"scale": 0.02},
        {"label_smoothing": 0.1, "soft_cap": 3.0, "z_loss": 0.01, "chunk_size": 16},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name):
    sizes, keywords = CASES[name]
    x, w, b, labels = problem(**sizes)
    weights = np.linspace(0, 2, len(labels)).astype(np.float32)
    options = {k: v for k, v in keywords.items() if k != "chunk_size"}
    loss, gradients = exact(x, w, b, labels, weights, **options)
    values, pulled, (total, of_total) = both_ways(x, w, b, labels, weights, **keywords)
    close(values, loss)
    close(total, (weights * loss).sum())
    for ours in (pulled, of_total):
        for a, g in zip(ours, gradients, strict=False):
            close(a, g)


@pytest.mark.parametrize("name", ["primes", "all at once"])
def test_chunks_from_all_over_the_batch(name, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    jax.clear_caches()
    test_values_and_gradients(name)
    jax.clear_caches()


def test_tied_embedding_table():
    x, w, b, labels = problem()
    weights = np.ones(len(labels), np.float32)
    loss, (over_x, over_w, _) = exact(x, w, b, labels, weights)
    values, pulled, (_, of_total) = both_ways(
        x, w.T, b, labels, weights, class_axis=0, chunk_size=8
    )
    close(values, loss)
    for a in (pulled, of_total):
        close(a[0], over_x)
        close(a[1], over_w.T)


def test_classes_that_are_padding():
    """What comes after num_classes has no probability and no gradient; its labels are bad ones."""
    x, w, b, labels = problem(classes=104)
    labels = labels % 101
    weights = np.ones(len(labels), np.float32)
    keywords = {"label_smoothing": 0.1}
    loss, gradients = exact(x, w, b, labels, weights, classes=101, **keywords)
    values, pulled, (_, of_total) = both_ways(
        x, w, b, labels, weights, num_classes=101, chunk_size=8, **keywords
    )
    close(values, loss)
    for ours in (pulled, of_total):
        for a, g in zip(ours, gradients, strict=True):
            close(a, g)
        assert not np.asarray(ours[1])[:, 101:].any()
    bad = losses.linear_softmax_cross_entropy(x, w, np.full_like(labels, 102), num_classes=101)
    assert np.isnan(bad).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_tokens_that_do_not_count_do_not_exist(reduction):
    """NaN in their inputs, junk in their labels: the rest alone gives the same numbers."""
    x, w, b, labels = problem()
    keep = np.arange(37) % 3 != 0
    ignored = np.arange(37) % 5 == 1
    dirty = np.where(keep[:, None], x, np.nan)
    dirty_labels = np.where(ignored, -100, np.where(keep, labels, 10**6))

    def ours(x, w, b, labels, **keywords):
        loss = losses.linear_softmax_cross_entropy(
            x, w, labels, bias=b, reduction=reduction, chunk_size=8, **keywords
        )
        return loss.sum() if reduction is None else loss

    def run(*given, **keywords):
        return jax.value_and_grad(ours, (0, 1, 2))(*given, **keywords)

    rest = keep & ~ignored
    value, gradients = run(dirty, w, b, dirty_labels, where=keep, ignore_index=-100)
    wanted, (over_x, over_w, over_b) = run(x[rest], w, b, labels[rest])
    close(value, wanted, 1e-6)
    close(gradients[0][rest], over_x)
    assert not np.asarray(gradients[0])[~rest].any()
    close(gradients[1], over_w)
    close(gradients[2], over_b)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_weight_of_zero(reduction):
    """Hides what is NaN from every gradient; what is finite is the derivative over the weight."""
    x, w, b, labels = problem()
    weights = np.where(np.arange(len(labels)) < 3, 0, 1).astype(np.float32)
    loss, _ = exact(x, w, b, labels, weights)
    # Bad labels, of the kernel's padding too, and inputs that are none.
    bad_x, bad_labels = x.copy(), labels.copy()
    bad_x[1], bad_labels[2] = np.nan, 101

    def total(x, w, b, weights, labels):
        return losses.linear_softmax_cross_entropy(
            x, w, labels, bias=b, weights=weights, reduction=reduction, chunk_size=7
        ).sum()

    step = jax.value_and_grad(total, (0, 1, 2, 3))
    value, gradients = step(x, w, b, weights, labels)
    hidden_value, hidden = step(bad_x, w, b, weights, bad_labels)
    close(hidden_value, value)
    jax.tree.map(close, hidden[:3], gradients[:3])
    over_weights = loss if reduction != "mean" else (loss - loss[3:].mean()) / weights.sum()
    close(gradients[3], over_weights)
    seen = np.setdiff1d(np.arange(len(loss)), [1, 2])
    close(hidden[3][seen], gradients[3][seen])
    teacher = jax.grad(
        lambda x, w: losses.linear_distillation_loss(
            x, w, x[:, ::-1], w[::-1], weights=weights, reduction=reduction
        ).sum(),
        (0, 1),
    )
    jax.tree.map(close, teacher(bad_x, w), teacher(np.where(weights[:, None] == 0, 0, x), w))


def test_no_features():
    loss = losses.linear_softmax_cross_entropy(
        np.zeros((3, 0), np.float32), np.zeros((0, 7), np.float32), np.arange(3)
    )
    close(loss, np.full(3, np.log(7)))


@pytest.mark.parametrize("reduction", ["mean", None])
def test_float16(reduction):
    """A mean over many tokens leaves more of the gradients of logits than float16 could hold."""
    x, w, _, labels = problem(tokens=1024, features=32, classes=8192, scale=0.02, bias=False)
    x, w = jnp.asarray(x, jnp.float16), jnp.asarray(w, jnp.float16)
    weights = np.full(len(labels), 1 / len(labels))
    _, (over_x, over_w, _) = exact(x, w, None, labels, weights)

    def mean(x, w):
        return losses.linear_softmax_cross_entropy(x, w, labels, reduction=reduction).mean()

    dx, dw = jax.grad(mean, (0, 1))(x, w)
    close(dw, over_w, 2e-3)
    # Where no token has the label, nothing but what float16 can hold of so small a number is lost.
    others = np.setdiff1d(np.arange(w.shape[1]), labels)
    close(dw[:, others], over_w[:, others], 0.05)
    close(dx, over_x, 5e-3)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_left(reduction):
    x, w, _, labels = problem()
    value, gradients = jax.value_and_grad(
        lambda x, w: losses.linear_softmax_cross_entropy(
            x, w, labels, where=np.zeros(37, bool), reduction=reduction
        ),
        (0, 1),
    )(np.full_like(x, np.nan), w)
    assert value == 0
    assert not any(np.asarray(g).any() for g in gradients)


@pytest.mark.parametrize("reduction", ["mean", None])
def test_no_tokens(reduction):
    x, w, _, labels = problem()

    def loss(x, w):
        values = losses.linear_softmax_cross_entropy(x, w, labels[:0], reduction=reduction)
        assert values.shape == ((0,) if reduction is None else ())
        return values.sum()

    value, gradients = jax.value_and_grad(loss, (0, 1))(x[:0], w)
    assert value == 0
    assert not any(np.asarray(g).any() for g in gradients)


@pytest.mark.parametrize("label", [-1, 101, 2**31 - 1])
def test_bad_label_is_loud(label):
    """NaN for that token, in value and gradient, and for it alone."""
    x, w, _, labels = problem()
    labels = np.where(np.arange(37) == 4, label, labels)
    values, pull = jax.vjp(
        lambda x: losses.linear_softmax_cross_entropy(x, w, labels, chunk_size=8), x
    )
    (over_x,) = pull(jnp.ones(37))
    total, of_total = jax.value_and_grad(
        lambda x: losses.linear_softmax_cross_entropy(x, w, labels, chunk_size=8, reduction="sum")
    )(x)
    assert np.isnan(total)
    for bad in (np.isnan(values), np.isnan(over_x).all(-1), np.isnan(of_total).all(-1)):
        assert np.flatnonzero(bad).tolist() == [4]
    assert np.isfinite(np.delete(over_x, 4, 0)).all()


def test_impossible_class():
    """A bias of -inf takes a class out; as a label it costs inf, with a finite gradient."""
    x, w, b, _labels = problem(tokens=3)
    b[7] = -np.inf
    loss, gradients = jax.value_and_grad(
        lambda x, w, b: losses.linear_softmax_cross_entropy(
            x, w, np.array([7, 1, 2]), bias=b, reduction="sum"
        ),
        (0, 1, 2),
    )(x, w, b)
    assert loss == np.inf
    assert all(np.isfinite(g).all() for g in gradients)


def test_higher_ranks_and_a_mean_with_weights():
    x, w, b, labels = problem(tokens=36)
    weights = np.linspace(0, 1, 36).astype(np.float32)
    loss, _ = exact(x, w, b, labels, weights)

    def mean(weights):
        return losses.linear_softmax_cross_entropy(
            x.reshape(3, 12, 5),
            w,
            labels.reshape(3, 12),
            bias=b,
            weights=weights.reshape(3, 12),
            reduction="mean",
            chunk_size=8,
        )

    value, over_weights = jax.value_and_grad(mean)(weights)
    close(value, (weights * loss).sum() / weights.sum())
    close(over_weights, (loss - (weights * loss).sum() / weights.sum()) / weights.sum())


@pytest.mark.parametrize("reduction", ["sum", None])
def test_every_derivative(reduction):
    """Forward mode, Hessian-vector products both ways, and vmap agree with the plain loss."""
    x, w, b, labels = problem(tokens=13, classes=23)
    rng = np.random.default_rng(0)
    along = tuple(rng.standard_normal(a.shape).astype(np.float32) for a in (x, w, b))

    def ours(x, w, b, weights=None):
        loss = losses.linear_softmax_cross_entropy(
            x, w, labels, bias=b, weights=weights, reduction=reduction, chunk_size=4, z_loss=0.1
        )
        return loss if reduction else loss.sum()

    def plain(x, w, b, weights=1.0):
        logits = x @ w + b[None]
        loss = losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        return (weights * (loss + 0.1 * losses.z_loss(logits))).sum()

    def weighted(f):
        """Differentiated over the weights of the tokens and over the kernel."""

        def size(weights, w):
            gradients = jax.grad(lambda *a: f(*a, weights), (0, 1))(x, w, b)
            return sum(jnp.sum(jnp.square(g)) for g in gradients)

        return jax.grad(size, (0, 1))(jnp.linspace(0.5, 1.5, 13), w)

    def derivatives(f):
        def gradient(*a):
            return jax.grad(f, (0, 1, 2))(*a)

        def directional(*a):
            return sum(jnp.vdot(g, t) for g, t in zip(gradient(*a), along, strict=True))

        return (
            jax.jvp(f, (x, w, b), along)[1],
            jax.jvp(gradient, (x, w, b), along)[1],
            jax.grad(directional, (0, 1, 2))(x, w, b),
            jax.vmap(gradient, (None, 0, None))(x, np.stack([w, 2 * w]), b),
            weighted(f),
        )

    with jax.default_matmul_precision("float32"):
        jax.tree.map(
            close, jax.jit(lambda: derivatives(ours))(), jax.jit(lambda: derivatives(plain))()
        )


def test_statistics():
    """Under any cotangent, each of the three has the gradient of the plain measure."""
    x, w, b, labels = problem()
    keep = np.arange(37) != 3
    rng = np.random.default_rng(0)
    cotangents = tuple(rng.standard_normal(37).astype(np.float32) for _ in range(3))

    def plain(x, w, b):
        logits = jnp.where(keep[:, None], x @ w + b[None], 0)
        nll = losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        log_z = jax.nn.logsumexp(logits, -1)
        p = jax.nn.softmax(logits)
        return tuple(jnp.where(keep, s, 0) for s in (nll, log_z, log_z - (p * logits).sum(-1)))

    def ours(x, w, b):
        return tuple(
            losses.linear_softmax_statistics(x, w, labels, bias=b, where=keep, chunk_size=8)
        )

    values, pull = jax.vjp(ours, x, w, b)
    wanted, wanted_pull = jax.vjp(plain, x, w, b)
    jax.tree.map(close, values, wanted)
    jax.tree.map(close, pull(cotangents), wanted_pull(cotangents))


@pytest.mark.parametrize("reduction", ["mean", None])
def test_distillation(reduction):
    """As the plain loss of both products; gradients over the student and the teacher."""
    xs, ws, bs, _ = problem(features=5)
    xt, wt, bt, _ = problem(features=7)
    keep = np.arange(37) % 4 != 0

    def ours(xs, ws, xt, wt):
        loss = losses.linear_distillation_loss(
            xs, ws, xt, wt, temperature=2.0, student_bias=bs, teacher_bias=bt, where=keep,
            reduction=reduction, chunk_size=8,
        )  # fmt: skip
        return loss if reduction else losses.mean(loss, where=keep)

    def plain(xs, ws, xt, wt):
        loss = losses.distillation_loss(xs @ ws + bs[None], xt @ wt + bt[None], temperature=2.0)
        return losses.mean(loss, where=keep)

    every = (0, 1, 2, 3)
    value, gradients = jax.jit(jax.value_and_grad(ours, every))(xs, ws, xt, wt)
    wanted, wanted_gradients = jax.jit(jax.value_and_grad(plain, every))(xs, ws, xt, wt)
    close(value, wanted)
    jax.tree.map(close, gradients, wanted_gradients)


@pytest.mark.parametrize("reduction", ["mean", None])
def test_bfloat16(reduction):
    """Products of bfloat16, everything else in float32: small target gradients are not erased."""
    x, w, _, labels = problem(tokens=24, features=32, classes=300)
    x, w = jnp.asarray(x, jnp.bfloat16), jnp.asarray(w, jnp.bfloat16)
    weights = np.full(24, 1 / 24, np.float32)
    loss, (over_x, over_w, _) = exact(x, w, None, labels, weights)

    def ours(x, w):
        loss = losses.linear_softmax_cross_entropy(x, w, labels, reduction=reduction, chunk_size=5)
        return loss if reduction else loss.mean()

    value, (dx, dw) = jax.jit(jax.value_and_grad(ours, (0, 1)))(x, w)
    assert value.dtype == jnp.float32
    assert dx.dtype == dw.dtype == jnp.bfloat16
    close(value, loss.mean())
    close(dx.astype(np.float32), over_x, 2**-7)  # both factors of a term rounded, and the sum
    close(dw.astype(np.float32), over_w, 2**-7)  # both factors of a term rounded, and the sum


def test_float64(x64):
    x, w, b, labels = problem()
    x, w, b = np.float64(x), np.float64(w), np.float64(b)
    weights = np.ones(37)
    loss, gradients = exact(x, w, b, labels, weights)
    values, pulled, (_, of_total) = both_ways(x, w, b, labels, weights, chunk_size=8)
    close(values, loss, 1e-13)
    for ours in (pulled, of_total):
        for a, g in zip(ours, gradients, strict=True):
            close(a, g, 1e-13)


def test_no_nan_in_passing(no_nans):
    """Every operation by itself, with tokens that do not count and a class that does not exist."""
    x, w, b, labels = problem(tokens=5, classes=7)
    b[3] = -np.inf
    labels = np.where(np.arange(5) == 1, -100, 2)
    value, gradients = jax.value_and_grad(
        lambda x, w, b: losses.linear_softmax_cross_entropy(
            x, w, labels, bias=b, ignore_index=-100, label_smoothing=0.1, reduction="mean",
            chunk_size=2,
        ),
        (0, 1, 2),
    )(x, w, b)  # fmt: skip
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": np.zeros((4, 6), np.float32)}, ValueError, "inputs: expected a last axis of 5"),
        ({"inputs": np.zeros((4, 5), int)}, TypeError, "inputs: expected a floating dtype"),
        ({"kernel": np.zeros((5,), np.float32)}, ValueError, "kernel: expected 2 dimensions"),
        (
            {"labels": np.zeros((3,), int)},
            ValueError,
            r"labels: expected one per token, shape \(4,\)",
        ),
        ({"labels": np.zeros((4,), np.float32)}, TypeError, "labels: expected an integer dtype"),
        ({"bias": np.zeros((5,), np.float32)}, ValueError, "bias: expected one number per class"),
        ({"weights": np.zeros((3,), np.float32)}, ValueError, "weights: expected a shape that"),
        ({"where": np.zeros((3,), bool)}, ValueError, "where: expected a shape that broadcasts"),
        ({"class_axis": 2}, ValueError, "class_axis: expected -1 or 0"),
        ({"chunk_size": 0}, ValueError, "chunk_size: expected a positive number"),
        ({"reduction": "avg"}, ValueError, "reduction: expected None, 'mean' or 'sum', got 'avg'"),
        ({"kernel": np.zeros((5, 0), np.float32)}, ValueError, "kernel: expected at least one cl"),
        ({"bias": np.zeros(7, np.complex64)}, TypeError, "bias: expected real numbers"),
        ({"weights": np.zeros(4, np.complex64)}, TypeError, "weights: expected real numbers"),
        ({"chunk_size": 2.0}, ValueError, "chunk_size: expected a positive number .* got 2.0"),
        ({"gradient_dtype": jnp.int32}, TypeError, "gradient_dtype: expected a floating dtype"),
        ({"num_classes": 5.5}, ValueError, "num_classes: expected an integer from 1 to 7"),
        ({"num_classes": 8}, ValueError, "num_classes: expected an integer from 1 to 7"),
        ({"ignore_index": 2.5}, TypeError, "ignore_index: expected an integer dtype"),
        ({"ignore_index": np.arange(2)}, ValueError, "ignore_index: expected one label"),
        ({"z_loss": np.zeros(4, np.float32)}, ValueError, "z_loss: expected a number"),
        ({"label_smoothing": np.zeros(4)}, ValueError, "label_smoothing: expected a number"),
        ({"soft_cap": np.ones(7)}, ValueError, "soft_cap: expected a number"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_errors_name_the_argument(change, error, message):
    arguments = {
        "inputs": np.zeros((4, 5), np.float32),
        "kernel": np.zeros((5, 7), np.float32),
        "labels": np.zeros(4, int),
    } | change
    with pytest.raises(error, match=message):
        losses.linear_softmax_cross_entropy(**arguments)
