"""`jaxce evaluate`, killed or interrupted, goes on to the same numbers."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxce.cli import _checkpoint, _job
from tests.evaluations import FILES, LABELS, LOGITS, check, numbers, oracle, run

KILLED = """
import os, signal, sys
import numpy as np
from jaxce import cli
from jaxce.cli import _checkpoint, _job

_job._SECONDS = 0  # save after every batch
save, savez, saves = _checkpoint.save, np.savez, []

def half_written(file, *leaves, **job):
    saves.append(1)
    if len(saves) == 4:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    savez(file, *leaves, **job)

np.savez = half_written
cli.main()
"""


def test_killed_and_resumed_ends_with_identical_numbers(files):
    """SIGKILL, in the middle of saving what the fourth of five batches has brought."""
    options = [*FILES, "--report"]
    assert run(*options, "whole").exit_code == 0
    command = [sys.executable, "-c", KILLED, "evaluate", *options, "out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "state.npz" in os.listdir("out")
    assert not (files / "out/metrics.json").exists()
    result = run(*options, "out", "--resume")
    assert result.exit_code == 0, result.stderr
    assert "resumed after 3 of 5 batches" in result.stdout
    assert numbers(files / "out") == numbers(files / "whole")
    assert sorted(os.listdir("out")) == ["metrics.json", "reliability.png", "surprisal.png"]


@pytest.fixture
def interrupted(files, monkeypatch):
    """A run that Ctrl-C ended after the second of five batches."""
    save, saved = _checkpoint.save, []

    def interrupting(path, state, job):
        save(path, state, job)
        saved.append(1)
        if len(saved) == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(_job, "_SECONDS", 0)
        patch.setattr(_checkpoint, "save", interrupting)
        result = run(*FILES, "--report", "out")
    return files, result


def test_ctrl_c_reports_the_part_and_can_be_resumed(interrupted):
    files, result = interrupted
    assert result.exit_code == 130
    assert result.stderr == (
        "jaxce: interrupted: 128 of 301 examples were read; the same with --resume reads the rest\n"
    )
    assert "301 examples of 11 classes, of which 128 were read" in result.stdout
    assert numbers(files / "out")["examples_read"] == 128
    check(files / "out", oracle(LOGITS[:128], LABELS[:128]))
    assert "state.npz" in os.listdir("out")
    result = run(*FILES, "--report", "out", "--resume")
    assert "resumed after 2 of 5 batches" in result.stdout
    assert result.exit_code == 0
    assert run(*FILES, "--report", "whole").exit_code == 0
    assert numbers(files / "out") == numbers(files / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: ["--batch-size", 32], "was saved with other batch size: give the same input"),
        (lambda: ["--skip-bad-labels"], "with other skip bad labels"),
        (lambda: np.save("labels.npy", LABELS), "was saved with other labels"),
        (lambda: Path("out/state.npz").write_bytes(b"PK"), "cannot read out/state.npz"),
    ],
)
def test_another_job_is_not_resumed(interrupted, change, message):
    given = change()
    options = given if isinstance(given, list) else []
    before = (interrupted[0] / "out/state.npz").read_bytes()
    result = run(*FILES, *options, "--report", "out", "--resume")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert (interrupted[0] / "out/state.npz").read_bytes() == before


def test_resume_of_nothing_starts_from_the_beginning(files):
    result = run(*FILES, "--report", "out", "--resume")
    assert result.exit_code == 0
    assert "resumed" not in result.stdout
    check(files / "out", oracle())
