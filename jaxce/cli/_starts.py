"""Where a fit from the command line starts: a list, a code, uniform, or random."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxce import coding
from jaxce.cli import _targets
from jaxce.cli._files import InputError
from jaxce.cli._targets import Outcomes


def logits(
    outcomes: Outcomes,
    start: str | None,
    lengths: np.ndarray | None,
    batch: int | None,
    seed: int,
) -> tuple[jax.Array, str]:
    """Return the logits to start from, [outcomes] or [batch, outcomes], and what they are."""
    p = outcomes.p
    if batch is not None:
        return jax.random.normal(
            jax.random.key(seed), (batch, len(p))
        ), f"{batch} random distributions (seed {seed})"
    if lengths is not None:
        return _code(outcomes, lengths)
    if start is None or start == "uniform":
        return jnp.zeros(len(p), jnp.result_type(float)), "uniform"
    q = _targets.probabilities("--start", start)
    _check_start("--start", "probability", q > 0, p)
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(q), jnp.result_type(float)), "a given distribution"


def _code(outcomes: Outcomes, lengths: np.ndarray) -> tuple[jax.Array, str]:
    """Return the logits of the distribution that a code is made for, and what the code costs."""
    bad = np.flatnonzero(~(lengths >= 0))
    if len(bad):
        i = int(bad[0])
        raise InputError(f"--code-lengths: expected lengths from 0, got {lengths[i]:g} at {i + 1}")
    _check_start("--code-lengths", "finite length", np.isfinite(lengths), outcomes.p)
    dtype = jnp.result_type(float)
    kraft = float(coding.kraft_sum(jnp.asarray(lengths, dtype)))
    if kraft > 1 + 1e-6:
        raise InputError(
            f"--code-lengths: no code has these lengths: their Kraft sum is {kraft:.6g}, "
            "which must not be more than 1"
        )
    p = jnp.asarray(outcomes.p, dtype)
    cost = float(coding.expected_length(p, jnp.asarray(lengths, dtype)))
    named = ",".join(f"{length:g}" for length in lengths)
    told = f"the code with lengths {named}" if len(lengths) <= 32 else "a code"
    told += f": {cost:.2f} bits per {outcomes.kind}"
    if kraft < 1 - 1e-6:
        filled = cost + math.log2(kraft)
        told += f"; {filled:.2f} once the unused {1 - kraft:.4g} of its code space is shared out"
    return jnp.asarray(-math.log(2) * lengths, dtype), told


def _check_start(option: str, what: str, positive: np.ndarray, p: np.ndarray) -> None:
    if len(positive) != len(p):
        raise InputError(
            f"{option}: expected {len(p)} numbers, one for each outcome of the target, "
            f"got {len(positive)}"
        )
    bad = np.flatnonzero(~positive & (p > 0))
    if len(bad):
        raise InputError(
            f"{option}: expected a {what} wherever the target is positive, not so at "
            f"number {bad[0] + 1}"
        )
