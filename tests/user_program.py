# pyright: strict, reportUnknownMemberType=false
"""A small program as users write them: a strict type checker finds nothing to say about it.

Only that parts of JAX are typed in part, such as the device of `jnp.eye`, it does not tell.

It is checked by `.ci/run` against the installed package, and run by the tests.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

import jaxce
from jaxce import coding, losses, metrics
from jaxce.evaluation import Evaluation, evaluate


def loss(kernel: Array, inputs: Array, labels: Array) -> Array:
    """Return the mean loss of a linear classifier."""
    each: Array = losses.softmax_cross_entropy_with_integer_labels(
        inputs @ kernel, labels, ignore_index=-100
    )
    return losses.mean(each, where=labels != -100)


def main() -> dict[str, float]:
    """Return what was measured."""
    inputs, labels = jnp.eye(4), jnp.arange(4) % 3
    kernel = 2 * jnp.eye(4, 3)

    def step(kernel: Array, state: metrics.Collection, batch: Array, where: Array):
        return state.update(batch @ kernel, labels, where=where)

    empty = metrics.Collection.empty(bits=metrics.CrossEntropy.empty(base=2))
    result: Evaluation[metrics.Collection] = evaluate(
        partial(step, kernel), [inputs], empty, progress=False
    )
    p = jax.nn.softmax(kernel)
    statistics = losses.linear_softmax_statistics(inputs, kernel, labels)
    return {
        "loss": float(loss(kernel, inputs, labels)),
        "bits": float(result.metrics.compute()["bits"]),
        "entropy": float(jaxce.entropy(p, base=2).mean()),
        "length": float(coding.expected_length(p[0], coding.huffman_lengths(p[0]))),
        "nll": float(statistics.nll.mean()),
    }


if __name__ == "__main__":
    print(main())
