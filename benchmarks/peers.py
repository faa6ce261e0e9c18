"""What other libraries have for each question, as functions of the same arrays in the same order.

Each library is one function that imports it and returns {question: functions}; where several
functions answer a question, all are listed, and a peer is judged by the best of them. Questions are
those of benchmarks/questions.py. A function that takes `where` can leave entries out.

Distribution objects answer for logits only: most normalize probabilities again, and have the
gradients of another function. torchmetrics does too, so only its values are judged there.
"""

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import nn
from jax.scipy import special

Peers = dict[str, list[Callable]]
SMOOTHING = 0.125


def class_weights(classes: int) -> np.ndarray:
    """Exact in any floating dtype."""
    return 0.5 + (np.arange(classes) % 8) / 8


def total(terms):
    return terms.sum(-1)


def picked(terms, labels):
    return jnp.take_along_axis(terms, labels[..., None], -1)[..., 0]


def masked_sum(terms, where):
    return jnp.sum(terms, -1, where=where)


def jax_peers() -> Peers:
    """jax.nn, jax.scipy.special, and the formula that a textbook has where these have none."""

    def log_softmax(x, where=None):
        return nn.log_softmax(x, where=where)

    def entropy_with_logits(x, where=None):
        return -masked_sum(nn.softmax(x, where=where) * nn.log_softmax(x, where=where), where)

    def kl_with_logits(a, b, where=None):
        log_p, log_q = log_softmax(a, where), log_softmax(b, where)
        return masked_sum(nn.softmax(a, where=where) * (log_p - log_q), where)

    def both(function):
        return lambda p, *q: function(p, *q) + function(1 - p, *(1 - v for v in q))

    def binary_kl_with_logits(a, b):
        on = nn.sigmoid(a) * (nn.log_sigmoid(a) - nn.log_sigmoid(b))
        return on + nn.sigmoid(-a) * (nn.log_sigmoid(-a) - nn.log_sigmoid(-b))

    return {
        "entropy": [
            lambda p, where=None: masked_sum(special.entr(p), where),
            lambda p, where=None: -masked_sum(p * jnp.log(p), where),
        ],
        "cross_entropy": [lambda p, q, where=None: -masked_sum(special.xlogy(p, q), where)],
        "kl_divergence": [
            lambda p, q, where=None: masked_sum(special.rel_entr(p, q), where),
            lambda p, q, where=None: masked_sum(special.kl_div(p, q), where),
        ],
        "surprisal_with_logits": [lambda x, where=None: -log_softmax(x, where)],
        "entropy_with_logits": [
            entropy_with_logits,
            lambda x, where=None: masked_sum(special.entr(nn.softmax(x, where=where)), where),
        ],
        "cross_entropy_with_logits": [
            lambda p, x, where=None: -masked_sum(p * log_softmax(x, where), where)
        ],
        "cross_entropy_with_logits[labels]": [
            lambda y, x, where=None: -picked(log_softmax(x, where), y)
        ],
        "kl_divergence_with_logits": [kl_with_logits],
        "log_normalizer": [lambda x, where=None: nn.logsumexp(x, -1, where=where)],
        "binary_entropy": [both(special.entr)],
        "binary_cross_entropy": [both(lambda p, q: -special.xlogy(p, q))],
        "binary_kl_divergence": [both(special.rel_entr), both(special.kl_div)],
        "binary_entropy_with_logits": [
            lambda x: nn.softplus(x) - x * nn.sigmoid(x),
            lambda x: special.entr(nn.sigmoid(x)) + special.entr(nn.sigmoid(-x)),
        ],
        "binary_cross_entropy_with_logits": [
            lambda p, x: -p * nn.log_sigmoid(x) - (1 - p) * nn.log_sigmoid(-x)
        ],
        "binary_kl_divergence_with_logits": [binary_kl_with_logits],
    }


def optax_peers() -> Peers:
    """optax.losses."""
    from optax import losses

    def smoothed(y, x):
        return losses.smooth_labels(nn.one_hot(y, x.shape[-1], dtype=x.dtype), SMOOTHING)

    return {
        "cross_entropy_with_logits": [
            lambda p, x, where=None: losses.softmax_cross_entropy(x, p, where=where),
            lambda p, x: losses.safe_softmax_cross_entropy(x, p),
        ],
        "cross_entropy_with_logits[labels]": [
            lambda y, x, where=None: losses.softmax_cross_entropy_with_integer_labels(
                x, y, where=where
            )
        ],
        "kl_divergence": [lambda p, q: losses.kl_divergence(jnp.log(q), p)],
        "kl_divergence_with_logits": [
            lambda a, b, where=None: losses.kl_divergence_with_log_targets(
                nn.log_softmax(b, where=where), nn.log_softmax(a, where=where), where=where
            ),
            lambda a, b: losses.kl_divergence(nn.log_softmax(b), nn.softmax(a)),
        ],
        "binary_cross_entropy_with_logits": [
            lambda p, x: losses.sigmoid_binary_cross_entropy(x, p)
        ],
        "label smoothing": [lambda y, x: losses.softmax_cross_entropy(x, smoothed(y, x))],
        "losses.kl_divergence": [lambda p, x: losses.kl_divergence(nn.log_softmax(x), p)],
        "losses.generalized_kl_divergence": [lambda p, x: losses.convex_kl_divergence(x, p)],
        "losses.poly_loss_cross_entropy": [lambda p, x: losses.poly_loss_cross_entropy(x, p)],
        "losses.sigmoid_focal_loss": [lambda p, x: losses.sigmoid_focal_loss(x, p)],
    }


