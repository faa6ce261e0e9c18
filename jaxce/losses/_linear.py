"""Softmax losses of a linear layer with many classes, without the logits of all tokens.

The product of inputs and kernel and the loss of it are one function, which makes the logits a chunk
of tokens at a time. Values and gradients are those of the plain loss on the plain product, to the
accuracy of the product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jaxce import _axes, _checks, _partition, _softmax
from jaxce._jit import jit_measure
from jaxce._partition import Partition
from jaxce.losses import _chunks, _linear_layer
from jaxce.losses._divergences import distillation_loss
from jaxce.losses._focal import soft_cap as capped
from jaxce.losses._linear_layer import Layout, Tokens
from jaxce.losses._reduction import AxisName, left_out
from jaxce.losses._softmax_losses import integer_loss

Reduction = Literal["mean", "sum"] | None


class LinearStatistics(NamedTuple):
    """One number per token each, in nats."""

    nll: Array
    log_normalizer: Array
    entropy: Array


class _Chunk(NamedTuple):
    """What the loss of a chunk of tokens is made of."""

    logits: tuple[Array, ...]  # of each layer, [tokens, classes]
    tokens: Tokens
    shared: dict[str, Array]  # numbers that all tokens share
    names: tuple[str, ...]  # mesh axes that the classes are spread over
    known: Partition | None  # of the logits, if it is known

    def partition(self) -> Partition:
        if self.known is not None:
            return self.known
        x = lax.stop_gradient(self.logits[0])
        # Apart: the gradient takes the place of the logits.
        return _partition.partition(x, (1, *self.names), apart=True)

    def over_kept(self, value: Array) -> Array:
        return value if self.tokens.keep is None else jnp.where(self.tokens.keep, value, 0)


@jax.custom_jvp
def _written_cap(x: Array, cap: Array) -> Array:
    # Written out once: what is made of it would keep the hyperbolic tangent as well.
    return _axes.own_pass(lambda: capped(x, cap), lambda: x)


@_written_cap.defjvp
def _(primals, tangents):
    return _written_cap(*primals), jax.jvp(capped, primals, tangents)[1]


def _of_chunk(
    loss: Callable[[_Chunk], Any],
    classes: int | None,
    logits: tuple[Array, ...],
    tokens: Tokens,
    shared: dict[str, Array],
    known: Any = None,
    *,
    names: tuple[str, ...],
) -> Any:
    """Cap the logits of a chunk, give probability 0 to columns that are padding, take the loss."""
    if "soft_cap" in shared:
        logits = tuple(_written_cap(x, shared["soft_cap"]) for x in logits)
    if classes is not None:
        columns = logits[0].shape[1]
        column = lax.broadcasted_iota(jnp.int32, (1, columns), 1)
        if names:
            column = column + lax.axis_index(names).astype(jnp.int32) * columns
        logits = tuple(jnp.where(column < classes, x, -jnp.inf) for x in logits)
        if tokens.labels is not None:  # a label of a padding column is a bad label
            labels = jnp.where(tokens.labels < classes, tokens.labels, -1)
            tokens = tokens._replace(labels=labels)
    return loss(_Chunk(logits, tokens, shared, names, known))


def _nll(chunk: _Chunk, s: Partition) -> Array:
    return integer_loss(
        chunk.logits[0],
        cast(Array, chunk.tokens.labels),
        chunk.tokens.keep,
        None,
        chunk.shared.get("label_smoothing"),
        None,
        axis=-1,
        axis_name=chunk.names or None,
        known=s,
    )


def _cross_entropy(chunk: _Chunk) -> tuple[Array, Partition]:
    s = chunk.partition()
    loss = _nll(chunk, s)
    if "z_loss" in chunk.shared:
        z = jnp.square(_softmax.log_normalizer(chunk.logits[0], (1, *chunk.names), s))
        loss = loss + chunk.shared["z_loss"] * chunk.over_kept(z)
    return loss, s


def _statistics(chunk: _Chunk) -> tuple[LinearStatistics, Partition]:
    (x,), axes, s = chunk.logits, (1, *chunk.names), chunk.partition()
    statistics = LinearStatistics(
        _nll(chunk, s),
        chunk.over_kept(_softmax.log_normalizer(x, axes, s)),
        chunk.over_kept(_softmax.entropy(x, axes, s)[0]),
    )
    return statistics, s


def _divergence(chunk: _Chunk) -> tuple[Array, None]:
    student, teacher = chunk.logits
    loss = distillation_loss(
        student,
        teacher,
        temperature=chunk.shared["temperature"],
        where=chunk.tokens.keep,
        axis_name=chunk.names or None,
    )
    return loss, None


def _given(dtype: DTypeLike, **scalars: ArrayLike | None) -> dict[str, Array]:
    """Return the numbers that all tokens share, without those that are left at their default."""
    return {
        name: _checks.number(name, value, dtype)
        for name, value in scalars.items()
        if value is not None and not (isinstance(value, int | float) and value == 0)
    }


def _reduced(
    loss: Any,
    layout: Layout,
    heads: tuple[_chunks.Head, ...],
    shared: dict[str, Array],
    tokens: Tokens,
    weights: ArrayLike | None,
    reduction: Reduction,
    num_classes: int | None = None,
) -> Array:
    if reduction not in (None, "mean", "sum"):
        raise ValueError(f"reduction: expected None, 'mean' or 'sum', got {reduction!r}.")
    shape = heads[0].inputs.shape[:-1]
    w = _linear_layer.weights_of(weights, tokens.keep, shape, _dtype(heads))
    if weights is not None:  # what only a loss of NaN can come of reaches no gradient either
        sound = _linear_layer.sound(heads, tokens.labels, layout, num_classes)
        keep = sound | (w != 0)
        tokens = tokens._replace(keep=keep if tokens.keep is None else keep & tokens.keep)
    if reduction is None:
        values = _linear_layer.run(loss, layout, heads, shared, tokens)
        return values if weights is None else left_out(w, values) * w
    if reduction == "mean":
        count = jnp.sum(w)
        w = jnp.where(count == 0, 0, w / jnp.where(count == 0, 1, count))
    return _linear_layer.run(loss, layout, heads, shared, tokens, w)


def _dtype(heads: tuple[_chunks.Head, ...]) -> Any:
    """Return the dtype of the logits and of the result."""
    return _checks.floating("inputs", jnp.zeros((), heads[0].inputs.dtype)).dtype


_STATIC = ("class_axis", "num_classes", "chunk_size", "gradient_dtype", "axis_name")


@jit_measure("reduction", *_STATIC)
def linear_softmax_cross_entropy(
    inputs: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    ignore_index: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    soft_cap: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
    weights: ArrayLike | None = None,
    reduction: Reduction = None,
    class_axis: int = -1,
    num_classes: int | None = None,
    chunk_size: int | None = None,
    gradient_dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""Cross-entropy of softmax(inputs @ kernel + bias) under class labels, without the logits.

    $$ \ell_t = -\log \operatorname{softmax}(x_t W + b)_{y_t} $$

    The same numbers as `softmax_cross_entropy_with_integer_labels(inputs @ kernel + bias, labels)`,
    with the logits of no more than `chunk_size` tokens alive at a time. With a reduction the
    gradients are formed along with the value, and a step costs three products of the size of the
    logits; without one it costs four. Both work in forward and reverse mode, to every order.

    Args:
        inputs: What the layer is given, [..., features].
        kernel: Its weights, [features, classes]; see `class_axis` for [classes, features].
        labels: Class indices in [0, classes), [...]. Any other label gives NaN, loss and gradient.
        bias: One number per class; -inf takes a class out.
        where: Boolean, broadcastable to `labels`: the tokens that count. The others get loss 0 and
            gradient 0, whatever their inputs hold.
        ignore_index: Label of tokens that do not count, for example padding.
        label_smoothing: Share of the label that is spread over the classes that exist.
        soft_cap: \(c\): logits become \(c \tanh(x / c)\).
        z_loss: Weight of the squared log-normalizer, which is added to the loss.
        weights: One weight per token, broadcastable to `labels`; a weight of 0 leaves a token out.
        reduction: None for one loss per token; "sum" for their weighted sum; "mean" for that
            divided by the sum of weights, 0 if nothing counts. Inside `shard_map` both are of the
            tokens of this device.
        class_axis: Axis of the classes in `kernel`: -1, or 0 for a tied embedding table.
        num_classes: Number of classes, if the kernel is padded to more: what comes after them has
            probability 0. The padding must be finite.
        chunk_size: Tokens whose logits are alive at a time. None chooses about 28 MB of float32
            logits on a CPU and 512 MB elsewhere, or more of many classes: up to 256 tokens while
            their logits are at most twice the kernel. Half the tokens with `soft_cap`.
        gradient_dtype: In which the kernel's gradient is summed over chunks; None for float32 (or
            float64).
        axis_name: Inside `shard_map`, the mesh axis that the classes are spread over. Labels and
            `num_classes` then count over all of them.

    Returns:
        Loss in nats, float32 or float64: one per token, or with a reduction a scalar.

    Raises:
        TypeError: If inputs or kernel are not floating, or labels not integer.
        ValueError: If a shape, `class_axis`, `chunk_size` or `reduction` does not fit.

    Example:
        >>> inputs, kernel = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.eye(2, 3)
        >>> print(linear_softmax_cross_entropy(inputs, kernel, jnp.array([0, 2])).round(4))
        [0.5514 1.5514]

    Source: Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models" (2025).
    """
    layout = _linear_layer.layout(class_axis, chunk_size, gradient_dtype, axis_name)
    head = _linear_layer.head(inputs, kernel, bias, layout.class_axis)
    _linear_layer.check_classes(num_classes, head, layout)
    shape = head.inputs.shape[:-1]
    labels = _linear_layer.labels_of(labels, shape)
    keep = _linear_layer.kept(where, shape, labels, ignore_index)
    shared = _given(
        _dtype((head,)), label_smoothing=label_smoothing, soft_cap=soft_cap, z_loss=z_loss
    )
    loss = partial(_of_chunk, _cross_entropy, num_classes)
    return _reduced(
        loss, layout, (head,), shared, Tokens(labels, keep), weights, reduction, num_classes
    )


