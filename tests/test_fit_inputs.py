"""What a fit refuses: by name, with what was expected and what came."""

import numpy as np
import optax
import pytest

from jaxce.fitting import fit_distribution
from tests.test_fitting import SGD

BAD = [
    ({"target": [0.5, -0.1, 0.6]}, ValueError, r"target: .* got -0\.1 at target\[1\]"),
    ({"target": [0.5, np.nan]}, ValueError, r"target: .* got nan at target\[1\]"),
    ({"target": [np.inf, 0.0]}, ValueError, r"target: .* got inf"),
    ({"target": [0.0, 0.0]}, ValueError, "target: .* a sum of 0"),
    ({"target": [[0.5, 0.5], [3.0, 1.0]]}, ValueError, r"a sum of 4 at target\[1\]\. Divide"),
    ({"target": [1, 0]}, TypeError, "target: expected a floating dtype, got int"),
    ({"target": 1.0}, ValueError, r"target: expected shape \[\.\.\., classes\], got \(\)"),
    ({"target": np.ones((2, 0))}, ValueError, r"target: expected shape"),
    ({"init_logits": [0.0]}, ValueError, "init_logits: expected 2 classes as in target, got 1"),
    ({"init_logits": [[0.0, 0.0]]}, ValueError, "target and init_logits: .* same number of dim"),
    ({"init_logits": [0, 0]}, TypeError, "init_logits: expected a floating dtype"),
    ({"init_logits": [np.nan, 0.0]}, ValueError, r"init_logits: .* got nan at init_logits\[0\]"),
    ({"init_logits": [np.inf, 0.0]}, ValueError, "init_logits: .* got inf"),
    ({"init_logits": [0.0, -np.inf]}, ValueError, "finite logits where target has mass, got -inf"),
    ({"steps": -1}, ValueError, "steps: expected an integer from 0"),
    ({"steps": 1.5}, TypeError, "steps: expected an integer, got 1.5"),
    ({"record_every": 0}, ValueError, "record_every: expected an integer from 1"),
    ({"loss": "mse"}, ValueError, "loss: expected .*, got 'mse'"),
    ({"base": 1}, ValueError, "base: expected"),
    ({"optimizer": optax.adam}, TypeError, "optimizer: expected an optax optimizer such as"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(arguments, error, message):
    arguments = {"target": [0.5, 0.5], "optimizer": SGD, "steps": 1} | arguments
    with pytest.raises(error, match=message):
        fit_distribution(arguments.pop("target"), **arguments)
