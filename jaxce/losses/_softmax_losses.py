"""Losses of one distribution over classes: predictions first, one loss per example."""

from __future__ import annotations

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxce import _axes, _checks, _softmax_cross_entropy
from jaxce._axes import total_over
from jaxce._categorical_logits import finished, prepared
from jaxce._jit import jit_measure
from jaxce._numerics import wide
from jaxce._partition import Partition
from jaxce.losses._reduction import AxisName, counted, mesh_axes

Axis = int | tuple[int, ...] | None


class Rows(NamedTuple):
    """Logits ready for the cores, as narrow as given, and what they leave out."""

    x: Array
    left: Array | None  # which examples have any class left
    mask: Array | None  # entries that exist
    positions: tuple[int, ...]
    axes: _axes.Axes  # positions and mesh axis names


def _mask(where: ArrayLike | None, x: Array, positions: tuple[int, ...], name: str) -> Array | None:
    if where is None:
        return None
    where = jnp.asarray(where)
    if where.ndim == x.ndim - len(positions) and where.ndim != x.ndim:
        where = jnp.expand_dims(where, positions)
    return _checks.mask(where, x.shape, name)


def logits_rows(
    logits: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    axis_name: AxisName = None,
    name: str = "logits",
) -> Rows:
    """Check logits and `where`, shaped as the logits or as the batch; make ready for the cores."""
    x = _checks.floating(name, logits, narrow=True)
    positions = tuple(range(x.ndim)) if axis is None else _checks.axes(axis, x.ndim, name)
    mask = _mask(where, x, positions, name)
    axes = (*positions, *mesh_axes(axis_name))
    x, left = prepared(x, mask, axes)
    return Rows(x, left, mask, positions, axes)


def _is_zero(value: ArrayLike) -> bool:
    return isinstance(value, int | float) and value == 0


def _weights(class_weights: ArrayLike, x: Array, axis: int) -> Array:
    """Return one weight per class, shaped to broadcast against the logits."""
    weights = _checks.floating("class_weights", class_weights).astype(wide(x).dtype)
    if weights.shape != (x.shape[axis],):
        raise ValueError(
            f"class_weights: expected one weight per class, shape ({x.shape[axis]},), "
            f"got {weights.shape}."
        )
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    return weights.reshape(shape)