@jit_measure(*_STATIC)
def linear_softmax_statistics(
    inputs: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    ignore_index: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    class_axis: int = -1,
    num_classes: int | None = None,
    chunk_size: int | None = None,
    gradient_dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
) -> LinearStatistics:
    r"""What a loss is made of, per token, for softmax(inputs @ kernel + bias) without the logits.

    $$ \text{nll} = \log Z - x_y, \qquad \log Z = \log \sum_j e^{x_j}, \qquad
       H = -\sum_j p_j \log p_j $$

    All three are differentiable together, under any cotangent: a policy gradient takes
    `-advantage * nll`, an entropy bonus `entropy`, a z-loss `log_normalizer ** 2`.

    Args:
        inputs: What the layer is given, [..., features].
        kernel: Its weights, [features, classes]; see `class_axis` for [classes, features].
        labels: Class indices in [0, classes), [...]. Any other label gives a nll of NaN.
        bias: One number per class; -inf takes a class out.
        where: Boolean, broadcastable to `labels`: the tokens that count; the others get 0.
        ignore_index: Label of tokens that do not count.
        soft_cap: \(c\): logits become \(c \tanh(x / c)\).
        class_axis: Axis of the classes in `kernel`: -1, or 0 for a tied embedding table.
        num_classes: Number of classes, if the kernel is padded to more.
        chunk_size: Tokens whose logits are alive at a time; None chooses.
        gradient_dtype: In which the kernel's gradient is summed over chunks.
        axis_name: Inside `shard_map`, the mesh axis that the classes are spread over.

    Returns:
        Surprisal of the label, log-normalizer and entropy, each [...], in nats.

    Raises:
        TypeError: If inputs or kernel are not floating, or labels not integer.
        ValueError: If a shape, `class_axis` or `chunk_size` does not fit.

    Example:
        >>> inputs, kernel = jnp.ones((1, 2)), jnp.zeros((2, 4))
        >>> nll, log_normalizer, entropy = linear_softmax_statistics(inputs, kernel, jnp.array([3]))
        >>> print(nll.round(4), log_normalizer.round(4), entropy.round(4))
        [1.3863] [1.3863] [1.3863]

    Source: Cover & Thomas, "Elements of Information Theory" (2006), chapter 2.
    """
    layout = _linear_layer.layout(class_axis, chunk_size, gradient_dtype, axis_name)
    head = _linear_layer.head(inputs, kernel, bias, layout.class_axis)
    _linear_layer.check_classes(num_classes, head, layout)
    shape = head.inputs.shape[:-1]
    labels = _linear_layer.labels_of(labels, shape)
    keep = _linear_layer.kept(where, shape, labels, ignore_index)
    shared = _given(_dtype((head,)), soft_cap=soft_cap)
    loss = partial(_of_chunk, _statistics, num_classes)
    return _linear_layer.run(loss, layout, (head,), shared, Tokens(labels, keep))


