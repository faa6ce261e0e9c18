"""What is asked of every library: the measures and losses, their exact answers, the inputs.

The inputs, the exact answers in longdouble and what an ulp is an ulp of are those of the tests.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.peers import SMOOTHING, class_weights
from jaxce import losses
from tests import cases, corpus, oracles
from tests import oracles_losses as exact
from tests.cases import ULPS
from tests.oracles_binary import sigmoid

LD = np.longdouble
ORDINARY, CONFIDENT, NEAR, EMPTY = "ordinary", "confident", "near-equal", "-inf or 0"
MASKED, HALF, LARGE = "masked", "bfloat16", "131072 classes"
REGIMES = (ORDINARY, CONFIDENT, NEAR, MASKED, EMPTY, HALF, LARGE)
_NEAR = ("apart", "equal", "e-06", "0.001", "almost tied", "all ", "two tied", "agreement", "near")
_SURE = (
    *(
        "confident",
        "peaked",
        "very far",
        "far ahead",
        "one-hot",
        "almost certain",
        "last is",
        "one class",
    ),
    *("* 100", "* 1000", "e+08", "ramp", "offset"),
)


@dataclass(frozen=True)
class Question:
    """A function of jaxce, and how its answers are judged."""

    name: str
    ours: Callable  # of the arguments in the order of the corpus
    takes: str  # one letter per argument: see tests/cases.py
    rows: str  # the corpus
    value: Callable
    grads: Callable  # (arguments, cotangent) -> one per position in wrt
    value_bound: Callable  # (arguments, exact) -> size that ulps are of, how many are promised
    grad_bounds: Callable  # (arguments, cotangent, exact gradients) -> the same for each
    wrt: Sequence[int]
    masks: bool = False
    weighted: bool = False  # several values per row, pulled back together
    sizes: Sequence[int] = (10, 1000, 131072)

    @property
    def binary(self) -> bool:
        return self.rows.startswith("binary")


def of_measure(measure: cases.Measure) -> Question:
    def grads(args, cotangent):
        return measure.grad(*args, *([cotangent] if measure.mixes else []))

    def grad_bounds(args, cotangent, slopes):
        return measure.grad_bound([*args, *([cotangent] if measure.mixes else [])], slopes)

    return Question(
        measure.id,
        measure,
        measure.takes,
        measure.corpus,
        measure.value,
        grads,
        measure.value_bound,
        grad_bounds,
        measure.floating,
        masks=measure.masks,
        weighted=measure.mixes,
        sizes=(1,) if measure.binary else (10, 1000, 131072),
    )


def of_loss(
    name: str,
    function: Callable,
    rows: str,
    value: Callable,
    grad: Callable,
    value_bound: Callable,
    grad_bound: Callable,
) -> Question:
    """A loss of predictions and targets; its oracles take the predictions first, as it does."""
    return Question(
        name,
        lambda y, x, **keywords: function(x, y, **keywords),
        rows.removeprefix("binary ").removesuffix(", modest"),
        rows,
        lambda y, x: value(x, y),
        lambda args, _: (grad(*reversed(args)),),
        lambda args, want: value_bound(*reversed(args), want),
        lambda args, _, slopes: (grad_bound(*reversed(args), slopes[0]),),
        (1,),
        sizes=(1,) if rows.startswith("binary") else (10, 1000),
    )


def own(x, y, want):
    return np.abs(want), ULPS


def by_class(weights: Callable) -> Callable:
    """As a cross-entropy whose surprisals have these weights."""
    return lambda x, y, slope: cases.of_each_weight((x, weights(x, y)), (slope,))[0]


def cross_entropy(name: str, ours: dict, oracle: Callable) -> Question:
    """An integer-label loss with options: `oracle` gives those of the exact one, for logits."""
    integer = losses.softmax_cross_entropy_with_integer_labels

    def call(x, y):
        return integer(x, y, **{k: v(x) if callable(v) else v for k, v in ours.items()})

    def spread(x, y):
        options = oracle(x)
        names = "label_smoothing", "class_weights"
        return exact.target_weights(x, y, None, *map(options.get, names))[1]

    return of_loss(
        name,
        call,
        "yx",
        lambda x, y: exact.cross_entropy(x, y, **oracle(x)),
        lambda x, y: exact.cross_entropy_grad(x, y, **oracle(x)),
        own,
        by_class(spread),
    )


def rounded_log(x, p, want):
    """What the rounding of log p costs."""
    with np.errstate(all="ignore"):
        log_p = np.log(p)
        apart = p * np.abs(log_p - oracles.log_softmax(x)) * (1 + np.abs(log_p))
    return np.where(p == 0, 0, apart).sum(-1) + np.abs(want), ULPS


def rounded_change(x, p, want):
    """What the rounding of log q - log p costs."""
    with np.errstate(all="ignore"):
        size = np.maximum(np.abs(x), np.abs(np.log(p)))
        off = (p == 0) | np.isinf(x)
        terms = np.where(off, np.exp(x), np.abs(np.exp(x) - p) * (1 + size))
        slopes = np.where(off, np.exp(x), np.exp(x) * (1 + size))
    if np.ndim(want) == np.ndim(x):
        return slopes + np.abs(want), ULPS
    return terms.sum(-1) + np.abs(want), ULPS


def focal(x, y, want, *, gradient):
    """One more ulp for each nat of a power's logarithm: what rounding an exponent costs."""
    with np.errstate(all="ignore"):
        nats = -np.log(y * sigmoid(-x) + (1 - y) * sigmoid(x))
    ulps = ULPS + 2 * np.where(np.isinf(nats), 0, nats) + gradient * np.abs(x)
    terms = np.abs(exact.sigmoid_focal_terms(x, y))
    return (terms.max(0) if gradient else np.abs(want)), ulps


