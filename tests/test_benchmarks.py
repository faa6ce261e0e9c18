"""The benchmarks run; what they find is for those who run them to read.

Peers that are not installed are left out, so no test needs them.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import accuracy, peers, questions
from tests.conftest import thorough

ROOT = Path(__file__).parent.parent
WRITES = {
    "accuracy": ["accuracy.md", "accuracy.png"],
    "convergence": ["convergence.md", "convergence.png"],
    "evaluation": [],
    "linear": ["linear.md"],
    "memory": ["memory.md", "memory.png"],
    "metrics": [],
    "speed": ["speed.md", "speed.png"],
}


@pytest.mark.parametrize(
    "name", thorough([(n,) for n in WRITES], ("evaluation", "linear").__contains__)
)
def test_smoke(name, tmp_path):
    out = ["--out", str(tmp_path)] if WRITES[name] else []
    command = [sys.executable, "-W", "error", "-m", f"benchmarks.{name}", "--smoke", *out]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "jax " in run.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == WRITES[name]
    for path in tmp_path.iterdir():
        assert path.stat().st_size > 500
        # Pictures are committed: a few hundred kilobytes at most.
        assert path.stat().st_size < 400_000


def test_every_answer_of_a_peer_is_to_a_question():
    names = {q.name for q in questions.QUESTIONS}
    found, _ = peers.load()
    assert found  # jax itself is one
    for table in found.values():
        assert set(table) <= names


def test_the_judge_counts_what_is_wrong():
    want = np.array([1e-9, 1.0, 1.0, np.inf, 1.0], questions.LD)
    got = np.array([-1e-7, np.nan, 1 + 2**-20, np.inf, 1.0], np.float32)
    error, wrong = accuracy.judged(got, want, (np.abs(want), 16), "float32", 1)
    assert wrong.tolist() == [True, True, False, False, False]
    np.testing.assert_allclose(error[2:], [8, 0, 0], rtol=1e-6)