@jit_measure("reduction", *_STATIC)
def linear_distillation_loss(
    student_inputs: ArrayLike,
    student_kernel: ArrayLike,
    teacher_inputs: ArrayLike,
    teacher_kernel: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    student_bias: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = None,
    class_axis: int = -1,
    num_classes: int | None = None,
    chunk_size: int | None = None,
    gradient_dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""Divergence of a linear layer from its teacher's, both softened, without either's logits.

    $$ \ell = T^2 \operatorname{KL}\big(\operatorname{softmax}(t / T) \,\|\,
       \operatorname{softmax}(s / T)\big), \qquad s = x_s W_s + b_s, \quad t = x_t W_t + b_t $$

    The same numbers as `distillation_loss` of the two products. The gradient over the teacher is
    there too; what is not asked for is not computed.

    Args:
        student_inputs: What the student's layer is given, [..., features].
        student_kernel: Its weights, [features, classes].
        teacher_inputs: What the teacher's layer is given, [..., features of the teacher].
        teacher_kernel: Its weights, with the classes of the student.
        temperature: \(T > 0\).
        student_bias: One number per class.
        teacher_bias: One number per class.
        where: Boolean, broadcastable to the tokens [...]: those that count.
        weights: One weight per token, broadcastable to the tokens.
        reduction: None, "mean" or "sum", as in `linear_softmax_cross_entropy`.
        class_axis: Axis of the classes in both kernels: -1 or 0.
        num_classes: Number of classes, if the kernels are padded to more.
        chunk_size: Tokens whose logits are alive at a time; None chooses.
        gradient_dtype: In which gradients of kernels are summed over chunks.
        axis_name: Inside `shard_map`, the mesh axis that the classes are spread over.

    Returns:
        Loss in nats, never negative: one per token, or with a reduction a scalar.

    Raises:
        TypeError: If an input is not floating.
        ValueError: If a shape, `class_axis`, `chunk_size` or `reduction` does not fit.

    Example:
        >>> x = jnp.array([[1.0, 0.0]])
        >>> student, teacher = (
        ...     jnp.array([[1.0, 0.0], [0.0, 0.0]]),
        ...     jnp.array([[2.0, 0.0], [0.0, 0.0]]),
        ... )
        >>> print(linear_distillation_loss(x, student, x, teacher, temperature=2.0).round(4))
        [0.1054]

    Source: Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network" (2015).
    """
    layout = _linear_layer.layout(class_axis, chunk_size, gradient_dtype, axis_name)
    student = _linear_layer.head(
        student_inputs, student_kernel, student_bias, layout.class_axis, "student_"
    )
    teacher = _linear_layer.head(
        teacher_inputs, teacher_kernel, teacher_bias, layout.class_axis, "teacher_"
    )
    shape = student.inputs.shape[:-1]
    if teacher.inputs.shape[:-1] != shape:
        raise ValueError(
            f"teacher_inputs: expected the tokens of student_inputs, {shape}, got "
            f"{teacher.inputs.shape[:-1]}."
        )
    sizes = [h.kernel.shape[layout.class_axis] for h in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"teacher_kernel: expected the {sizes[0]} classes of student_kernel, got {sizes[1]}."
        )
    _linear_layer.check_classes(num_classes, student, layout)
    keep = _linear_layer.kept(where, shape)
    shared = {"temperature": _checks.number("temperature", temperature, _dtype((student,)))}
    loss = partial(_of_chunk, _divergence, num_classes)
    return _reduced(
        loss, layout, (student, teacher), shared, Tokens(None, keep), weights, reduction
    )