def _single(positions: tuple[int, ...], what: str) -> int:
    if len(positions) != 1:
        raise ValueError(f"axis: expected a single axis with {what}, got {positions}.")
    return positions[0]


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""Cross-entropy of softmax(logits) under soft labels: predictions first.

    $$ \ell = \sum_c w_c \Big[(1 - \varepsilon)\, y_c + \frac{\varepsilon}{K}\Big] s_c,
       \qquad s = -\log \operatorname{softmax}(x) $$

    Args:
        logits: Predicted logits, [..., classes].
        labels: True distribution of the rank of `logits`, in a shape that broadcasts. A row of
            zeros gives loss 0 and gradient 0.
        axis: Axis or axes of the classes; None for all.
        where: Boolean. Shaped as the logits: the entries that exist. Shaped as the batch: the
            examples that count; the others get loss 0 and gradient 0, whatever is in them.
        label_smoothing: \(\varepsilon\), spread over the K classes that exist: not over those that
            `where` masks out or whose logit is -inf.
        class_weights: \(w\), one per class. The mean over examples is `mean(loss)`; the mean whose
            denominator is the weight of the labels is
            `loss.sum() / (labels * class_weights).sum()`.
        axis_name: Inside `shard_map`, the mesh axis that the classes are spread over.

    Returns:
        One loss per example, in nats. Probability on a class that does not exist gives `inf` with
        the finite gradient softmax - labels. The gradient over the labels is the surprisal, also
        of classes with label 0 (where the measures give 0), and 0 where that is infinite.

    Raises:
        TypeError: If `logits` is not floating or `where` not boolean.
        ValueError: If ranks differ, or a shape or `axis` does not fit.

    Example:
        >>> logits = jnp.array([[2.0, 0.0, -jnp.inf], [0.0, 0.0, 0.0]])
        >>> labels = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
        >>> print(softmax_cross_entropy(logits, labels).round(4))
        [0.1269 1.0986]

    Source: Goodfellow, Bengio & Courville, "Deep Learning" (2016), section 6.2; Szegedy et al.,
    "Rethinking the Inception Architecture for Computer Vision" (2016), for the smoothing.
    """
    smoothing = None if _is_zero(label_smoothing) else label_smoothing
    return _soft(logits, labels, where, smoothing, class_weights, axis=axis, axis_name=axis_name)


@jit_measure("axis", "axis_name")
def _soft(
    logits: ArrayLike,
    labels: ArrayLike,
    where: ArrayLike | None,
    smoothing: ArrayLike | None,
    class_weights: ArrayLike | None,
    *,
    axis: Axis,
    axis_name: AxisName,
) -> Array:
    rows = logits_rows(logits, axis, where, axis_name)
    x = rows.x
    p = _checks.array("labels", labels)
    if not jnp.issubdtype(p.dtype, jnp.floating):
        if p.ndim == x.ndim - len(rows.positions) > 0:
            raise ValueError(
                f"labels: expected distributions of as many dimensions as logits {x.shape}, got "
                f"{p.dtype} of shape {p.shape}. For class indices there is "
                "softmax_cross_entropy_with_integer_labels."
            )
        p = p.astype(wide(x).dtype)  # a one-hot of integers or booleans is a distribution too
    p, x = _checks.floating_pair("labels", p, "logits", x, narrow=True)
    if 0 in [x.shape[a] for a in rows.positions]:
        return jnp.sum(wide(x), rows.positions)  # no classes: nothing is left
    if smoothing is not None:
        p = smoothed(wide(p), x > -jnp.inf, smoothing, rows.axes)
    if class_weights is not None:
        p = wide(p) * _weights(class_weights, x, _single(rows.positions, "class_weights"))
    if rows.mask is not None:
        p = jnp.where(rows.mask, p, 0)
    return finished(_softmax_cross_entropy.cross_entropy(p, x, rows.axes)[0], rows.left, 1.0)


def smoothed(p: Array, exists: Array, alpha: ArrayLike, axes: _axes.Axes) -> Array:
    """Return (1 - alpha) p + alpha / K on the K classes that exist."""
    alpha = jnp.asarray(alpha, p.dtype)
    count = total_over(exists.astype(p.dtype), axes)
    return (1 - alpha) * p + jnp.where(exists, alpha / jnp.maximum(count, 1), 0)


def safe_softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    """The same as `softmax_cross_entropy`: here every loss is safe with logits of -inf.

    Args:
        logits: Predicted logits, [..., classes].
        labels: True distribution of the rank of `logits`, in a shape that broadcasts.

    Returns:
        One loss per example, in nats.

    Example:
        >>> print(safe_softmax_cross_entropy(jnp.array([-jnp.inf, 0.0]), jnp.array([0.0, 1.0])))
        0.0
    """
    return softmax_cross_entropy(logits, labels)


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    *,
    ignore_index: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""Cross-entropy of softmax(logits) under class labels: predictions first.

    $$ \ell = (1 - \varepsilon)\, w_y s_y + \frac{\varepsilon}{K} \sum_c w_c s_c,
       \qquad s = -\log \operatorname{softmax}(x) $$

    Args:
        logits: Predicted logits, [..., classes].
        labels: Class indices in [0, classes), shaped as `logits` without `axis`. Any other label
            (negative ones too: they do not wrap) gives NaN, and a NaN gradient for that example.
        axis: Axis of the classes. For several, a label is an index into them as if flattened, in
            the order given.
        where: Boolean. Shaped as the logits: the entries that exist; a label among the others
            gives `inf`. Shaped as the batch: the examples that count; the others get loss 0 and
            gradient 0, whatever is in them.
        ignore_index: Label of examples that do not count, for example padding.
        label_smoothing: \(\varepsilon\), spread over the K classes that exist: not over those that
            `where` masks out or whose logit is -inf.
        class_weights: \(w\), one per class. The mean over examples is `mean(loss)`; the mean whose
            denominator is the weight of the labels is `loss.sum() / class_weights[labels].sum()`.
        axis_name: Inside `shard_map`, the mesh axis that the classes are spread over. Labels then
            count over all of them, and `class_weights` holds the local ones.

    Returns:
        One loss per example, in nats.

    Raises:
        TypeError: If `logits` is not floating, `labels` not integer or `where` not boolean.
        ValueError: If a shape or `axis` does not fit.

    Example:
        >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0], [5.0, 1.0]])
        >>> print(
        ...     softmax_cross_entropy_with_integer_labels(
        ...         logits, jnp.array([0, 1, -100]), ignore_index=-100
        ...     )
        ... )
        [0.126928  0.6931472 0.       ]

    Source: Goodfellow, Bengio & Courville, "Deep Learning" (2016), section 6.2.
    """
    smoothing = None if _is_zero(label_smoothing) else label_smoothing
    if cast(object, axis) is None:
        raise TypeError("axis: expected an int or a tuple of ints, got None.")
    return integer_loss(
        logits,
        labels,
        where,
        ignore_index,
        smoothing,
        class_weights,
        axis=axis,
        axis_name=axis_name,
    )


