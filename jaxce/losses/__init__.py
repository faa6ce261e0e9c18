"""Training losses with optax's names and argument order: predictions first.

One loss per example, in nats; `mean` makes one number of them. Values and gradients follow the same
rules as the measures: zeros, -inf logits, masks and bad labels have one documented answer each, and
low-precision logits are computed in float32.

>>> import jax.numpy as jnp
>>> from jaxce import losses
>>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 0.0]]), jnp.array([0, -100])
>>> loss = losses.softmax_cross_entropy_with_integer_labels(logits, labels, ignore_index=-100)
>>> print(loss.round(4), losses.mean(loss, where=labels != -100).round(4))
[0.1269 0.    ] 0.1269
"""

from jaxce.losses._divergences import (
    distillation_loss,
    distillation_loss_top_k,
    generalized_kl_divergence,
    kl_divergence,
    kl_divergence_with_log_targets,
    kl_estimate,
)
from jaxce.losses._focal import (
    poly_loss_cross_entropy,
    smooth_labels,
    soft_cap,
    softmax_focal_loss,
    z_loss,
)
from jaxce.losses._linear import (
    LinearStatistics,
    linear_distillation_loss,
    linear_softmax_cross_entropy,
    linear_softmax_statistics,
)
from jaxce.losses._reduction import mean, sum_and_count
from jaxce.losses._sigmoid import sigmoid_binary_cross_entropy, sigmoid_focal_loss
from jaxce.losses._softmax_losses import (
    safe_softmax_cross_entropy,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)

__all__ = [
    "LinearStatistics",
    "distillation_loss",
    "distillation_loss_top_k",
    "generalized_kl_divergence",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "kl_estimate",
    "linear_distillation_loss",
    "linear_softmax_cross_entropy",
    "linear_softmax_statistics",
    "mean",
    "poly_loss_cross_entropy",
    "safe_softmax_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "smooth_labels",
    "soft_cap",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "softmax_focal_loss",
    "sum_and_count",
    "z_loss",
]
