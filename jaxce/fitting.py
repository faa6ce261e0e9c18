"""Fit a predicted distribution to a true one: gradient descent on cross-entropy, with the gap seen.

Cross-entropy falls onto the entropy of the target, its floor; what is left between them is the
Kullback-Leibler divergence. In float32 a loss near 2 cannot show a gap under 2e-7, so a loop that
subtracts (or sums p log p/q) ends in rounding noise of either sign. Here the gap is measured by
itself, and seen to fall below 1e-12.

>>> import jax.numpy as jnp
>>> result = fit_distribution(jnp.array([0.7, 0.2, 0.1]), base=2)
>>> print(result.probabilities.round(4))
[0.7 0.2 0.1]
>>> history = result.history
>>> print(f"{history.cross_entropy[0]:.2f} bits falls onto {history.entropy[-1]:.2f} bits")
1.58 bits falls onto 1.16 bits
>>> bool(history.kl_divergence[-1] < 1e-12)
True

This module needs optax, which `import jaxce` does not: `pip install 'jaxce[fit]'`.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

import jaxce
from jaxce import _checks, _fit_inputs, _fit_loop, _interrupt

__all__ = ["FitHistory", "FitResult", "decaying", "default_optimizer", "fit_distribution"]

Loss = Literal["cross_entropy", "kl"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FitHistory:
    """What a fit measured, record by record, before the first step and after later ones.

    Attributes:
        step: Steps done at each record, int32 of shape [records]; starts at 0.
        cross_entropy: H(p, q), of shape [records, ...] with the leading axes of the target.
        entropy: H(p), the floor: the same in every record, shaped as `cross_entropy`.
        kl_divergence: KL(p‖q), the gap, measured by itself and not as the difference of the two.
        gradient_norm: Euclidean norm of the loss's gradient over the logits; in nats in any unit.
    """

    step: Array
    cross_entropy: Array
    entropy: Array
    kl_divergence: Array
    gradient_norm: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FitResult:
    """A fitted distribution and how it got there.

    Attributes:
        logits: The fitted logits, of shape [..., classes].
        target: The true distribution, of the same shape, as it was fitted: it sums to 1.
        history: The recorded measures.
        base: Unit of the history: None for nats, 2 for bits.
        interrupted: Whether Ctrl-C ended the fit before its last step.
    """

    logits: Array
    target: Array
    history: FitHistory
    base: float | None = field(default=None, metadata={"static": True})
    interrupted: bool = field(default=False, metadata={"static": True})

    @property
    def probabilities(self) -> Array:
        """The predicted distribution, of shape [..., classes]."""
        return jax.nn.softmax(self.logits)


def decaying(learning_rate: float, steps: int) -> optax.Schedule:
    """Return a learning rate that falls to 0 over `steps`, as the square of half a cosine wave.

    A constant rate leaves adaptive optimizers circling the minimum at a distance.

    Example:
        >>> schedule = decaying(0.2, 100)
        >>> print(f"{schedule(0):.2f} {schedule(50):.2f} {schedule(100):.2f}")
        0.20 0.05 0.00

    Source: Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017).
    """
    return optax.cosine_decay_schedule(learning_rate, max(steps, 1), exponent=2.0)


# Cached, because the compiled loop is cached by the identity of its optimizer.
@functools.cache
def default_optimizer(steps: int, learning_rate: float = 0.2) -> optax.GradientTransformation:
    """Return the optimizer of a fit that is given none: Adam with a short memory, decaying to rest.

    The usual 0.999 remembers the first, large gradients for thousands of steps and leaves rare
    classes behind, and the usual eps of 1e-8 stops them at a probability of 1e-8.
    """
    return optax.adam(decaying(learning_rate, steps), b1=0.9, b2=0.9, eps=1e-20)


def fit_distribution(
    target: ArrayLike,
    *,
    init_logits: ArrayLike | None = None,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 2000,
    loss: Loss = "cross_entropy",
    base: float | None = None,
    record_every: int = 1,
    progress: Callable[[int, FitHistory], object] | None = None,
) -> FitResult:
    r"""Train logits until their softmax is the target distribution.

    $$ \min_x \; H(p, q) = H(p) + \operatorname{KL}(p \| q), \qquad q = \operatorname{softmax}(x) $$

    Leading axes are independent problems, each with an optimizer state (and a line search) of its
    own. All of them advance together in compiled scans; a progress callback costs no recompilation.

    Where the target is 0 the fitted logit has no finite optimum: it falls for as long as steps are
    left. Under plain gradient descent the gap then shrinks only as 1/steps, and L-BFGS may lose
    its way; the default optimizer is not slowed down. A start of `-inf` takes such a class out
    from the beginning, so alphabets of different sizes fit into one batch.

    The two losses have the same minimum and the same gradient up to rounding. "kl" and its gradient
    keep their digits down to 0. Choose it for optimizers that compare losses, such as
    `optax.lbfgs()`, whose line search sees no progress below 1e-7 otherwise where the entropy of
    the target is not small.

    Args:
        target: True probabilities of shape [..., classes], summing to 1 up to rounding.
        init_logits: Where to start, of the same rank; the leading axes broadcast against those of
            the target, so a target of shape [1, k] is fitted from n starts [n, k]. None: uniform.
        optimizer: Any optax optimizer, line searches included; None: `default_optimizer(steps)`.
            Pass the same object again to use the compiled loop again.
        steps: How many updates to make.
        loss: "cross_entropy" or "kl".
        base: Unit of the history: None for nats, 2 for bits. The loss is in nats in any case, so a
            learning rate means the same in all units.
        record_every: Steps between records; the last step is recorded in any case.
        progress: Called every so often with the number of steps done and the latest record, a
            history without its first axis.

    Returns:
        The fitted logits and the history. Ctrl-C ends the fit early, when the running scan is done:
        what was recorded so far comes back, with `interrupted` set. A KeyboardInterrupt out of
        `progress` does the same.

    Raises:
        TypeError: If `target` or `init_logits` is not floating, or `base` is not a number.
        ValueError: If `target` is not a distribution (negative, NaN, summing to 0 or not to 1), if
            `init_logits` is of another size, NaN, `+inf`, or `-inf` where the target has mass, or
            if `steps`, `record_every`, `loss` or `base` is not one of its values.
        KeyboardInterrupt: If it comes before the first record, by a second Ctrl-C.

    Example:
        >>> p = jnp.array([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]])  # two targets at once
        >>> result = fit_distribution(p, steps=1000, record_every=100)
        >>> print(result.probabilities.round(4))
        [[0.7 0.2 0.1]
         [0.5 0.5 0. ]]
        >>> result.history.kl_divergence.shape
        (11, 2)

    Source: Cover & Thomas, "Elements of Information Theory" (2006), section 5.4.
    """
    _checks.nats_per_unit(base)
    unit = None if base is None else float(base)
    if loss not in ("cross_entropy", "kl"):
        raise ValueError(f'loss: expected "cross_entropy" or "kl", got {loss!r}.')
    strides = _fit_inputs.strides(steps, record_every)
    p, start, live = _fit_inputs.problem(target, init_logits)
    optimizer = default_optimizer(steps) if optimizer is None else optimizer
    if not callable(getattr(optimizer, "update", None)):
        raise TypeError(
            f"optimizer: expected an optax optimizer such as optax.adam(0.1), got {optimizer!r}."
        )

    batch, rows = p.shape[:-1], start.reshape(-1, p.shape[-1])
    fixed = jax.tree.map(lambda a: a.reshape(rows.shape), (p, live))
    floor = np.asarray(jaxce.entropy(p, base=unit))
    size = _chunk_size(rows.size, record_every)
    step_of = np.cumsum(strides, dtype=np.int32)
    records: list[FitHistory] = []
    # Rebound in one assignment: nothing that ends the loop finds logits without their records.
    reached = (rows, jax.vmap(optimizer.init)(rows)), 0
    try:
        with _interrupt.deferred() as interrupted:
            # The first scan makes no step, and shows that the compilation is over.
            for first, last in itertools.pairwise([0, *range(1, len(strides), size), len(strides)]):
                if interrupted() and reached[1]:
                    break
                # Filled up with strides of 0 steps: one shape for all scans, one compilation.
                filled = np.pad(strides[first:last], (0, size - (last - first)))
                carry, measured = _fit_loop.run(
                    reached[0], fixed, filled, optimizer=optimizer, loss=loss, base=unit
                )
                ce, *others = (np.asarray(m)[: last - first].reshape(-1, *batch) for m in measured)
                done = step_of[first:last]
                host: list[Any] = [done, ce, np.broadcast_to(floor, ce.shape), *others]
                records.append(FitHistory(*host))
                reached = carry, len(records)
                if progress is not None:
                    progress(int(done[-1]), jax.tree.map(lambda a: a[-1], records[-1]))
    except KeyboardInterrupt:
        if not reached[1]:
            raise
    (rows, _), count = reached
    history = jax.tree.map(lambda *parts: jnp.asarray(np.concatenate(parts)), *records[:count])
    logits = rows.reshape(p.shape)
    if live is not None:
        logits = jnp.where(live, logits, -jnp.inf)
    return FitResult(logits, p, history, unit, interrupted=len(history.step) < len(strides))


def unit_name(base: float | None) -> str:
    """Return the name of the unit of information that has this base.

    Example:
        >>> unit_name(None), unit_name(2), unit_name(10)
        ('nats', 'bits', 'log 10')
    """
    return "nats" if base is None else "bits" if base == 2 else f"log {base:g}"


def _chunk_size(elements: int, record_every: int) -> int:
    """Return how many records one compiled scan makes: about a quarter of a second's work.

    Often enough for a live progress bar and a prompt Ctrl-C, seldom enough to cost nothing. It does
    not depend on the number of steps: a longer fit is the same compiled scan.
    """
    steps = 2**25 // (elements + 128)  # a step of a small problem is not for nothing
    return max(1, min(128, steps // record_every))