def distrax_peers() -> Peers:
    """distrax.Categorical and Bernoulli."""
    import distrax

    return {
        "entropy_with_logits": [lambda x: distrax.Categorical(x).entropy()],
        "cross_entropy_with_logits[labels]": [lambda y, x: -distrax.Categorical(x).log_prob(y)],
        "kl_divergence_with_logits": [
            lambda a, b: distrax.Categorical(a).kl_divergence(distrax.Categorical(b))
        ],
        "binary_entropy_with_logits": [lambda x: distrax.Bernoulli(x).entropy()],
        "binary_cross_entropy_with_logits": [lambda p, x: -distrax.Bernoulli(x).log_prob(p)],
        "binary_kl_divergence_with_logits": [
            lambda a, b: distrax.Bernoulli(a).kl_divergence(distrax.Bernoulli(b))
        ],
    }


def numpyro_peers() -> Peers:
    """numpyro.distributions."""
    from numpyro import distributions as d

    return {
        "entropy": [lambda p: d.CategoricalProbs(p).entropy()],
        "entropy_with_logits": [lambda x: d.CategoricalLogits(x).entropy()],
        "cross_entropy_with_logits[labels]": [lambda y, x: -d.CategoricalLogits(x).log_prob(y)],
        "binary_entropy_with_logits": [lambda x: d.BernoulliLogits(x).entropy()],
    }


def torch_peers() -> Peers:
    """torch.nn.functional, torch.special and torch.distributions."""
    import torch
    from torch import distributions as d
    from torch.nn import functional as f

    def categorical(x):
        return d.Categorical(logits=x, validate_args=False)

    def bernoulli(x):
        return d.Bernoulli(logits=x, validate_args=False)

    def weights(x):
        return torch.as_tensor(class_weights(x.shape[-1]), dtype=x.dtype, device=x.device)

    return {
        "entropy": [lambda p: total(torch.special.entr(p))],
        "cross_entropy": [lambda p, q: -total(torch.xlogy(p, q))],
        "kl_divergence": [lambda p, q: total(f.kl_div(q.log(), p, reduction="none"))],
        "surprisal_with_logits": [lambda x: -f.log_softmax(x, -1)],
        "entropy_with_logits": [
            lambda x: categorical(x).entropy(),
            lambda x: -total(f.softmax(x, -1) * f.log_softmax(x, -1)),
        ],
        "cross_entropy_with_logits": [lambda p, x: f.cross_entropy(x, p, reduction="none")],
        "cross_entropy_with_logits[labels]": [
            lambda y, x: f.cross_entropy(x, y, reduction="none"),
        ],
        "kl_divergence_with_logits": [
            lambda a, b: total(
                f.kl_div(
                    f.log_softmax(b, -1), f.log_softmax(a, -1), reduction="none", log_target=True
                )
            ),
            lambda a, b: d.kl_divergence(categorical(a), categorical(b)),
        ],
        "log_normalizer": [lambda x: torch.logsumexp(x, -1)],
        "binary_entropy_with_logits": [lambda x: bernoulli(x).entropy()],
        "binary_cross_entropy": [lambda p, q: f.binary_cross_entropy(q, p, reduction="none")],
        "binary_cross_entropy_with_logits": [
            lambda p, x: f.binary_cross_entropy_with_logits(x, p, reduction="none")
        ],
        "binary_kl_divergence_with_logits": [
            lambda a, b: d.kl_divergence(bernoulli(a), bernoulli(b))
        ],
        "label smoothing": [
            lambda y, x: f.cross_entropy(x, y, label_smoothing=SMOOTHING, reduction="none")
        ],
        "class weights": [lambda y, x: f.cross_entropy(x, y, weight=weights(x), reduction="none")],
        "losses.kl_divergence": [
            lambda p, x: total(f.kl_div(f.log_softmax(x, -1), p, reduction="none"))
        ],
    }


