"""The benchmarks run; how fast they find things is for those who run them to read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["losses"])
def test_smoke(name):
    command = [sys.executable, "-W", "error", "-m", f"benchmarks.{name}", "--smoke"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "ratio" in run.stdout
    assert "optax" in run.stdout
