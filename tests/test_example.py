"""The language model: its loss falls, it survives being killed, and a mesh changes nothing."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

import jaxce

MISSING = [
    m for m in ("flax", "orbax", "optax", "rich", "typer") if not importlib.util.find_spec(m)
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the example needs {', '.join(MISSING)}")

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "train_language_model.py"
TEXT = Path(sysconfig.get_paths()["stdlib"]) / "encodings"
SMALL = ("--batch", "8", "--width", "32", "--every", "5", "--source", str(TEXT))
STEPS = ("--steps", "40")
SECONDS = 240  # after which a process that hangs is ended


# The README's commands: what comes before python, and the options.
COMMAND = re.compile(
    rf"^(.*)\.venv/bin/python {SCRIPT.relative_to(ROOT)} ?(.*?)(?: &)?$", re.MULTILINE
)
ALONE, EIGHT, *TWO = COMMAND.findall((ROOT / "README.md").read_text())


@contextmanager
def started(*options, devices=1):
    """A run of the example, with one line of output at a time; it ends with the block."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(jaxce.__file__).parent.parent),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, str(SCRIPT), *SMALL, *options]
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        watchdog = threading.Timer(SECONDS, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def finished(process):
    """The losses by step, and the line on the held-out files, of a run that ends well."""
    lines = list(process.stdout)
    assert process.wait() == 0, "".join(lines)
    held_out = [line for line in lines if line.startswith("held out:")]
    return losses_of(lines), held_out


def losses_of(lines):
    found = (re.match(r"step (\d+): loss (\S+),", line) for line in lines)
    return {int(m[1]): float(m[2]) for m in found if m}


def ended_by(process, number, after):
    """Send a signal once a line contains `after`; return all lines."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if after in line:
            process.send_signal(number)
    process.wait()
    return lines


@pytest.fixture(scope="module")
def undisturbed():
    assert ALONE == ("", "")
    with started(*STEPS) as process:
        losses, held_out = finished(process)
    return losses, held_out


def test_the_loss_falls(undisturbed):
    losses, held_out = undisturbed
    assert list(losses) == [5, 10, 15, 20, 25, 30, 35, 40]
    assert losses[40] < 0.8 * losses[5]
    assert len(held_out) == 1


def test_a_killed_and_an_interrupted_run_go_on_to_the_same_numbers(undisturbed, tmp_path):
    losses, held_out = undisturbed
    # A checkpoint is complete before the next one is begun, so that of step 5 is there.
    options = (*STEPS, "--checkpoint", str(tmp_path))
    with started(*options) as process:
        lines = ended_by(process, signal.SIGKILL, after="step 15:")
        assert process.returncode == -signal.SIGKILL, "".join(lines)
    with started(*options) as process:  # before its first step, which takes seconds to compile
        lines = ended_by(process, signal.SIGINT, after="different;")
        assert process.returncode == 130, "".join(lines)
    (last,) = re.findall(r"interrupted after step (\d+): the same", "".join(lines))
    assert int(last) > 5
    assert int(last) % 5 == 1  # one more than the checkpoint that it started from
    with started(*options) as process:
        resumed, end = finished(process)
    assert min(resumed) > int(last)
    assert resumed == {step: losses[step] for step in resumed}
    assert end == held_out


def assert_near(got, wanted):
    (losses, held_out), (wanted_losses, wanted_held_out) = got, wanted
    assert losses == pytest.approx(wanted_losses, rel=2e-6)
    numbers = [
        [float(n) for n in re.findall(r"\d+\.\d+", line[0])] for line in (held_out, wanted_held_out)
    ]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)


def test_eight_devices_give_the_losses_of_one_and_a_checkpoint_for_it(undisturbed, tmp_path):
    before, options = EIGHT
    assert before.strip() == "XLA_FLAGS=--xla_force_host_platform_device_count=8"
    to_checkpoint = (*STEPS, "--checkpoint", str(tmp_path))
    with started(*options.split(), *to_checkpoint, devices=8) as process:
        on_eight = finished(process)
    assert_near(on_eight, undisturbed)
    with started(*to_checkpoint) as process:
        assert_near(finished(process), ({}, on_eight[1]))


def test_two_processes_give_the_losses_of_one(undisturbed):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [options.replace("8476", str(port)).split() for _, options in TWO]
    with started(*options[0], *STEPS) as second, started(*options[1], *STEPS) as first:
        got = finished(first)
        output = second.stdout.read()
        assert second.wait() == 0, output
    assert not losses_of(output.splitlines())  # the first one speaks for both
    assert_near(got, undisturbed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--mesh 2by4", "expected DATAxCLASS such as 2x4, got '2by4'"),
        ("--mesh 3x3", "--mesh: 3x3 is more than the 8 devices"),
        ("--mesh 2x3", "--mesh: expected CLASS to divide 64, got 3"),
        ("--mesh 4x2 --batch 6", "--batch: expected a multiple of 4 for the mesh 4x2"),
        ("--width 50", "--width: expected a multiple of 32, got 50"),
    ],
)
def test_a_wrong_option_is_one_clear_error(options, message):
    import typer.testing

    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec
    assert spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    app = typer.Typer()
    app.command()(example.train)
    result = typer.testing.CliRunner().invoke(app, options.split())
    assert result.exit_code == 2
    assert message in " ".join(re.sub("│", " ", result.output).split())