def _flattened(x: Array, axis: tuple[int, ...]) -> Array:
    """Return x with several axes merged into a last one, in the order given."""
    moved = jnp.moveaxis(x, axis, tuple(range(-len(axis), 0)))
    return moved.reshape(*moved.shape[: x.ndim - len(axis)], -1)


@jit_measure("axis", "axis_name")
def integer_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    where: ArrayLike | None,
    ignore_index: ArrayLike | None,
    smoothing: ArrayLike | None,
    class_weights: ArrayLike | None,
    *,
    axis: int | tuple[int, ...],
    axis_name: AxisName,
    known: Partition | None = None,
) -> Array:
    """Return the loss of class indices; `known` is the partition of the logits as they are."""
    _checks.order("logits", logits, "labels", labels, "In jaxce.losses predictions come first.")
    # Smoothed and weighted, two functions have a gradient over the logits: their sum is rounded.
    twice = smoothing is not None and class_weights is not None
    x = _checks.floating("logits", logits, narrow=not twice)
    positions = _checks.axes(axis, x.ndim, "logits")
    if jnp.issubdtype(jnp.asarray(labels).dtype, jnp.floating):
        raise TypeError(
            f"labels: expected an integer dtype, class indices, got {jnp.asarray(labels).dtype}. "
            "For distributions there is softmax_cross_entropy."
        )
    labels = _checks.integers("labels", labels)
    keep = None
    if where is not None:
        where = jnp.asarray(where)
        if where.ndim == x.ndim - len(positions):
            where, keep = None, _checks.mask(where, labels.shape, "labels")
        else:
            where = _checks.mask(where, x.shape, "logits")
    if not isinstance(axis, int):
        x, where = _flattened(x, axis), None if where is None else _flattened(where, axis)
        positions = (x.ndim - 1,)
    _checks.classes("labels", labels, "logits", x.shape, positions)
    if ignore_index is not None:
        counts = _checks.counting(labels, ignore_index)
        keep = counts if keep is None else keep & counts
    labels = _axes.placed_as_examples(labels, x, positions[0])
    if keep is not None:
        keep = _axes.placed_as_examples(keep, x, positions[0])
    axes = (*positions, *mesh_axes(axis_name))
    (class_axis,) = positions
    if x.shape[class_axis] == 0:
        return jnp.sum(wide(x), class_axis)  # no classes: nothing is left
    if twice and keep is not None:
        x = jnp.where(jnp.expand_dims(keep, class_axis), x, 0)
    x, left = prepared(x, where, axes)
    if smoothing is not None:
        smoothing = jnp.asarray(smoothing, wide(x).dtype)
        smoothing = jnp.broadcast_to(smoothing, labels.shape if smoothing.ndim else ())
    loss = _softmax_cross_entropy.class_surprisal(
        x, labels, keep, None if twice else smoothing, axes, known
    )[0]
    if class_weights is not None:
        weights = _weights(class_weights, x, class_axis)
        loss = counted(_of_label(weights, x, labels, axes, class_axis), loss)
        if smoothing is not None:
            exists = (x > -jnp.inf).astype(loss.dtype)
            spread = exists / total_over(exists, axes) * weights
            even = _softmax_cross_entropy.cross_entropy(spread, x, axes)[0]
            even = even if keep is None else jnp.where(keep, even, 0)
            loss = (1 - smoothing) * loss + smoothing * even
    return finished(loss, left, 1.0)


def _of_label(weights: Array, x: Array, labels: Array, axes: _axes.Axes, class_axis: int) -> Array:
    """Return the weight of each example's label; 1 where there is no such class."""
    sharding = jax.typeof(x).sharding
    is_spread = any(name is not None for name in sharding.spec)
    if len(axes) == 1 and not is_spread:
        flat = weights.reshape(-1)
        return flat.at[jnp.clip(labels, 0, flat.size - 1)].get(mode="promise_in_bounds")
    label = jnp.expand_dims(labels, class_axis)
    if len(axes) > 1:
        label = label - (lax.axis_index(axes[1:]) * x.shape[class_axis]).astype(label.dtype)
    out = sharding if is_spread else None
    chosen = lax.broadcasted_iota(label.dtype, x.shape, class_axis, out_sharding=out) == label
    return _axes.without(total_over(jnp.where(chosen, weights, 0), axes), axes)