MEASURES = [
    "entropy",
    "cross_entropy",
    "kl_divergence",
    "js_divergence",
    "surprisal_with_logits",
    "entropy_with_logits",
    "cross_entropy_with_logits",
    "cross_entropy_with_logits[labels]",
    "kl_divergence_with_logits",
    "log_normalizer",
    "binary_entropy",
    "binary_cross_entropy",
    "binary_kl_divergence",
    "binary_entropy_with_logits",
    "binary_cross_entropy_with_logits",
    "binary_kl_divergence_with_logits",
]
QUESTIONS = [of_measure(cases.BY_ID[name]) for name in MEASURES] + [
    cross_entropy(
        "label smoothing",
        {"label_smoothing": SMOOTHING},
        lambda x: {"label_smoothing": SMOOTHING},
    ),
    cross_entropy(
        "class weights",
        {"class_weights": lambda x: class_weights(x.shape[-1]).astype(x.dtype)},
        lambda x: {"class_weights": class_weights(x.shape[-1])},
    ),
    of_loss(
        "losses.kl_divergence",
        losses.kl_divergence,
        "px",
        exact.kl,
        exact.kl_grad,
        rounded_log,
        by_class(lambda x, p: p),
    ),
    of_loss(
        "losses.generalized_kl_divergence",
        losses.generalized_kl_divergence,
        "px, modest",
        exact.generalized_kl,
        exact.generalized_kl_grad,
        rounded_change,
        rounded_change,
    ),
    of_loss(
        "losses.poly_loss_cross_entropy",
        losses.poly_loss_cross_entropy,
        "px",
        exact.poly,
        exact.poly_grad,
        own,
        by_class(lambda x, p: exact.poly_weights(x, p, 2.0)),
    ),
    of_loss(
        "losses.sigmoid_focal_loss",
        losses.sigmoid_focal_loss,
        "binary px",
        exact.sigmoid_focal,
        exact.sigmoid_focal_grad,
        functools.partial(focal, gradient=False),
        functools.partial(focal, gradient=True),
    ),
]


def inputs(question: Question, classes: int, dtype: str) -> tuple[list[str], list[np.ndarray]]:
    """Names and arguments of the rows: only those whose probabilities sum to 1, up to rounding.

    What a library does with others is its own affair: some normalize, some do not.
    """
    rows = corpus.KINDS[question.rows.removesuffix(", modest")](classes)

    def asked(args):
        if question.binary:
            return True
        sums = [a.sum() for a, kind in zip(args, question.takes, strict=True) if kind in "pq"]
        modest = "modest" not in question.rows or np.max(args[-1]) < 80
        return modest and all(abs(s - 1) < 1e-5 for s in sums)

    names, args = corpus.rounded({n: a for n, a in rows.items() if asked(a)}, dtype)
    return names, list(args)


def regime(question: Question, name: str, args: Sequence[np.ndarray]) -> str:
    """Where a row belongs, by its name; of the binary ones, by its numbers."""
    if question.binary:
        return _binary_regime(question.takes, [float(a) for a in args])
    for kind, a in zip(question.takes, args, strict=True):
        # A target without mass is ordinary, unless a class has none in the prediction either.
        if np.isneginf(a).any() if kind in "xab" else kind in "pq" and (a == 0).any():
            return EMPTY
    if any(part in name for part in _NEAR):
        return NEAR
    return CONFIDENT if any(part in name for part in _SURE) else ORDINARY


def _binary_regime(takes: str, args: Sequence[float]) -> str:
    if any(kind in "pq" and a in (0, 1) for kind, a in zip(takes, args, strict=True)):
        return EMPTY
    if takes in ("ab", "pq"):
        a, b = args
        scale = 1 if takes == "ab" else min(a, 1 - a)
        if abs(a - b) <= 0.11 * scale:
            return NEAR
    sides = zip(takes, args, strict=True)
    sure = any(abs(a) >= 15 if kind in "xab" else min(a, 1 - a) < 1e-2 for kind, a in sides)
    return CONFIDENT if sure else ORDINARY


def mask(question: Question, args: Sequence[np.ndarray]) -> np.ndarray:
    """About half of the entries, the labels and the largest ones among them."""
    shape = next(a.shape for a, k in zip(args, question.takes, strict=True) if k != "y")
    where = corpus.generator("mask", question.name).random(shape) < 0.5
    for kind, a in zip(question.takes, args, strict=True):
        index = a if kind == "y" else a.argmax(-1)
        np.put_along_axis(where, index[..., None], True, -1)
    return where


def sliced(question: Question, args: Sequence[np.ndarray], where: np.ndarray) -> list[np.ndarray]:
    """What masked arguments mean to the oracles: nothing where the mask is False."""
    gone = {"x": -np.inf, "a": -np.inf, "b": -np.inf, "p": 0, "q": 0}
    return [
        a if kind == "y" else np.where(where, a, a.dtype.type(gone[kind]))
        for kind, a in zip(question.takes, args, strict=True)
    ]
