r"""Differentiable measures of how far a predicted distribution is from a true one.

Surprisal, entropy, cross-entropy and Kullback-Leibler divergence, from probabilities or, with the
suffix `_with_logits`, from logits. The true distribution comes first.

>>> import jax.numpy as jnp
>>> import jaxce
>>> p = jnp.array([0.75, 0.25])
>>> print(f"{jaxce.entropy(p, base=2):.2f} bits")
0.81 bits

`jaxce.losses` has training losses under optax's names, `jaxce.coding` codes and their lengths,
`jaxce.checks` checks of values. `jaxce.fitting` and `jaxce.plots` need an extra each and are
imported by name.
"""

from jaxce import checks, coding, evaluation, losses, metrics
from jaxce._binary import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    binary_entropy,
    binary_entropy_with_logits,
    binary_kl_divergence,
    binary_kl_divergence_with_logits,
)
from jaxce._categorical import (
    cross_entropy,
    entropy,
    js_divergence,
    kl_divergence,
    perplexity,
    surprisal,
)
from jaxce._categorical_logits import (
    cross_entropy_with_logits,
    entropy_with_logits,
    js_divergence_with_logits,
    kl_divergence_with_logits,
    log_normalizer,
    perplexity_with_logits,
    surprisal_with_logits,
)

__version__ = "0.1.0"

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "binary_entropy",
    "binary_entropy_with_logits",
    "binary_kl_divergence",
    "binary_kl_divergence_with_logits",
    "checks",
    "coding",
    "cross_entropy",
    "cross_entropy_with_logits",
    "entropy",
    "entropy_with_logits",
    "evaluation",
    "js_divergence",
    "js_divergence_with_logits",
    "kl_divergence",
    "kl_divergence_with_logits",
    "log_normalizer",
    "losses",
    "metrics",
    "perplexity",
    "perplexity_with_logits",
    "surprisal",
    "surprisal_with_logits",
]
