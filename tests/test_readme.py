"""The README: its Python runs as it stands, and the numbers in its comments are what comes out."""

import ast
import re
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
NUMBER = re.compile(r"-?(?:\d+(?:\.\d*)?(?:e[-+]?\d+)?|inf|nan)")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def promised(line):
    """The numbers of a trailing comment that holds nothing else, as written."""
    _, hash_sign, comment = line.partition("  # ")
    numbers = comment.split(", ") if hash_sign else []
    return numbers if all(NUMBER.fullmatch(n) for n in numbers) else []


def last_digit(number):
    """One unit of the last digit of a number as written: 2.06e-9 gives 1e-11."""
    mantissa, _, exponent = number.partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def run(block, namespace):
    """Execute a block statement by statement; return how many commented values were compared."""
    lines, compared = block.splitlines(), 0
    for statement in ast.parse(block).body:
        source = ast.unparse(statement)
        if not isinstance(statement, ast.Expr):
            exec(source, namespace)
            continue
        value, numbers = eval(source, namespace), promised(lines[statement.end_lineno - 1])
        if numbers:
            expected = [float(n) for n in numbers]
            units = np.array([last_digit(n) if np.isfinite(float(n)) else 0 for n in numbers])
            got = np.asarray(value, np.float64).ravel()
            assert got.shape == units.shape, f"{source}: {got}"
            close = np.abs(got - expected) <= 0.51 * units
            same = (got == expected) | (np.isnan(got) & np.isnan(expected))
            assert np.all(close | same), f"{source}: {got}, not {numbers}"
            compared += 1
    return compared


def test_python_blocks():
    namespace = {}
    # As a reader's JAX is set: optax's Adam does not run under strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        compared = [run(block, namespace) for block in blocks("python")]
    assert sum(compared) >= 20


@pytest.mark.parametrize(
    "block", ["1 + 1  # 3", "1.26  # 1.2", "[1, 2]  # 1", "2e-9  # 2.2e-9", "x = 1\nassert x == 2"]
)
def test_a_wrong_block_fails(block):
    with pytest.raises(AssertionError):
        run(block, {})


def test_each_command_is_one_line_that_makes_its_own_environment():
    job, tests, *_ = blocks("sh")
    for command, last in ((job, "jaxce fit"), (tests, "pytest -n auto")):
        assert command.count("\n") == 1
        assert command.startswith("python3 -m venv ")
        assert command.endswith(f"/bin/{last}\n")


def test_links_resolve():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
