"""Divergence losses: predictions first, one loss per example."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxce import _checks, _softmax_pair
from jaxce._axes import max_over
from jaxce._binary import finite
from jaxce._categorical_logits import (
    finished,
    kl_divergence_with_logits,
    log_normalizer,
    prepared,
)
from jaxce._jit import jit_measure
from jaxce._numerics import exact_sum, expm1_minus, log
from jaxce.losses._reduction import AxisName
from jaxce.losses._softmax_losses import Axis, logits_rows


def _measure_axis(positions: tuple[int, ...]) -> int | tuple[int, ...]:
    return positions[0] if len(positions) == 1 else positions


@jit_measure("axis")
def kl_divergence_with_log_targets(
    log_predictions: ArrayLike,
    log_targets: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""KL(targets || predictions), both in log space: predictions first.

    $$ \ell = \sum_c p_c (\log p_c - \log q_c), \qquad
       p = \operatorname{softmax}(\text{log targets}), \;
       q = \operatorname{softmax}(\text{log predictions}) $$

    Args:
        log_predictions: Predicted log-probabilities or logits, [..., classes].
        log_targets: True log-probabilities or logits of the same rank, in a shape that broadcasts.
        axis: Axis or axes of the classes; None for all.
        where: Boolean, shaped as the predictions or as the batch.

    Returns:
        One divergence per example, in nats; never negative.

    Raises:
        TypeError: If an input is not floating or `where` not boolean.
        ValueError: If ranks differ, or a shape or `axis` does not fit.

    Example:
        >>> p = jnp.log(jnp.array([0.5, 0.5]))
        >>> print(f"{kl_divergence_with_log_targets(jnp.log(jnp.array([0.25, 0.75])), p):.4f}")
        0.1438

    Source: Kullback & Leibler, "On Information and Sufficiency" (1951).
    """
    rows = logits_rows(log_predictions, axis, where, name="log_predictions")
    b, a = _checks.floating_pair("log_predictions", rows.x, "log_targets", log_targets)
    return kl_divergence_with_logits(a, b, axis=_measure_axis(rows.positions), where=rows.mask)


@jit_measure("axis")
def kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""KL(targets || predictions), predictions in log space and first.

    $$ \ell = \sum_c p_c (\log p_c - \log q_c), \qquad
       q = \operatorname{softmax}(\text{log predictions}) $$

    Targets are taken as written: with a total of M they give M KL(p / M || q) + M log M. Near
    q = p the result carries the rounding of log p, a relative error of about 1e-7 / |log q/p|;
    `kl_divergence_with_log_targets` has no such limit.

    Args:
        log_predictions: Predicted log-probabilities or logits, [..., classes].
        targets: True probabilities of the same rank, in a shape that broadcasts.
        axis: Axis or axes of the classes; None for all.
        where: Boolean, shaped as the predictions or as the batch.

    Returns:
        One divergence per example, in nats.

    Raises:
        TypeError: If an input is not floating or `where` not boolean.
        ValueError: If ranks differ, or a shape or `axis` does not fit.

    Example:
        >>> q = jnp.log(jnp.array([0.25, 0.5, 0.25]))
        >>> print(f"{kl_divergence(q, jnp.array([0.5, 0.5, 0.0])):.4f}")
        0.3466

    Source: Kullback & Leibler, "On Information and Sufficiency" (1951).
    """
    rows = logits_rows(log_predictions, axis, where, name="log_predictions")
    b, p = _checks.floating_pair("log_predictions", rows.x, "targets", targets)
    p = p if rows.mask is None else jnp.where(rows.mask, p, 0)
    positions = rows.positions
    mass = jnp.expand_dims(exact_sum(p, jnp.zeros_like(p), positions), positions)
    support = p != 0
    empty = mass == 0
    # With nothing on the support any finite logits do: the example counts nothing.
    a = jnp.where(empty, 0, jnp.where(support, log(jnp.where(support, p, 1)), -jnp.inf))
    b = jnp.where(empty, 0, b)
    kl = kl_divergence_with_logits(a, b, axis=_measure_axis(positions))
    mass = jnp.squeeze(mass, positions)
    whole = jnp.where(mass == 0, 1, mass)
    return jnp.where(mass == 0, 0, whole * (kl + log(whole)))


@jit_measure("axis")
def generalized_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Generalized KL divergence, for what need not sum to 1: predictions in log space and first.

    $$ \ell = \sum_c p_c \log \frac{p_c}{q_c} - p_c + q_c, \qquad q = e^{\text{log predictions}} $$

    Args:
        log_predictions: Logarithms of the predicted intensities, [..., classes]; not normalized.
        targets: True intensities of the same rank, in a shape that broadcasts.
        axis: Axis or axes that are summed over; None for all.
        where: Boolean, shaped as the predictions or as the batch.

    Returns:
        One divergence per example, in nats; no term is negative. Where a term's log q is near its
        log p, the rounding of both shows, a relative error of about 1e-7 |log p| / |log q/p|: the
        predictions are given with that rounding.

    Raises:
        TypeError: If an input is not floating or `where` not boolean.
        ValueError: If ranks differ, or a shape or `axis` does not fit.

    Example:
        >>> print(f"{generalized_kl_divergence(jnp.zeros(2), jnp.array([2.0, 1.0])):.4f}")
        0.3863

    Source: Csiszar, "Why Least Squares and Maximum Entropy?" (1991).
    """
    rows = logits_rows(log_predictions, axis, where, name="log_predictions")
    x, p = _checks.floating_pair("log_predictions", log_predictions, "targets", targets)
    if rows.mask is not None:
        x, p = jnp.where(rows.mask, x, -jnp.inf), jnp.where(rows.mask, p, 0)
    support = p != 0
    change = jnp.where(support, x, 0) - log(jnp.where(support, p, 1))
    near = support & (change < 1)
    convex = jnp.where(support, p, 0) * expm1_minus(jnp.where(near, change, 0))
    far = jnp.exp(jnp.where(near, 0, x)) - p - p * jnp.where(near, 0, change)
    return jnp.sum(jnp.where(near, convex, far), rows.positions)


