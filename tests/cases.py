"""One table of the measures: what each takes, its oracles, how close it must be to them.

The accuracy, edges, laws, transforms and dtypes tests run over it: a new measure is a new row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import jaxce
from tests import oracles, oracles_binary, oracles_second

ULPS = 16
# The four kinds of argument, by one letter: p, q probabilities; x, a, b logits; y class indices.
PROBABILITIES, LOGITS, LABELS = "pq", "xab", "y"


def row_size(x):
    return np.abs(x).max(-1, keepdims=True, initial=0)


def own_size(args, exact):
    return np.abs(exact), ULPS


def of_largest_component(args, grads):
    """Each gradient is judged against the largest component of its row."""
    return [(row_size(g), ULPS) for g in grads]


def of_own_component(args, grads):
    """The elementwise measures: every component is a row of its own."""
    return [(np.abs(g), ULPS) for g in grads]


def of_normalizer_or_largest_logit(args, exact):
    return np.maximum(np.abs(exact), np.where(np.isinf(args[0]), 0, np.abs(args[0])).max(-1)), ULPS


def of_each_class(args, grads):
    """Cross-entropy by its logits, per component, with an ulp more for each nat of surprisal.

    That is what rounding an exponent costs.

    Where the target is one class, both halves of softmax - p never nearly cancel in exact
    arithmetic, and the gradient is judged against itself, however small it is.
    """
    p, x = args
    surprisal = oracles.surprisal_with_logits(x)
    weight = p.sum(-1, keepdims=True)
    size = np.maximum(weight * np.exp(-surprisal), p)
    size = np.where((p == weight) | (p == 0), np.abs(grads[1]), size)
    return [(row_size(grads[0]), ULPS), (size, ULPS + surprisal)]


def of_each_label(args, grads):
    surprisal = oracles.surprisal_with_logits(args[1])
    return [(np.abs(grads[0]), ULPS + surprisal)]


def of_each_weight(args, grads):
    """Surprisals pulled back with weights: the cross-entropy of these."""
    x, weights = args
    return of_each_class((weights, x), [weights, grads[0]])[1:]


def of_each_outcome(args, grads):
    """The binary cross-entropy by its logit: as of_each_class."""
    p, x = args
    with np.errstate(all="ignore"):
        surprisal = oracles_binary.softplus(-x)
    size = np.where((p == 0) | (p == 1), np.abs(grads[1]), np.maximum(np.exp(-surprisal), p))
    return [(np.abs(grads[0]), ULPS), (size, ULPS + np.maximum(surprisal, surprisal + x))]


@dataclass(frozen=True)
class Measure:
    name: str  # in jaxce
    takes: str  # one letter per argument, see above; also the corpus it is tested on
    value: Callable  # the oracle
    grad: Callable  # its gradients, one per floating argument
    hvp: Callable  # their derivatives along tangents
    value_bound: Callable = own_size  # (args, exact) -> the size that ulps are of, how many
    grad_bound: Callable = of_largest_component
    binary: bool = False
    reduces: bool = True
    base: bool = True
    symmetric: bool = False
    mixes: bool = False  # every result depends on the whole row, and grad takes the cotangent too

    @property
    def id(self):
        return self.name + ("[labels]" if LABELS in self.takes else "")

    @property
    def corpus(self):
        if self.symmetric and self.takes == "ab":
            return "ab, symmetric"
        return f"binary {self.takes}" if self.binary else self.takes

    @property
    def masks(self):
        return not self.binary and self.name != "surprisal"

    @property
    def floating(self):
        """The positions of the arguments that have a derivative."""
        return [i for i, kind in enumerate(self.takes) if kind != LABELS]

    def __call__(self, *args, **keywords):
        return getattr(jaxce, self.name)(*args, **keywords)

    def along(self, *floats, args, **keywords):
        """The measure as a function of its floating arguments alone."""
        args = list(args)
        for i, value in zip(self.floating, floats, strict=True):
            args[i] = value
        return self(*args, **keywords)

    def sample(self, rng, shape, dtype=np.float32):
        """Ordinary arguments, with nothing on an edge."""
        args = []
        for kind in self.takes:
            z = rng.standard_normal(shape)
            if kind == LABELS:
                args.append(rng.integers(0, shape[-1], shape[:-1]).astype(np.int32))
            elif kind in LOGITS:
                args.append((2 * z).astype(dtype))
            elif self.binary:
                args.append((0.02 + 0.96 * rng.random(shape)).astype(dtype))
            else:
                args.append((np.exp(z) / np.exp(z).sum(-1, keepdims=True)).astype(dtype))
        return tuple(args)


def measure(name, takes, module, **policy):
    oracle = name.removeprefix("binary_")
    if LABELS in takes:
        oracle = oracle.replace("logits", "labels")
    value, grad = (getattr(module, oracle + suffix) for suffix in ("", "_grad"))
    second = f"binary_{oracle}" if name.startswith("binary_") else oracle
    return Measure(name, takes, value, grad, getattr(oracles_second, second), **policy)


def binary(name, takes, **policy):
    policy = {"grad_bound": of_own_component, "binary": True, "reduces": False} | policy
    return measure(f"binary_{name}", takes, oracles_binary, **policy)


def categorical(name, takes, **policy):
    return measure(name, takes, oracles, **policy)


MEASURES = [
    categorical("surprisal", "p", reduces=False, grad_bound=of_own_component),
    categorical("entropy", "p"),
    categorical("cross_entropy", "pq"),
    categorical("kl_divergence", "pq"),
    categorical("js_divergence", "pq", symmetric=True),
    categorical("perplexity", "p", base=False),
    categorical("surprisal_with_logits", "x", grad_bound=of_each_weight, reduces=False, mixes=True),
    categorical("entropy_with_logits", "x"),
    categorical("cross_entropy_with_logits", "px", grad_bound=of_each_class),
    categorical("cross_entropy_with_logits", "yx", grad_bound=of_each_label),
    categorical("kl_divergence_with_logits", "ab"),
    categorical("js_divergence_with_logits", "ab", symmetric=True),
    categorical("perplexity_with_logits", "x", base=False),
    categorical("log_normalizer", "x", base=False, value_bound=of_normalizer_or_largest_logit),
    binary("entropy", "p"),
    binary("cross_entropy", "pq"),
    binary("kl_divergence", "pq"),
    binary("entropy_with_logits", "x"),
    binary("cross_entropy_with_logits", "px", grad_bound=of_each_outcome),
    binary("kl_divergence_with_logits", "ab"),
]
BY_ID = {m.id: m for m in MEASURES}
CATEGORICAL = [m for m in MEASURES if m.masks]
