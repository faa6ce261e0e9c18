"""Linear layers as the linear losses take them: checked, masked, and run where their arrays are."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, PartitionSpec
from jax.typing import ArrayLike, DTypeLike

from jaxce import _checks
from jaxce.losses import _chunks
from jaxce.losses._reduction import AxisName, mesh_axes


class Tokens(NamedTuple):
    """What each token brings; labels are None where a teacher takes their place."""

    labels: Array | None
    keep: Array | None  # those that count


class Layout(NamedTuple):
    """How a loss of linear layers is computed: all that is static."""

    class_axis: int  # of the kernels: 0 or 1
    chunk_size: int | None
    gradient_dtype: jnp.dtype | None
    names: tuple[str, ...]  # mesh axes that the classes are spread over


def layout(
    class_axis: int, chunk_size: int | None, gradient_dtype: DTypeLike | None, axis_name: AxisName
) -> Layout:
    if class_axis not in (-2, -1, 0, 1):
        raise ValueError(f"class_axis: expected -1 or 0, an axis of the kernel, got {class_axis}.")
    if chunk_size is not None and (not isinstance(chunk_size, Integral) or chunk_size < 1):
        raise ValueError(f"chunk_size: expected a positive number of tokens, got {chunk_size!r}.")
    dtype = None if gradient_dtype is None else jnp.dtype(gradient_dtype)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"gradient_dtype: expected a floating dtype, got {dtype}.")
    size = None if chunk_size is None else int(chunk_size)
    return Layout(class_axis % 2, size, dtype, mesh_axes(axis_name))


def head(
    inputs: ArrayLike, kernel: ArrayLike, bias: ArrayLike | None, class_axis: int, who: str = ""
) -> _chunks.Head:
    """Check one linear layer; return it in one dtype."""
    x, w = _checks.array(f"{who}inputs", inputs), _checks.array(f"{who}kernel", kernel)
    for name, a in ((f"{who}inputs", x), (f"{who}kernel", w)):
        if not jnp.issubdtype(a.dtype, jnp.floating):
            raise TypeError(f"{name}: expected a floating dtype, got {a.dtype}.")
    if w.ndim != 2:
        raise ValueError(f"{who}kernel: expected 2 dimensions, got shape {w.shape}.")
    features = w.shape[1 - class_axis]
    if x.ndim == 0 or x.shape[-1] != features:
        raise ValueError(
            f"{who}inputs: expected a last axis of {features} features, as axis {1 - class_axis} "
            f"of {who}kernel {w.shape}, got shape {x.shape}. class_axis says which axis of the "
            f"kernel holds the classes; here it is {class_axis}."
        )
    if w.shape[class_axis] == 0:
        raise ValueError(f"{who}kernel: expected at least one class, got shape {w.shape}.")
    if bias is not None:
        bias = _checks.real("bias", bias)
        if bias.shape != (w.shape[class_axis],):
            raise ValueError(
                f"{who}bias: expected one number per class, shape ({w.shape[class_axis]},), "
                f"got {bias.shape}."
            )
    dtype = jnp.promote_types(x.dtype, w.dtype)
    return _chunks.Head(x.astype(dtype), w.astype(dtype), bias)


def _classes(head: _chunks.Head, layout: Layout) -> int:
    """Return the number of columns on all devices that the classes are spread over."""
    own = head.kernel.shape[layout.class_axis]
    return own * lax.axis_size(layout.names) if layout.names else own


def check_classes(num_classes: int | None, head: _chunks.Head, layout: Layout) -> None:
    """Refuse a number of classes that the kernel cannot have."""
    columns = _classes(head, layout)
    if num_classes is not None and not (
        isinstance(num_classes, Integral) and 1 <= num_classes <= columns
    ):
        raise ValueError(
            f"num_classes: expected an integer from 1 to {columns}, the classes of the kernel with "
            f"its padding, got {num_classes!r}."
        )


def labels_of(labels: ArrayLike, shape: tuple[int, ...]) -> Array:
    labels = _checks.integers("labels", labels)
    if labels.shape != shape:
        raise ValueError(
            f"labels: expected one per token, shape {shape}, the shape of inputs without its "
            f"features, got {labels.shape}."
        )
    return labels


def kept(
    where: ArrayLike | None,
    shape: tuple[int, ...],
    labels: Array | None = None,
    ignore_index: ArrayLike | None = None,
) -> Array | None:
    """Return which tokens count, or None if all do."""
    keep = _checks.mask(where, shape, "the tokens")
    if labels is None or ignore_index is None:
        return keep
    counts = _checks.counting(labels, ignore_index)
    return counts if keep is None else keep & counts


def sound(
    heads: tuple[_chunks.Head, ...], labels: Array | None, layout: Layout, num_classes: int | None
) -> Array:
    """Return which tokens have finite inputs, and a label that is a class if they have any."""
    finite = [jnp.all(jnp.isfinite(head.inputs), -1) for head in heads]
    if labels is not None:
        classes = _classes(heads[0], layout) if num_classes is None else num_classes
        finite.append((labels >= 0) & (labels < classes))
    return reduce(jnp.logical_and, finite)


def weights_of(
    weights: ArrayLike | None, keep: Array | None, shape: tuple[int, ...], dtype: DTypeLike
) -> Array:
    w = jnp.ones(shape, dtype) if weights is None else _checks.real("weights", weights, dtype)
    try:
        w = jnp.broadcast_to(w, shape)
    except ValueError:
        raise ValueError(
            f"weights: expected a shape that broadcasts to {shape}, the shape of the tokens, "
            f"got {w.shape}."
        ) from None
    return w if keep is None else jnp.where(keep, w, 0)


def _chunk_size(tokens: int, features: int, classes: int, alive: int, *, spread: bool) -> int:
    """Return how many tokens to take at a time: few enough, evenly divided if that matters."""
    # Near a CPU 28 MB of logits stay with what is made of them; a kernel's gradient, which is added
    # to after every chunk, wants few and large ones, up to twice its own size. An accelerator wants
    # large products.
    elements = 7 * 2**20 if jax.default_backend() == "cpu" else 2**27
    enough = min(max(2 * features, 64), 256)
    most = max(round(elements / max(classes, 1) / 32 / alive) * 32, enough // alive)
    least = max(-(-tokens // most), 1)
    # An even division needs no padding, and leaves tokens where they are spread over devices.
    most_chunks = 2 * least if spread else least
    count = next((n for n in range(least, most_chunks) if tokens % n == 0), least)
    return -(-tokens // count)


def _local(
    loss: Callable[..., Any],
    layout: Layout,
    spread: tuple[str, ...],
    heads: tuple[_chunks.Head, ...],
    shared: Any,
    tokens: Tokens,
    weights: Array | None,
) -> Any:
    """Compute on the arrays of one device; `spread` names the mesh axes of its tokens."""
    *shape, _ = heads[0].inputs.shape
    kernel = heads[0].kernel
    count = math.prod(shape)
    # The logits of all layers are alive, and capped ones beside those that they are made of.
    alive = len(heads) * (1 + ("soft_cap" in shared))
    sizes = kernel.shape[1 - layout.class_axis], kernel.shape[layout.class_axis]
    spread_tokens = jax.device_count() > 1
    chunk = layout.chunk_size or _chunk_size(count, *sizes, alive, spread=spread_tokens)
    dtype = layout.gradient_dtype or _checks.floating("kernel", kernel[:0]).dtype
    plan = _chunks.Plan(
        partial(loss, names=layout.names),
        min(chunk, count),
        spread_tokens,
        layout.class_axis,
        layout.names,
        jnp.dtype(dtype),
    )
    tokens = jax.tree.map(jnp.ravel, tokens)
    flat = []
    for head in heads:
        x = head.inputs.reshape(count, head.inputs.shape[-1])
        if tokens.keep is not None:  # whatever a token that does not count holds reaches nothing
            x = jnp.where(tokens.keep[:, None], x, 0)
        flat.append(head._replace(inputs=x))
    if weights is None:
        values = _chunks.per_token(plan, tuple(flat), shared, tokens)
        return jax.tree.map(lambda v: v.reshape(shape), values)
    total = _chunks.weighted_total(plan, tuple(flat), shared, tokens, jnp.ravel(weights))
    return lax.psum(total, spread) if spread else total


def run(
    loss: Callable[..., Any],
    layout: Layout,
    heads: tuple[_chunks.Head, ...],
    shared: Any,
    tokens: Tokens,
    weights: Array | None = None,
) -> Any:
    """Return the loss of every token, or with weights their weighted sum.

    Where the types of the arrays say how they are spread over a mesh, every device works on its
    own, so that only what must be summed is sent.
    """
    kernel, inputs = heads[0].kernel, heads[0].inputs
    mesh = jax.typeof(kernel).sharding.mesh
    explicit = {
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types or (), strict=False)
        if kind is AxisType.Explicit
    }
    if not explicit:
        return _local(loss, layout, (), heads, shared, tokens, weights)

    class_spec = _spec(kernel)[layout.class_axis]
    names = mesh_axes(class_spec)
    # All devices with some of the classes have the same tokens.
    token_spec = [
        tuple(n for n in mesh_axes(s) if n not in names) or None for s in _spec(inputs)[:-1]
    ]
    on_tokens = PartitionSpec(*token_spec)
    of_head = _chunks.Head(
        PartitionSpec(*token_spec, None),
        PartitionSpec(*((None, class_spec) if layout.class_axis else (class_spec, None))),
        PartitionSpec(class_spec),
    )
    specs = (
        tuple(of_head._replace(**({"bias": None} if h.bias is None else {})) for h in heads),
        jax.tree.map(lambda _: PartitionSpec(), shared),
        jax.tree.map(lambda _: on_tokens, tokens),
        None if weights is None else on_tokens,
    )
    arguments = jax.tree.map(jax.sharding.reshard, (heads, shared, tokens, weights), specs)
    on_device = partial(
        _local,
        loss,
        layout._replace(names=names),
        tuple(n for s in token_spec for n in mesh_axes(s)),
    )
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=specs,
        out_specs=on_tokens if weights is None else PartitionSpec(),
        axis_names=explicit,
    )(*arguments)


def _spec(x: Array) -> tuple[Any, ...]:
    spec = jax.typeof(x).sharding.spec
    return (*spec, *(None,) * (x.ndim - len(spec)))
