"""The command line: real runs, one-line errors, interruption, files that are whole or absent."""

import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from typer.testing import CliRunner

import jaxce
from jaxce.cli import app

WEATHER = [0.35, 0.35, 0.1, 0.1, 0.04, 0.04, 0.01, 0.01]
ENTROPY = -sum(p * np.log2(p) for p in WEATHER)
REPOSITORY = Path(__file__).parents[1]


def jaxce_fit(*arguments):
    return CliRunner().invoke(app, ["fit", *map(str, arguments)], catch_exceptions=False)


def measures(result, name):
    """The numbers in the row of a measure, from start to end."""
    row = next(row for row in result.stdout.splitlines() if name in row)
    return [float(x) for x in re.findall(r"(?<=\s)[\d.]+(?:e[+-]\d+)?(?=\s)", row)]


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """The main job, with everything it can write."""
    folder = tmp_path_factory.mktemp("fit")
    result = jaxce_fit("--json", folder / "fit.json", "--plot", folder / "fit.png")
    return result, folder


def test_default_is_the_weather_from_the_reversed_code(default):
    result, _ = default
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "lengths 5,5,4,4,3,3,2,2: 4.58 bits per outcome" in result.stdout
    start, end = measures(result, "cross-entropy")
    np.testing.assert_allclose(start, 4.58 + np.log2(15 / 16), atol=1e-4)
    np.testing.assert_allclose(end, ENTROPY, atol=1e-4)
    assert measures(result, "gap KL")[1] < 1e-12
    for p in WEATHER:
        assert re.search(rf"{p:.6f}\W+{p:.6f}", result.stdout)


def test_json_holds_result_and_history(default):
    content = json.loads((default[1] / "fit.json").read_text())
    assert content["units"] == "bits"
    assert content["interrupted"] is False
    assert content["p"] == WEATHER
    np.testing.assert_allclose(content["q"], WEATHER, atol=1e-6)
    np.testing.assert_allclose(content["entropy"], ENTROPY, rtol=1e-6)
    history = content["history"]
    assert history["step"][0] == 0
    assert history["step"][-1] == content["steps"] == 2000
    for name in ("cross_entropy", "kl_divergence", "gradient_norm"):
        assert len(history[name]) == len(history["step"])
    assert history["kl_divergence"][-1] < 1e-12


def test_plot_is_a_picture(default):
    picture = plt.imread(default[1] / "fit.png")
    assert picture.shape[:2] == (1050, 1500)
    assert picture[..., :3].std() > 0.05  # something is drawn
    assert not list(default[1].glob(".*"))  # nothing half-written is left behind


def test_bytes_of_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(range(128)) * 3 + b"a" * 384)
    result = jaxce_fit("--bytes", file, "--plot", tmp_path / "fit.svg", "--steps", 1000)
    assert result.exit_code == 0
    assert "file: 768 bytes, 128 different ones" in result.stdout
    p = np.full(128, 3 / 768)
    p[ord("a")] += 384 / 768
    entropy = -(p * np.log2(p)).sum()
    assert measures(result, "cross-entropy") == [8, pytest.approx(entropy, abs=1e-4)]
    assert measures(result, "gap KL")[1] < 1e-11
    taken = round(entropy * 768 / 8)
    assert f"{entropy:.3f} bits per byte against 8: 768 bytes" in result.stdout
    assert f"would take {taken}" in result.stdout
    assert "61 'a'" in result.stdout
    assert "236 others" in result.stdout  # long alphabets are abridged
    assert (tmp_path / "fit.svg").read_text().startswith("<?xml")


