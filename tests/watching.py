"""Functions run operation by operation, none of which may give a NaN, not even in passing."""

import jax
import jax.numpy as jnp
import numpy as np

# What consists of operations itself.
MADE_OF = ("jit", "pjit", "custom_jvp_call")


def watched(function, *args):
    """Return function(*args), having looked at the result of every single operation.

    With jax_debug_nans those that were compiled before, without it, are not looked at.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    results = _run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), results)


def _run(jaxpr, consts, args):
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(v):
        return v.val if hasattr(v, "val") else values[v]

    for eqn in jaxpr.eqns:
        given, inner = list(map(read, eqn.invars)), None
        if eqn.primitive.name == "cond":
            which, *given = given
            inner = eqn.params["branches"][int(which)]
        elif eqn.primitive.name in MADE_OF:
            inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if inner is not None:
            results = _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), given)
        else:
            results = eqn.primitive.bind(*given, **eqn.params)
            results = results if eqn.primitive.multiple_results else [results]
            for result in results:
                if jnp.issubdtype(result.dtype, jnp.floating):
                    assert not np.isnan(result).any(), f"NaN in passing: {eqn}"
        values.update(zip(eqn.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))
