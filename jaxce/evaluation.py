"""Run a compiled step over many batches, without waiting for it and without compiling it twice.

The step does what only its author knows, a model and which metrics it feeds; the loop does the
rest: batches of one size, a mask of the rows that are real, devices that always have work waiting,
a bar with running values, Ctrl-C that keeps what was reached, and going on from a saved state.

>>> import jax
>>> import numpy as np
>>> from jaxce import metrics
>>> @jax.jit
... def step(state, batch, where):
...     logits = batch["x"]  # a model's output
...     return state.update(logits, batch["label"], where=where)
>>> rng = np.random.default_rng(0)
>>> data = {"x": rng.normal(size=(1000, 10)).astype(np.float32), "label": np.arange(1000) % 10}
>>> empty = metrics.Collection.empty(
...     ce=metrics.CrossEntropy.empty(), top5=metrics.Accuracy.empty(top_k=5)
... )
>>> result = evaluate(step, [data], empty, batch_size=64)
>>> result.steps
16
>>> print(f"{result.metrics.compute()['ce']:.3f}")
2.712

A step that is given weights takes them first, as arguments, so that they are not compiled into it:
`evaluate(functools.partial(step, weights), ...)` with a `step(weights, state, batch, where)`.
"""

import collections
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding

from jaxce import _batching, _interrupt, _progress

__all__ = ["Evaluation", "evaluate"]

M = TypeVar("M")

# One step runs, and one waits so that the device never does; more would only hold memory.
_UNDER_WAY = 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Evaluation(Generic[M]):
    """How far an evaluation has come: a pytree, so that any checkpoint library saves it.

    Attributes:
        metrics: What the last step returned.
        steps: How many steps it is the result of.
        interrupted: Whether Ctrl-C ended the evaluation before the last batch.
    """

    metrics: M
    steps: int = 0
    interrupted: bool = field(default=False, metadata={"static": True})


def evaluate(
    step: Callable[[M, Any, Array], M],
    batches: Iterable[Any],
    metrics: M | Evaluation[M],
    *,
    batch_size: int | None = None,
    mesh: Mesh | NamedSharding | None = None,
    on_step: Callable[[Evaluation[M]], object] | None = None,
    progress: bool = True,
) -> Evaluation[M]:
    r"""Return the metrics of all batches.

    $$ \text{state}_{i+1} = \text{step}(\text{state}_i, \text{batch}_i, \text{where}_i) $$

    Every step sees the same shapes, so it is compiled once: a batch with fewer rows is filled up
    with rows of its own, which `where` marks as not real, and a larger one is cut. The mask is an
    argument of its own, because a batch may be of any kind; with a mask of padding tokens in
    the batch, the step passes `batch["mask"] & where[:, None]` to the metrics. The loop reads
    batches while the device works, and at most two steps are under way.

    Args:
        step: A jitted function of metrics, batch and mask to metrics. It may donate the metrics.
        batches: Trees of arrays (NumPy's, JAX's, or what NumPy can convert): dicts, tuples or a
            bare array, with rows along every first axis. Arrays without axes are passed on as they
            are. A NumPy array is copied unless it is read-only, because a loader may reuse it.
        metrics: The first state: any tree of arrays. Or what an earlier call, or `on_step`, gave:
            then its steps are skipped among the batches, which must be the same ones again.
        batch_size: Rows of a step. None: as many as the first batch has.
        mesh: Devices to spread the rows over: a mesh, along its first axis, or a sharding such as
            `NamedSharding(mesh, PartitionSpec(("replica", "data")))`. The metrics are on all of
            them. Under several processes each gives its own rows, all in equally many batches;
            an empty batch is a step with nothing real in it.
        on_step: Called after each step with what has been reached, for example to save it. The
            arrays may still be under way, and a donating step takes them: copy what is kept.
        progress: Show a bar, with running values if the metrics have `compute()`. It needs rich
            and a terminal; without them there is none.

    Returns:
        The metrics, the number of steps, and whether Ctrl-C ended them early. The first Ctrl-C
        lets the step under way finish; a second one does not wait for the batch that is read.

    Raises:
        TypeError: If `step` is not a function, or `mesh` neither a mesh nor a sharding.
        ValueError: If arrays of a batch differ in their number of rows, if a batch has no rows
            along any axis, if an integer does not fit JAX's 32 bits, or if `batch_size` is not
            positive.

    Example:
        >>> import numpy as np
        >>> count = jax.jit(lambda total, batch, where: total + where.sum())
        >>> result = evaluate(count, (np.zeros((n, 2)) for n in (4, 4, 3)), jnp.int32(0))
        >>> print(result.metrics, result.steps)
        11 3
    """
    if not callable(step):
        raise TypeError(
            f"step: expected a function of metrics, batch and mask, got {type(step).__name__}. "
            "The step comes first, then the batches, then the metrics."
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: expected a positive number, got {batch_size}.")
    sharding = _batching.sharding_of(mesh)
    reached = metrics if isinstance(metrics, Evaluation) else Evaluation(metrics)
    start = _batching.replicated(reached.metrics, sharding)
    reached = Evaluation(start, int(reached.steps))
    place = _batching.Placer(sharding, step)
    pieces = _batching.pieces(batches, batch_size, _batching.shards(sharding))
    under_way: collections.deque[Array | None] = collections.deque(maxlen=_UNDER_WAY)
    bar = _progress.bar(batches, batch_size, reached.steps, progress)
    with _interrupt.deferred() as interrupted, bar as show:
        try:
            for piece, size in itertools.islice(pieces, reached.steps, None):
                if interrupted():
                    return replace(reached, interrupted=True)
                batch, where = place(piece, size)
                if not under_way:
                    reached = replace(reached, metrics=_batching.beside(reached.metrics, batch))
                if len(under_way) == _UNDER_WAY:
                    jax.block_until_ready(under_way[0])
                before = _first_array(reached.metrics)
                reached = Evaluation(step(reached.metrics, batch, where), reached.steps + 1)
                trace = _first_array(reached.metrics)
                if trace is not None and (before is None or before.is_deleted()):
                    trace = jnp.copy(trace)  # the step may take what it is given for good
                under_way.append(trace)
                if on_step is not None:
                    on_step(reached)
                show(reached.steps, reached.metrics)
        except KeyboardInterrupt:
            return replace(reached, interrupted=True)
    return reached


def _first_array(metrics: Any) -> Array | None:
    """Return an array that is ready when the metrics are."""
    return next((leaf for leaf in jax.tree.leaves(metrics) if isinstance(leaf, Array)), None)