def torchmetrics_peers() -> Peers:
    """torchmetrics.functional.regression; both normalize what they are given."""
    from torchmetrics.functional import regression

    return {
        "kl_divergence": [lambda p, q: regression.kl_divergence(p, q, reduction="none")],
        "kl_divergence_with_logits": [
            lambda a, b: regression.kl_divergence(
                a.log_softmax(-1), b.log_softmax(-1), log_prob=True, reduction="none"
            )
        ],
        "js_divergence": [
            lambda p, q: regression.jensen_shannon_divergence(p, q, reduction="none")
        ],
    }


def scipy_peers() -> Peers:
    """scipy.special, scipy.stats and scipy.spatial: values only."""
    from scipy import special as s
    from scipy import stats
    from scipy.spatial import distance

    return {
        "entropy": [lambda p: total(s.entr(p)), lambda p: stats.entropy(p, axis=-1)],
        "cross_entropy": [lambda p, q: -total(s.xlogy(p, q))],
        "kl_divergence": [
            lambda p, q: total(s.rel_entr(p, q)),
            lambda p, q: total(s.kl_div(p, q)),
            lambda p, q: stats.entropy(p, q, axis=-1),
        ],
        "js_divergence": [lambda p, q: distance.jensenshannon(p, q, axis=-1) ** 2],
        "surprisal_with_logits": [lambda x: -s.log_softmax(x, -1)],
        "log_normalizer": [lambda x: s.logsumexp(x, -1)],
        "binary_entropy": [lambda p: s.entr(p) + s.entr(1 - p)],
        "binary_cross_entropy": [lambda p, q: -s.xlogy(p, q) - s.xlogy(1 - p, 1 - q)],
        "binary_kl_divergence": [lambda p, q: s.rel_entr(p, q) + s.rel_entr(1 - p, 1 - q)],
    }


LIBRARIES: Mapping[str, Callable[[], Peers]] = {
    "optax": optax_peers,
    "jax": jax_peers,
    "distrax": distrax_peers,
    "numpyro": numpyro_peers,
    "torch": torch_peers,
    "torchmetrics": torchmetrics_peers,
    "scipy": scipy_peers,
}
TORCH = ("torch", "torchmetrics")
NORMALIZED_AGAIN = {("torchmetrics", "kl_divergence"), ("torchmetrics", "js_divergence")}


def load(names: Sequence[str] = tuple(LIBRARIES)) -> tuple[dict[str, Peers], list[str]]:
    """The libraries that import, and a word for each that does not."""
    found, missing = {}, []
    for name in names:
        try:
            with warnings.catch_warnings(action="ignore"):
                importlib.import_module(name)
                found[name] = LIBRARIES[name]()
        except Exception as error:  # a peer may also fail to import with the installed jax
            missing.append(f"{name} ({type(error).__name__})")
    return found, missing


def jax_run(function: Callable, wrt: Sequence[int]) -> Callable:
    """Compiled: value and gradients by the arguments at `wrt`, of weighted sums of the values."""

    @jax.jit
    def run(args, cotangent, keywords):
        def along(*floats):
            at = dict(zip(wrt, floats, strict=True))
            return function(*(at.get(i, a) for i, a in enumerate(args)), **keywords)

        value, pull = jax.vjp(along, *(args[i] for i in wrt))
        return value, pull(cotangent.astype(value.dtype))

    return run


def torch_run(function: Callable, wrt: Sequence[int]) -> Callable:
    """The same by torch's tape, for NumPy arrays."""
    import torch

    def tensor(array, differentiated):
        if array.dtype.kind in "iu":
            return torch.from_numpy(array.astype(np.int64))
        narrow = array.dtype.name == "bfloat16"  # which torch does not take from NumPy
        result = torch.from_numpy(np.array(array, np.float32 if narrow else array.dtype))
        return (result.bfloat16() if narrow else result).requires_grad_(differentiated)

    def array(t):
        return t.detach().to(torch.float64).numpy()

    def run(args, cotangent, keywords):
        tensors = [tensor(a, i in wrt) for i, a in enumerate(args)]
        value = function(*tensors, **keywords)
        grads = torch.autograd.grad(
            value, [tensors[i] for i in wrt], torch.from_numpy(np.array(cotangent)).to(value.dtype)
        )
        return array(value), [array(g) for g in grads]

    return run


def scipy_run(function: Callable, wrt: Sequence[int]) -> Callable:
    """The value alone; scipy has no bfloat16."""

    def run(args, cotangent, keywords):
        wide = [a.astype(np.float32) if a.dtype.name == "bfloat16" else a for a in args]
        with np.errstate(all="ignore"):
            return function(*wide, **keywords), None

    return run


def runner(library: str) -> Callable:
    """How functions of a library are run."""
    if library in TORCH:
        return torch_run
    return scipy_run if library == "scipy" else jax_run
