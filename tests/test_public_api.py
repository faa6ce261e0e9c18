"""What is public, that it is documented, and that importing it costs jax alone."""

import inspect
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import jaxce
import jaxce.coding
import jaxce.losses
from tests.cases import MEASURES

FUNCTIONS = {m.name for m in MEASURES}
# What the extras need, and what a numerical package might pull in unnoticed.
FORBIDDEN = [
    "chex",
    "click",
    "equinox",
    "flax",
    "hypothesis",
    "matplotlib",
    "mpmath",
    "optax",
    "pandas",
    "rich",
    "typer",
]


def test_all_is_what_is_public():
    public = {
        n for n, v in vars(jaxce).items() if not n.startswith("_") and not inspect.ismodule(v)
    }
    assert len(jaxce.__all__) == len(set(jaxce.__all__))
    assert {
        n
        for n in jaxce.__all__
        if not n.startswith("_") and not inspect.ismodule(getattr(jaxce, n))
    } == public
    assert public >= FUNCTIONS


def test_every_public_measure_is_in_the_table():
    """A measure that is not in tests/cases.py is not tested."""
    assert {n for n in jaxce.__all__ if callable(getattr(jaxce, n))} == FUNCTIONS


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_docstring(name):
    text = inspect.getdoc(getattr(jaxce, name))
    for part in ("Args:", "Returns:", "Raises:", ">>> ", "$$"):
        assert part in text, part
    assert text.split("\n")[0].endswith(".")
    for argument in inspect.signature(getattr(jaxce, name)).parameters:
        assert f"    {argument}: " in text, argument


SIGNATURES = {
    "surprisal": "p, *, base",
    "entropy": "p, *, axis, where, base",
    "cross_entropy": "p, q, *, axis, where, base",
    "kl_divergence": "p, q, *, axis, where, base",
    "js_divergence": "p, q, *, axis, where, base",
    "perplexity": "p, *, axis, where",
    "surprisal_with_logits": "logits, *, axis, where, base",
    "entropy_with_logits": "logits, *, axis, where, base",
    "cross_entropy_with_logits": "p, q_logits, *, axis, where, base",
    "kl_divergence_with_logits": "p_logits, q_logits, *, axis, where, base",
    "js_divergence_with_logits": "p_logits, q_logits, *, axis, where, base",
    "perplexity_with_logits": "logits, *, axis, where",
    "log_normalizer": "logits, *, axis, where",
    "binary_entropy": "p, *, base",
    "binary_cross_entropy": "p, q, *, base",
    "binary_kl_divergence": "p, q, *, base",
    "binary_entropy_with_logits": "logits, *, base",
    "binary_cross_entropy_with_logits": "p, q_logits, *, base",
    "binary_kl_divergence_with_logits": "p_logits, q_logits, *, base",
}


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_signature(name):
    parameters = inspect.signature(getattr(jaxce, name)).parameters
    expected = [n for n in SIGNATURES[name].split(", ") if n != "*"]
    assert list(parameters) == expected
    after_star = SIGNATURES[name].split("*, ")[1].split(", ")
    assert [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY] == after_star
    assert {n: parameters[n].default for n in after_star} == {
        n: -1 if n == "axis" else None for n in after_star
    }


def loaded_by(statement):
    """The forbidden modules that the statement brings into a fresh Python, beyond jax's own."""
    program = f"""
        import sys
        import jax, jax.numpy
        before = set(sys.modules)
        {statement}
        new = {{name.split(".")[0] for name in set(sys.modules) - before}}
        print(*sorted(new & {set(FORBIDDEN)}))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return result.stdout.split()


def test_import_needs_jax_alone():
    assert loaded_by("import jaxce") == []


def test_the_isolation_test_can_fail():
    assert loaded_by("import jaxce, mpmath") == ["mpmath"]


@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize("module", [jaxce, jaxce.coding, jaxce.losses], ids=lambda m: m.__name__)
def test_none_for_an_array(module, argument):
    """None passes through jit as a tree without leaves; it is refused by name."""
    refused = 0
    for name in module.__all__:
        function = getattr(module, name)
        if not inspect.isfunction(inspect.unwrap(function)):
            continue
        parameters = inspect.signature(function).parameters.values()
        required = [p.name for p in parameters if p.default is p.empty]
        given = {p: np.full((2, 2), 0.5, np.float32) for p in required}
        if len(required) <= argument or required[argument] in ("cap", "alpha"):
            continue  # a number
        with pytest.raises(TypeError, match=f"^{required[argument]}: expected an array, got None"):
            function(**given | {required[argument]: None})
        refused += 1
    assert refused
