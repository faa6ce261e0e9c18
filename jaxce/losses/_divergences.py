"""Divergence losses: predictions first, one loss per example."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxce import _checks
from jaxce._categorical_logits import finished, kl_divergence_with_logits, log_normalizer
from jaxce._jit import jit_measure
from jaxce._numerics import exact_sum, expm1_minus, log
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
        One divergence per example, in nats; no term is negative.

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


@jit_measure("axis")
def distillation_loss(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
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

    Returns:
        One loss per example, in nats; never negative.

    Raises:
        TypeError: If an input is not floating or `where` not boolean.
        ValueError: If ranks differ, or a shape or `axis` does not fit.

    Example:
        >>> student, teacher = jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])
        >>> print(f"{distillation_loss(student, teacher, temperature=2.0):.4f}")
        0.1054

    Source: Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network" (2015).
    """
    s, t = _checks.floating_pair("student_logits", student_logits, "teacher_logits", teacher_logits)
    scale = jnp.asarray(temperature, s.dtype)
    return jnp.square(scale) * kl_divergence_with_log_targets(s / scale, t / scale, axis, where)


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
        where: Boolean, shaped as the batch: the examples that count.

    Returns:
        One loss per example, in nats.

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
    classes = jnp.arange(x.shape[-1], dtype=indices.dtype)
    named = jnp.any(jnp.expand_dims(indices, -1) == classes.reshape((1,) * t.ndim + (-1,)), -2)
    picked = jnp.take_along_axis(rows.x, indices, -1, mode="fill", fill_value=jnp.nan)
    rest = log_normalizer(rows.x, where=~named)
    rest = jnp.where(jnp.all(named, -1), -jnp.inf, rest)
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
    keeps its digits also where the two policies nearly agree.

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
    r = p - q
    if kind == "k1":
        return -r
    if kind == "k2":
        return jnp.square(r) / 2
    if kind == "k3":
        return jnp.where(r == jnp.inf, r, expm1_minus(jnp.where(r == jnp.inf, 0, r)))
    raise ValueError(f"kind: expected 'k1', 'k2' or 'k3', got {kind!r}.")