def test_csv_batch_in_nats(tmp_path):
    file = tmp_path / "counts.csv"
    file.write_text("\ufeffname;n;rank\n[red]α;3;1\n\nβ;1;2\n", "utf-8")
    output = tmp_path / "out.json"
    result = jaxce_fit(
        "--csv", file, "--column", "n", "--batch", 5, "--seed", 7, "--units", "nats",
        "--optimizer", "sgd", "--learning-rate", 2, "--steps", 100, "--json", output,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "5 random distributions (seed 7)" in result.stdout
    assert "[red]α" in result.stdout  # labels are no markup
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    _, least, median, largest = measures(result, "cross-entropy")
    np.testing.assert_allclose([least, median, largest], entropy, atol=1e-3)
    gaps = measures(result, "gap KL")[1:]
    assert gaps == sorted(gaps)
    content = json.loads(output.read_text())
    assert np.shape(content["q"]) == (5, 2)
    assert np.shape(content["history"]["cross_entropy"]) == (101, 5)
    assert content["labels"] == ["[red]α", "β"]


def test_starts(tmp_path):
    """A proper code, a list with a zero, uniform: what the first record says."""
    shannon = jaxce_fit("--code-lengths", "2,2,3,3,4,4,5,5")
    assert ": 2.42 bits per outcome" in shannon.stdout
    np.testing.assert_allclose(measures(shannon, "cross-entropy")[0], 2.42 - 0.0931, atol=1e-3)
    uniform = jaxce_fit("--start", "uniform")
    assert measures(uniform, "cross-entropy")[0] == 3
    listed = jaxce_fit("--start", ",".join(map(str, WEATHER)))
    assert measures(listed, "gap KL")[0] < 1e-6


def test_fit_that_got_worse_says_so(tmp_path):
    output = tmp_path / "out.json"
    result = jaxce_fit(
        "--optimizer", "sgd", "--learning-rate", 1e30, "--steps", 4, "--json", output
    )  # fmt: skip
    assert result.exit_code == 1
    assert result.stderr == "jaxce: error: the gap has grown: try a smaller --learning-rate\n"
    gap = json.loads(output.read_text())["history"]["kl_divergence"]
    assert gap[-1] is None or gap[-1] > gap[0]


def test_outputs_replace_files_whole_or_not_at_all(default, tmp_path, monkeypatch):
    output = tmp_path / "fit.png"
    output.write_text("before")

    def half_a_picture(figure, path, **kwargs):
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", half_a_picture)
    result = jaxce_fit("--plot", output)
    assert result.exit_code == 2
    assert (
        result.stderr == f"jaxce: error: --plot: cannot write {output}: No space left on device\n"
    )
    assert output.read_text() == "before"
    assert os.listdir(tmp_path) == ["fit.png"]


def test_links_and_devices_stay_what_they_are(default, tmp_path):
    target = tmp_path / "real.json"
    target.write_text("before")
    link = tmp_path / "link.json"
    link.symlink_to(target)
    assert jaxce_fit("--json", link).exit_code == 0
    assert link.is_symlink()
    assert json.loads(target.read_text())["target"] == "weather"
    assert jaxce_fit("--json", os.devnull).exit_code == 0
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["fit", "--help"]])
def test_help(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "--help" in result.stdout
    if "fit" in arguments:
        for option in ("--probs", "--csv", "--bytes", "--code-lengths", "--batch", "--plot"):
            assert option in result.stdout


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"jaxce {jaxce.__version__}\n")


def launch(arguments, **kwargs):
    code = [sys.executable, "-W", "error", *arguments]
    return subprocess.Popen(code, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, **kwargs)


def test_without_a_terminal():
    """As a module, in a pipe: no bar, no colours, no warnings."""
    with launch(
        ["-m", "jaxce", "fit", "--probs", "0.7,0.2,0.1", "--steps", "30"], stderr=subprocess.PIPE
    ) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors == ""
    assert "0.700000" in output
    assert "\x1b" not in output


def read(terminal):
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the other end is closed
        return b""


def test_interrupt_keeps_what_was_recorded(tmp_path):
    """Ctrl-C in a real terminal, under a live bar: table, JSON and picture of the part."""
    outputs = {"--json": tmp_path / "fit.json", "--plot": tmp_path / "fit.png"}
    arguments = [str(part) for pair in outputs.items() for part in pair]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with launch(
        ["-m", "jaxce", "fit", "--steps", "100000000", *arguments], stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        seen = b""
        # A terminal takes so much and then blocks: what comes is read to the end.
        while chunk := read(ours):
            if b"fitting" in chunk and b"fitting" not in seen:
                process.send_signal(signal.SIGINT)
            seen += chunk
        output, _ = process.communicate(timeout=60)
    os.close(ours)
    assert re.search(rb"KL \d\.\d\de-\d\d bits", seen)
    assert process.returncode == 130
    done = int(re.search(r"Interrupted after (\d+) steps", output)[1])
    assert 0 < done < 100_000_000
    assert f"jaxce: interrupted: {done} of 100000000 steps were done".encode() in seen
    assert b"Traceback" not in seen
    content = json.loads(outputs["--json"].read_text())
    assert content["interrupted"] is True
    assert content["history"]["step"][-1] == done
    assert plt.imread(outputs["--plot"]).shape[:2] == (1050, 1500)
    assert sorted(os.listdir(tmp_path)) == ["fit.json", "fit.png"]


def test_missing_extra_is_one_line():
    code = "import sys; sys.modules['typer'] = None; import jaxce.cli"
    with launch(["-c", code], stderr=subprocess.PIPE) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == "jaxce: error: the command line needs typer: pip install 'jaxce[cli]'\n"


@pytest.mark.parametrize(
    ("typed", "offered"), [("jaxce f", "fit"), ("jaxce fit --opt", "--optimizer")]
)
def test_completion_in_the_shell(typed, offered):
    """What bash asks for when the Tab key is pressed."""
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    program = "from jaxce.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **words, "_JAXCE_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    assert run.stdout.split() == [offered]
