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


def test_resumed_before_a_last_batch_of_fewer_rows(files, monkeypatch):
    """It has the shape of the others also if nothing but it is left."""
    rng = np.random.default_rng(0)
    np.save("wide.npy", rng.standard_normal((203, 1000), np.float32))
    np.savez("others.npz", labels=rng.integers(0, 1000, 203), weights=rng.random(203, np.float32))
    options = ["--logits", "wide.npy", "--labels", "others.npz", "--weights", "others.npz"]
    options += ["--batch-size", "24"]
    assert run(*options, "--report", "whole").exit_code == 0
    save, saved = _checkpoint.save, []

    def interrupting(path, state, job):
        save(path, state, job)
        saved.append(path)
        if len(saved) == 8:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(_job, "_SECONDS", 0)
    monkeypatch.setattr(_checkpoint, "save", interrupting)
    assert run(*options, "--report", "out").exit_code == 130
    result = run(*options, "--report", "out", "--resume")
    assert "resumed after 8 of 9 batches" in result.stdout
    assert numbers(files / "out") == numbers(files / "whole")


@pytest.mark.parametrize("content", [b"", b"half", "a plain array", "of something else"])
def test_a_state_of_something_else_is_left_alone(content, files):
    state = files / "out" / "state.npz"
    state.parent.mkdir()
    if isinstance(content, bytes):
        state.write_bytes(content)
    else:
        with state.open("wb") as file:
            np.save(file, np.ones(3)) if "plain" in content else np.savez(file, a=np.ones(3))
    before = state.read_bytes()
    expected = {"": "state.npz is not of an evaluation", "--resume": "cannot read out/state.npz"}
    for option, message in expected.items():
        result = run(*FILES, "--report", "out", *filter(None, [option]))
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert state.read_bytes() == before


def test_input_is_not_overwritten(files):
    (files / "out").mkdir()
    np.savez("out/state.npz", logits=LOGITS, labels=LABELS)
    both = ["--logits", "out/state.npz", "--labels", "out/state.npz", "--report", "out"]
    assert run(*both).exit_code == 2
    assert (files / "out" / "state.npz").exists()
    (files / "shards").mkdir()
    np.save("shards/a.npy", LOGITS)
    result = run("--logits", "shards", *FILES[2:], "--report", "shards")
    assert result.exit_code == 2
    assert "shards is a folder of shards" in result.stderr
    assert os.listdir("shards") == ["a.npy"]


def test_resume_of_nothing_starts_from_the_beginning(files):
    result = run(*FILES, "--report", "out", "--resume")
    assert result.exit_code == 0
    assert "resumed" not in result.stdout
    check(files / "out", oracle())
