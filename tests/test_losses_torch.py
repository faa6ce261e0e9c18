"""The losses against PyTorch: an independent implementation of the same definitions.

PyTorch is a peer and not a dependency: without it these tests are skipped.
"""

import jax
import numpy as np
import pytest

from jaxce import losses

torch = pytest.importorskip(
    "torch", reason="PyTorch, the peer that these tests compare with, is not installed"
)
F = torch.nn.functional

CLASSES, IGNORED = 5, -100
WEIGHTS = np.array([0.5, 1, 2, 3, 0.25], np.float32)
integer = losses.softmax_cross_entropy_with_integer_labels
# The keywords of ours, in torch's words.
NAMES = {"class_weights": "weight", "label_smoothing": "label_smoothing"}
KEYWORDS = [
    {},
    {"label_smoothing": 0.1},
    {"class_weights": WEIGHTS},
    {"label_smoothing": 0.3, "class_weights": WEIGHTS},
]
EVERY = pytest.mark.parametrize("keywords", KEYWORDS, ids=lambda k: ", ".join(k) or "plain")


def spelled(keywords):
    return {NAMES[k]: torch.tensor(v) if k == "class_weights" else v for k, v in keywords.items()}


def sample(*shape, ignore=False):
    rng = np.random.default_rng(0)
    x = (3 * rng.standard_normal(shape)).astype(np.float32)
    labels = rng.integers(0, shape[1], (shape[0], *shape[2:]))
    if ignore:
        labels.reshape(-1)[::3] = IGNORED
    p = np.exp(rng.standard_normal(shape))
    return x, labels, (p / p.sum(1, keepdims=True)).astype(np.float32)


def theirs(function, x, target, **keywords):
    """Value and gradient of torch's, in its float64, of the same numbers."""
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    target = torch.tensor(target)
    if target.is_floating_point():
        target = target.double()
    keywords = {k: v.double() if torch.is_tensor(v) else v for k, v in keywords.items()}
    value = function(x, target, **keywords)
    value.sum().backward()
    return value.detach().numpy(), x.grad.numpy()


def ours(function, x):
    value, pull = jax.vjp(function, x)
    return value, pull(np.ones(value.shape, np.float32))[0]


def compare(got, want):
    for mine, other in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


@EVERY
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("shape", [(6, CLASSES), (4, CLASSES, 3), (2, CLASSES, 3, 2)])
def test_class_labels(shape, ignore, keywords):
    """torch has the classes along axis 1, whatever the rank."""
    x, labels, _ = sample(*shape, ignore=ignore)
    got = ours(
        lambda x: integer(x, labels.astype(np.int32), 1, ignore_index=IGNORED, **keywords), x
    )
    want = theirs(F.cross_entropy, x, labels, reduction="none", **spelled(keywords))
    compare(got, want)


@EVERY
@pytest.mark.parametrize("shape", [(6, CLASSES), (2, CLASSES, 3, 2)])
def test_soft_labels(shape, keywords):
    x, _, p = sample(*shape)
    got = ours(lambda x: losses.softmax_cross_entropy(x, p, 1, **keywords), x)
    want = theirs(F.cross_entropy, x, p, reduction="none", **spelled(keywords))
    compare(got, want)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_any_axis(axis):
    x, labels, _ = sample(4, CLASSES, 3)
    keywords = KEYWORDS[-1]
    got = integer(np.moveaxis(x, 1, axis), labels.astype(np.int32), axis, **keywords)
    want, _ = theirs(F.cross_entropy, x, labels, reduction="none", **spelled(keywords))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@EVERY
def test_mean_over_the_weight_of_the_labels(keywords):
    """torch's reduction="mean": over the sum of the labels' weights, ignored ones left out."""
    x, labels, _ = sample(7, CLASSES, ignore=True)
    labels = labels.astype(np.int32)
    kept = labels != IGNORED
    weights = keywords.get("class_weights", np.ones(CLASSES, np.float32))

    def mean(x):
        loss = integer(x, labels, ignore_index=IGNORED, **keywords)
        return loss.sum() / (weights[np.where(kept, labels, 0)] * kept).sum()

    want = theirs(F.cross_entropy, x, labels.astype(int), reduction="mean", **spelled(keywords))
    compare(ours(mean, x), want)


def test_mean_with_weights_is_the_same():
    """Without smoothing, losses.mean(weights=) says it shorter."""
    x, labels, _ = sample(7, CLASSES, ignore=True)
    kept = labels != IGNORED
    loss = integer(x, labels.astype(np.int32), ignore_index=IGNORED)
    got = losses.mean(loss, where=kept, weights=WEIGHTS[np.where(kept, labels, 0)])
    want, _ = theirs(F.cross_entropy, x, labels, weight=torch.tensor(WEIGHTS))
    np.testing.assert_allclose(got, want, rtol=1e-5)


@EVERY
def test_mean_over_the_examples(keywords):
    """The other denominator: reduction="none", then the mean of those that are not ignored."""
    x, labels, _ = sample(7, CLASSES, ignore=True)
    kept = labels != IGNORED

    def mean(x):
        loss = integer(x, labels.astype(np.int32), ignore_index=IGNORED, **keywords)
        return losses.mean(loss, where=kept)

    def other(x, labels, **keywords):
        return F.cross_entropy(x, labels, reduction="none", **keywords).sum() / kept.sum()

    compare(ours(mean, x), theirs(other, x, labels, **spelled(keywords)))


@EVERY
def test_mean_of_soft_labels(keywords):
    """Here torch's mean is over the examples, weights or not."""
    x, _, p = sample(6, CLASSES)
    got = ours(lambda x: losses.mean(losses.softmax_cross_entropy(x, p, **keywords)), x)
    compare(got, theirs(F.cross_entropy, x, p, reduction="mean", **spelled(keywords)))


@pytest.mark.parametrize("pos_weight", [None, np.array([0.5, 1, 2, 3, 10], np.float32)])
def test_binary(pos_weight):
    x, _, p = sample(6, CLASSES)
    p[0] = [0, 1, 0, 1, 0.5]
    got = ours(lambda x: losses.sigmoid_binary_cross_entropy(x, p, pos_weight=pos_weight), x)
    want = theirs(
        F.binary_cross_entropy_with_logits,
        x,
        p,
        reduction="none",
        pos_weight=None if pos_weight is None else torch.tensor(pos_weight),
    )
    compare(got, want)


def test_divergences():
    x, _, p = sample(6, CLASSES)
    log_q = x - np.log(np.exp(x).sum(1, keepdims=True))
    for function, target, log_target in (
        (losses.kl_divergence, p, False),
        (losses.kl_divergence_with_log_targets, np.log(p), True),
    ):
        want, _ = theirs(F.kl_div, log_q, target, reduction="none", log_target=log_target)
        np.testing.assert_allclose(function(log_q, target), want.sum(1), rtol=1e-5, atol=1e-6)