@jit_measure("axis", "axis_name")
def distillation_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""Divergence of a student from its teacher, both softened: predictions first.

    $$ \ell = T^2 \operatorname{KL}\big(\operatorname{softmax}(t / T) \,\|\,
       \operatorname{softmax}(s / T)\big) $$

    Args:
        student_logits: Predicted logits, [..., classes].
        teacher_logits: True logits of the same rank, in a shape that broadcasts.
        temperature: \(T > 0\). The factor T**2 keeps the size of the gradients.
        axis: Axis or axes of the classes; None for all.
        where: Boolean, shaped as the logits or as the batch.
        axis_name: Inside `shard_map`, the mesh axis that the classes are spread over.

    Returns:
        One loss per example, in nats; never negative. The logits are compared before they are
        divided, so that a student near its teacher keeps its digits at any temperature.

    Raises:
        TypeError: If an input is not floating or `where` not boolean.
        ValueError: If ranks differ, or a shape or `axis` does not fit.

    Example:
        >>> student, teacher = jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])
        >>> print(f"{distillation_loss(student, teacher, temperature=2.0):.4f}")
        0.1054

    Source: Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network" (2015).
    """
    rows = logits_rows(student_logits, axis, where, axis_name, name="student_logits")
    s, t = _checks.floating_pair("student_logits", rows.x, "teacher_logits", teacher_logits)
    if 0 in [s.shape[a] for a in rows.positions]:
        return jnp.sum(s, rows.positions)  # no classes: nothing is left
    scale = _checks.number("temperature", temperature, s.dtype)
    t, _ = prepared(t, rows.mask, rows.axes)
    exact = _softmax_pair.Exact(t, s, scale)
    # From the top: far from zero quotients have few digits left, and derivatives are made of them.
    t, s = (_softened(x - max_over(lax.stop_gradient(x), rows.axes), scale) for x in (t, s))
    kl = _softmax_pair.kl_of_quotients(t, s, exact, rows.axes)[0]
    return finished(jnp.square(scale) * kl, rows.left, 1.0)


@jax.custom_jvp
def _softened(x: Array, temperature: Array) -> Array:
    """Return x / temperature; a logit of -inf stays one whatever the temperature."""
    return x / temperature


@_softened.defjvp
def _(primals, tangents):
    (x, temperature), (dx, d_temperature) = primals, tangents
    softened = _softened(x, temperature)
    return softened, (dx - finite(softened) * d_temperature) / temperature


@jit_measure()
def distillation_loss_top_k(
    student_logits: ArrayLike,
    teacher_indices: ArrayLike,
    teacher_log_probs: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Divergence of a student from a teacher that names its k likeliest classes only.

    All other classes count as one, with the probability that is left, for both:

    $$ \ell = \sum_{i \le k} t_i \log \frac{t_i}{s_i}
       + \Big(1 - \sum_i t_i\Big) \log \frac{1 - \sum_i t_i}{1 - \sum_i s_i} $$

    It is a divergence: never negative, 0 where the two agree on the k classes, and at most that of
    the whole distributions.

    Args:
        student_logits: Predicted logits, [..., classes].
        teacher_indices: Classes that the teacher names, integers [..., k], each once.
        teacher_log_probs: Their log-probabilities, [..., k].
        where: Boolean. Shaped as the batch: the examples that count. Shaped as the logits: the
            classes that exist.

    Returns:
        One loss per example, in nats; NaN, with a NaN gradient, where an index is no class. To
        soften both, divide the student's logits by the temperature at which the teacher's
        log-probabilities were taken.
        Where the two nearly agree, the rounding of the log-probabilities shows in what is left.

    Raises:
        TypeError: If logits are not floating or `teacher_indices` not integer.
        ValueError: If a shape does not fit.

    Example:
        >>> t = jnp.log(jnp.array([0.5, 0.25]))
        >>> loss = distillation_loss_top_k(jnp.zeros(4), jnp.array([2, 0]), t)
        >>> print(f"{loss:.4f}")
        0.1733

    Source: Raman et al., "For Distillation, Tokens Are Not All You Need" (2023).
    """
    x = _checks.floating("student_logits", student_logits)
    indices = _checks.integers("teacher_indices", teacher_indices)
    t = _checks.floating("teacher_log_probs", teacher_log_probs).astype(x.dtype)
    if indices.shape != t.shape or indices.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            "teacher_indices and teacher_log_probs: expected both of shape "
            f"{(*x.shape[:-1], 'k')}, got {indices.shape} and {t.shape}."
        )
    rows = logits_rows(x, -1, where, name="student_logits")
    if t.shape[-1] == 0:
        return jnp.sum(t, -1)  # none is named: both have the one class of all others
    if rows.left is not None:  # what is in the other examples reaches nothing
        left = jnp.expand_dims(rows.left, -1)
        indices, t = jnp.where(left, indices, 0), jnp.where(left, t, 0)
    exists = (indices >= 0) & (indices < x.shape[-1])
    chosen = jnp.where(exists, indices, 0)
    picked = jnp.take_along_axis(rows.x, chosen, -1, mode="promise_in_bounds")
    picked = picked + jnp.where(exists, 0, jnp.nan)  # loud in value and gradient
    classes = jnp.arange(x.shape[-1], dtype=indices.dtype)
    named = jnp.any(jnp.expand_dims(chosen, -1) == classes.reshape((1,) * t.ndim + (-1,)), -2)
    others = ~named & (rows.x > -jnp.inf)
    rest = jnp.where(jnp.any(others, -1), log_normalizer(rows.x, where=others), -jnp.inf)
    student = jnp.concatenate([picked, jnp.expand_dims(rest, -1)], -1)
    left = -jnp.expm1(log_normalizer(t))
    empty = left <= 0
    left = jnp.where(empty, -jnp.inf, log(jnp.where(empty, 1, left)))
    teacher = jnp.concatenate([t, jnp.expand_dims(left, -1)], -1)
    return finished(kl_divergence_with_logits(teacher, student), rows.left, 1.0)


