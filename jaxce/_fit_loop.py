"""The compiled part of a fit: optimizer steps and what is measured between them."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

import jaxce

Carry = tuple[Array, Any]  # logits and optimizer state


@functools.partial(jax.jit, static_argnames=("optimizer", "loss", "base"))
def run(
    carry: Carry,
    fixed: tuple[Array, Array | None],
    strides: Array,
    *,
    optimizer: optax.GradientTransformation,
    loss: str,
    base: float | None,
) -> tuple[Carry, tuple[Array, Array, Array]]:
    """Advance every row by sum(strides) steps; return [records, rows] of each measure."""
    extended = optax.with_extra_args_support(optimizer)

    def row(carry: Carry, p: Array, live: Array | None) -> Any:
        log_p = jnp.log(p)

        def cross_entropy(x: Array, base: float | None = None) -> Array:
            return jaxce.cross_entropy_with_logits(p, x, where=live, base=base)

        def kl(x: Array, base: float | None = None) -> Array:
            return jaxce.kl_divergence_with_logits(log_p, x, where=live, base=base)

        objective = kl if loss == "kl" else cross_entropy

        def step(_: Array, carry: Carry) -> Carry:
            x, state = carry
            value, grad = _value_and_grad(objective, x, state)
            # Optax computes with mixed dtypes; a caller's strict promotion is not meant for it.
            with jax.numpy_dtype_promotion("standard"):
                updates, state = extended.update(
                    grad, state, x, value=value, grad=grad, value_fn=objective
                )
            return cast(Array, optax.apply_updates(x, updates)), state

        def record(carry: Carry, stride: Array) -> Any:
            x, state = lax.fori_loop(0, stride, step, carry)
            return (x, state), (cross_entropy(x, base), kl(x, base), norm(jax.grad(objective)(x)))

        return lax.scan(record, carry, strides)

    return jax.vmap(row, out_axes=(0, 1))(carry, *fixed)


def _value_and_grad(objective: Callable[[Array], Array], x: Array, state: Any) -> Any:
    """Return the loss and its gradient at `x`, from the optimizer's state if it has kept them."""
    # Line searches end with both of the point that they chose.
    kept = (optax.tree.get(state, "value"), optax.tree.get(state, "grad"))
    if any(part is None for part in kept):
        return jax.value_and_grad(objective)(x)
    return optax.value_and_grad_from_state(objective)(x, state=state)


def norm(gradient: Array) -> Array:
    """Return the Euclidean norm, without the underflow of small squares."""
    largest = jnp.max(jnp.abs(gradient))
    return largest * jnp.linalg.norm(gradient / jnp.where(largest > 0, largest, 1))