@jit_measure("kind")
def kl_estimate(
    log_p: ArrayLike, log_q: ArrayLike, *, kind: Literal["k1", "k2", "k3"] = "k3"
) -> Array:
    r"""Estimate KL(q || p) from the log-probabilities of samples of q, elementwise.

    With \(r = \log p - \log q\) at a sample of q:

    $$ k_1 = -r, \qquad k_2 = r^2 / 2, \qquad k_3 = e^r - 1 - r $$

    k1 is unbiased and noisy, k2 biased and calm, k3 unbiased, calm and never negative; here it
    keeps its digits also where the two policies nearly agree. What is impossible under both is 0,
    and a gradient too large for its dtype is a finite number near the largest.

    Args:
        log_p: Log-probabilities of the samples under p, any shape.
        log_q: Log-probabilities of the samples under q, from which they were drawn.
        kind: "k1", "k2" or "k3".

    Returns:
        One estimate per sample, in nats: its mean over samples estimates the divergence.

    Raises:
        TypeError: If an input is not floating.
        ValueError: If ranks differ, shapes do not fit, or `kind` is none of the three.

    Example:
        >>> estimate = kl_estimate(jnp.array(-1.0), jnp.array(-1.0 + 2.0**-13))
        >>> print(f"{estimate:.4e}")
        7.4503e-09

    Source: Schulman, "Approximating KL Divergence" (2020).
    """
    p, q = _checks.floating_pair("log_p", log_p, "log_q", log_q)
    nowhere = (p == q) & jnp.isinf(p)  # of probability 0 under both
    r = jnp.where(nowhere, 0, p - jnp.where(nowhere, 0, q))
    if kind == "k1":
        return -r
    if kind == "k2":
        return _half_square(r)
    if kind == "k3":
        return expm1_minus(r)
    raise ValueError(f"kind: expected 'k1', 'k2' or 'k3', got {kind!r}.")


@jax.custom_jvp
def _half_square(r: Array) -> Array:
    return jnp.square(r) / 2


@_half_square.defjvp
def _(primals, tangents):
    (r,), (dr,) = primals, tangents
    largest = float(jnp.finfo(r.dtype).max)
    return _half_square(r), jnp.clip(r, -largest, largest) * dr  # inf * 0 would be NaN
