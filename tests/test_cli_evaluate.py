"""`jaxce evaluate`: the numbers against float64, killed and resumed runs, one-line errors."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from matplotlib import pyplot as plt
from safetensors.numpy import save_file
from typer.testing import CliRunner

from jaxce.cli import _checkpoint, _job, app
from jaxce.cli._arrays import Column

N, V = 301, 11
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, V, N)
LOGITS = RNG.normal(size=(N, V)).astype(np.float32) * 2
LOGITS[np.arange(N), LABELS] += 2
LOGITS[3, (LABELS[3] + 1) % V] = -np.inf  # a class that cannot be
WHERE = RNG.random(N) < 0.8
WEIGHTS = RNG.random(N).astype(np.float32)
BYTES = RNG.integers(1, 9, N).astype(np.uint8)


def oracle(logits=LOGITS, labels=LABELS, weights=None, size=None):
    """Everything that the table tells, in float64."""
    x = np.asarray(logits, np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    x, labels, w = x[w > 0], np.asarray(labels)[w > 0], w[w > 0]
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    surprisal = -np.log(p[np.arange(len(x)), labels])
    rank = (x > x[np.arange(len(x)), labels][:, None]).sum(1)
    confidence, correct = p.max(1), rank == 0
    error = 0
    for b in range(15):
        there = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        error += abs((w * (confidence - correct))[there].sum()) / w.sum()
    entropy = -(p * np.log(np.where(p == 0, 1, p))).sum(1)

    def mean(values):
        return (w * values).sum() / w.sum()

    return {
        "cross_entropy_bits": mean(surprisal) / np.log(2),
        "cross_entropy_nats": mean(surprisal),
        "perplexity": np.exp(mean(surprisal)),
        "bits_per_byte": None
        if size is None
        else mean(surprisal) * w.sum() / np.log(2) / (w * size[: len(w)]).sum(),
        "top1_accuracy": mean(correct),
        "top5_accuracy": mean(rank < 5),
        "brier_score": mean(((p - np.eye(x.shape[1])[labels]) ** 2).sum(1)),
        "calibration_error": error,
        "mean_entropy_bits": mean(entropy) / np.log(2),
        "weight": w.sum(),
    }


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)


def numbers(report):
    return json.loads((report / "metrics.json").read_text())


def check(report, expected, rtol=2e-6, bad_labels=0):
    found = numbers(report)["metrics"]
    assert found.pop("bad_labels") == bad_labels
    assert set(found) == set(expected)
    for name, value in expected.items():
        if value is None:
            assert found[name] is None
        else:
            np.testing.assert_allclose(found[name], value, rtol=rtol, err_msg=name)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("logits.npy", LOGITS)
    np.save("labels.npy", LABELS)
    return tmp_path


# The same shapes wherever it does not matter: one compilation.
BATCHES = ("--batch-size", "64")
FILES = ("--logits", "logits.npy", "--labels", "labels.npy", *BATCHES)


def test_table_report_and_pictures(files):
    result = run(*FILES, "--report", "out", "--bytes-per-token", "2.5")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    expected = oracle(size=np.full(N, 2.5))
    check(files / "out", expected)
    for name, value in (
        (r"cross-entropy \[bits\]", expected["cross_entropy_bits"]),
        ("perplexity", expected["perplexity"]),
        ("bits per byte", expected["bits_per_byte"]),
        ("top-5 accuracy", expected["top5_accuracy"]),
        ("Brier score", expected["brier_score"]),
        ("calibration error", expected["calibration_error"]),
        (r"mean predictive entropy \[bits\]", expected["mean_entropy_bits"]),
        ("bad labels", 0),
    ):
        shown = re.search(rf"{name} +\W +([\d.]+)", result.stdout)
        np.testing.assert_allclose(float(shown[1]), value, atol=1e-5)
    assert sorted(os.listdir("out")) == ["metrics.json", "reliability.png", "surprisal.png"]
    assert plt.imread("out/reliability.png").shape[:2] == (900, 900)
    assert plt.imread("out/surprisal.png").shape[:2] == (750, 1200)
    content = numbers(files / "out")
    assert (content["examples"], content["examples_read"], content["classes"]) == (N, N, V)
    assert sum(content["calibration"]["weight"]) == N
    bits = -np.log2(np.exp(-surprisals()))
    counts, _ = np.histogram(bits, np.arange(513) / 8)
    # Rounding may put one that lies on an edge into the next bin.
    assert np.abs(np.cumsum(content["surprisal"]["weight"][:-1]) - np.cumsum(counts)).max() <= 1
    assert sum(content["surprisal"]["weight"]) == N


def surprisals():
    x = LOGITS.astype(np.float64)
    return np.log(np.exp(x).sum(1)) - x[np.arange(N), LABELS]


def test_what_counts_and_how_much(files):
    labels = np.where(RNG.random(N) < 0.1, -100, LABELS).astype(np.int16)
    np.save("labels.npy", labels)
    np.save("where.npy", WHERE)
    np.savez_compressed("more.npz", weights=WEIGHTS, bytes_per_token=BYTES, other=np.zeros(2))
    LOGITS_WITH_NAN = LOGITS.copy()
    LOGITS_WITH_NAN[np.flatnonzero(~WHERE)[0]] = np.nan  # does not count
    np.save("logits.npy", LOGITS_WITH_NAN)
    result = run(
        *FILES, "--where", "where.npy", "--weights", "more.npz", "--bytes-per-token", "more.npz",
        "--ignore-index", -100, "--report", "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    keep = WHERE & (labels != -100)
    expected = oracle(LOGITS[keep], labels[keep], WEIGHTS[keep], BYTES[keep])
    check(files / "out", expected)


def test_bad_labels_are_skipped_if_told_to(files):
    labels = LABELS.copy()
    labels[[5, 17, 200]] = V, -1, 2**32  # the last one would wrap to class 0
    np.save("labels.npy", labels)
    result = run(*FILES, "--skip-bad-labels", "--report", "out")
    assert result.exit_code == 0, result.stderr
    keep = np.delete(np.arange(N), [5, 17, 200])
    check(files / "out", oracle(LOGITS[keep], LABELS[keep]), bad_labels=3)


def shards(folder, logits):
    folder.mkdir()
    cuts = [0, 100, 100, 250, N]  # one of them empty
    for i, (a, b) in enumerate(itertools.pairwise(cuts)):
        arrays = {"logits": logits[a:b], "labels": LABELS[a:b]}
        name = folder / f"part{i + 8}"  # 8, 9, 10, 11
        np.savez(f"{name}.npz", **arrays) if i % 2 else save_file(arrays, f"{name}.safetensors")
    (folder / ".hidden").touch()


FORMS = {
    "npy, bfloat16": lambda x: np.save("logits.npy", x.astype(ml_dtypes.bfloat16)),
    "npy, float16": lambda x: np.save("logits.npy", x.astype(np.float16)),
    "npy, float64 of big end": lambda x: np.save("logits.npy", x.astype(">f8")),
    "npz": lambda x: np.savez("logits.npz", x),
    "npz, compressed bfloat16": lambda x: np.savez_compressed(
        "logits.npz", labels=LABELS, logits=x.astype(ml_dtypes.bfloat16)
    ),
    "safetensors, bfloat16": lambda x: save_file(
        {"logits": x.astype(ml_dtypes.bfloat16), "labels": LABELS}, "logits.safetensors"
    ),
    "shards": lambda x: shards(Path("logits"), x),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_files(form, files):
    (files / "logits.npy").unlink()
    FORMS[form](LOGITS)
    (path,) = files.glob("logits*")
    labels = path if form == "shards" else "labels.npy"
    result = run("--logits", path, "--labels", labels, *BATCHES, "--report", "out")
    assert result.exit_code == 0, result.stderr
    kind = next((k for k in ("bfloat16", "float16") if k in form), "float32")
    check(files / "out", oracle(LOGITS.astype(kind)))


@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors"])
def test_any_rows_of_arrays_with_more_axes(ending, tmp_path):
    x = RNG.normal(size=(4, 3, 5, 2)).astype(np.float32)
    path = tmp_path / f"x.{ending}"
    {
        "npy": lambda: np.save(path, x),
        "npz": lambda: np.savez_compressed(path, x),
        "safetensors": lambda: save_file({"x": x}, path),
    }[ending]()
    column = Column("--logits", path, 1)
    assert (column.length, column.inner, column.item) == (60, (3, 5), (2,))
    flat = x.reshape(60, 2)
    for first, last in ((0, 60), (7, 8), (15, 30), (14, 46), (16, 17), (3, 60), (0, 1)):
        block = column.read(first, last)
        np.testing.assert_array_equal(block, flat[first:last])
        assert not block.flags.writeable
    assert column.place(59) == f"{path}, row 3, 2, 4"


def test_rows_of_a_mapped_file_are_not_copied(tmp_path):
    np.save(tmp_path / "x.npy", LOGITS)
    block = Column("--logits", tmp_path / "x.npy", 1).read(16, 32)
    while block.base is not None and not isinstance(block, np.memmap):
        block = block.base
    assert isinstance(block, np.memmap)


def test_tokens_of_documents(files):
    np.save("logits.npy", LOGITS[:300].reshape(20, 15, V))
    np.save("labels.npy", LABELS[:300].reshape(20, 15))
    assert run(*FILES, "--report", "out").exit_code == 0
    check(files / "out", oracle(LOGITS[:300], LABELS[:300]))


def test_log_probs_are_seen_to_be_some(files):
    log_probs = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum(1, keepdims=True))
    np.save("logits.npy", log_probs.astype(ml_dtypes.bfloat16))
    assert run(*FILES, "--log-probs", "--report", "out").exit_code == 0
    check(files / "out", oracle(log_probs.astype(ml_dtypes.bfloat16)))
    log_probs[150] += 0.2
    np.save("logits.npy", log_probs)
    result = run(*FILES, "--log-probs")
    assert result.exit_code == 2
    assert "logits.npy, row 150: no log-probabilities: the probabilities sum to 1.22" in (
        result.stderr
    )


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


def cut(path, size):
    Path(path).write_bytes(Path(path).read_bytes()[:size])


def changed(path, row, value):
    array = np.load(path)
    array[row] = value
    np.save(path, array)


def second_shard(logits, name="b.npy"):
    Path("logits").mkdir()
    np.save("logits/a.npy", LOGITS[:100])
    np.save(f"logits/{name}", logits)


def damaged():
    np.savez("logits.npz", LOGITS)
    data = bytearray(Path("logits.npz").read_bytes())
    data[len(data) // 2] ^= 1
    Path("logits.npz").write_bytes(data)


SHARDS = "--logits logits --labels labels.npy --batch-size 64"
PLAIN = "--logits logits.npy --labels labels.npy --batch-size 64"
BAD = {
    "no file": (None, "--logits no.npy --labels labels.npy", "cannot read no.npy: No such file"),
    "ending": (None, "--logits logits.csv --labels labels.npy", "end in .npy, .npz or .safeten"),
    "no .npy": (lambda: Path("logits.npy").write_text("x"), PLAIN, "NumPy's .npy format"),
    "cut short": (
        lambda: cut("logits.npy", 128 + 44 * 100 + 3),
        PLAIN,
        "--logits: logits.npy: the file is cut short: it ends in row 100 of 301",
    ),
    "npz cut short": (
        lambda: (np.savez("logits.npz", LOGITS), cut("logits.npz", 5000)),
        "--logits logits.npz --labels labels.npy",
        "--logits: logits.npz: not a whole .npz file",
    ),
    "npz damaged": (
        damaged,
        "--logits logits.npz --labels labels.npy --batch-size 64",
        "--logits: logits.npz, row 2",
    ),
    "safetensors cut short": (
        lambda: (save_file({"x": LOGITS}, "x.safetensors"), cut("x.safetensors", 5000)),
        "--logits x.safetensors --labels labels.npy",
        "--logits: x.safetensors: not a whole .safetensors file",
    ),
    "several arrays": (
        lambda: np.savez("logits.npz", a=LOGITS, b=LOGITS),
        "--logits logits.npz --labels labels.npy",
        "expected one array, or one called logits; it holds a, b",
    ),
    "integers": (
        lambda: np.save("logits.npy", LABELS[:, None]),
        PLAIN,
        "--logits: logits.npy: expected floating numbers, got int64",
    ),
    "objects": (
        lambda: np.save("logits.npy", np.array([{}, 1])),
        PLAIN,
        "--logits: logits.npy: expected numbers, got Python objects",
    ),
    "columns first": (
        lambda: np.save("logits.npy", np.asfortranarray(LOGITS)),
        PLAIN,
        "its columns come first",
    ),
    "one axis": (
        lambda: np.save("logits.npy", LOGITS[0]),
        PLAIN,
        "expected an axis of rows and one of classes, got shape (11,)",
    ),
    "no rows": (lambda: np.save("logits.npy", LOGITS[:0]), PLAIN, "expected rows and classes"),
    "floating labels": (
        lambda: np.save("labels.npy", LABELS * 1.0),
        PLAIN,
        "--labels: labels.npy: expected integers, got float64",
    ),
    "labels of another length": (
        lambda: np.save("labels.npy", LABELS[:-1]),
        PLAIN,
        "--labels: labels.npy: expected shape (301,), that of --logits without classes, got (300,)",
    ),
    "labels of another form": (
        lambda: (
            np.save("logits.npy", LOGITS[:300].reshape(20, 15, V)),
            np.save("labels.npy", LABELS[:300].reshape(15, 20)),
        ),
        PLAIN,
        "expected shape (20, 15), that of --logits without classes, got (15, 20)",
    ),
    "a shard of other classes": (
        lambda: second_shard(LOGITS[100:, :5]),
        SHARDS,
        "--logits: logits/b.npy: expected shape (any, 11) like a.npy, got (201, 5)",
    ),
    "a shard of another type": (
        lambda: second_shard(LOGITS[100:].astype(np.float16)),
        SHARDS,
        "--logits: logits/b.npy: expected float32 like a.npy, got float16",
    ),
    "a shard of another kind": (
        lambda: second_shard(LOGITS[100:], "b.npy.txt.npy") or Path("logits/c.txt").touch(),
        SHARDS,
        ".safetensors, got logits/c.txt",
    ),
    "no shards": (lambda: Path("logits").mkdir(), SHARDS, "--logits: logits holds no files"),
    "label out of range": (
        lambda: changed("labels.npy", 123, 11),
        PLAIN,
        "--labels: labels.npy, row 123: expected classes from 0 to 10, got 11",
    ),
    "negative label": (lambda: changed("labels.npy", 7, -1), PLAIN, "row 7: expected classes"),
    "NaN": (
        lambda: changed("logits.npy", (250, 3), np.nan),
        PLAIN,
        "--logits: logits.npy, row 250: NaN at class 3",
    ),
    "NaN in a shard": (
        lambda: second_shard(np.where(np.arange(201)[:, None] == 9, np.nan, LOGITS[100:])
                             .astype(np.float32)),
        SHARDS,
        "--logits: logits/b.npy, row 9: NaN at class 0",
    ),
    "infinity": (
        lambda: changed("logits.npy", (250, 3), np.inf),
        PLAIN,
        "--logits: logits.npy, row 250: inf at class 3",
    ),
    "no class": (lambda: changed("logits.npy", 5, -np.inf), PLAIN, "row 5: -inf for every class"),
    "weights": (
        lambda: np.save("weights.npy", np.where(np.arange(N) == 44, -1.0, 1)),
        PLAIN + " --weights weights.npy",
        "--weights: weights.npy, row 44: expected finite numbers from 0, got -1.0",
    ),
    "where": (
        lambda: np.save("where.npy", np.arange(N)),
        PLAIN + " --where where.npy",
        "--where: where.npy, row 2: expected 0 or 1, got 2",
    ),
    "floating where": (
        lambda: np.save("where.npy", np.ones(N)),
        PLAIN + " --where where.npy",
        "--where: where.npy: expected booleans, got float64",
    ),
    "bytes": (None, PLAIN + " --bytes-per-token -1", "--bytes-per-token: expected more than 0"),
    "batch size": (None, PLAIN + " --batch-size 0", "'--batch-size'"),
    "report": (None, PLAIN + " --report a/b", "--report: cannot make a/b: No such file"),
    "report is a file": (None, PLAIN + " --report logits.npy", "--report: cannot make logits.npy"),
    "missing": (None, "--logits logits.npy", "Missing option '--labels'"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_code_2(case, files):
    prepare, arguments, message = BAD[case]
    if prepare is not None:
        prepare()
    before = sorted(str(path) for path in files.rglob("*"))
    outputs = [] if "--report" in arguments else ["--report", "out"]
    result = run(*arguments.split(), *outputs)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("jaxce: error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert sorted(str(path) for path in files.rglob("*")) == before


def test_resume_needs_a_report(files):
    result = run(*FILES, "--resume")
    assert (result.exit_code, result.stderr) == (
        2,
        "jaxce: error: --resume: needs the --report of the run that was ended\n",
    )


def test_bad_logits_end_a_long_run_soon_and_leave_nothing(files, monkeypatch):
    monkeypatch.setattr(_job, "_SECONDS", 0)
    changed("logits.npy", (70, 3), np.nan)
    reads, read = [], Column.read

    def counted(self, first, last):
        if self.option == "--logits":
            reads.append(first)
        return read(self, first, last)

    monkeypatch.setattr(Column, "read", counted)
    result = run(*FILES, "--report", "out")
    assert result.exit_code == 2
    assert "row 70: NaN at class 3" in result.stderr
    assert len(reads) == 3 < N // 64  # two batches and the row: the rest is not read
    assert not (files / "out").exists()


def test_help():
    result = CliRunner().invoke(app, ["evaluate", "--help"])
    assert result.exit_code == 0
    for option in ("--logits", "--labels", "--where", "--bytes-per-token", "--resume", "--report"):
        assert option in result.stdout


def test_command_of_the_readme(files):
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (command,) = re.findall(r"^\$ jaxce evaluate (.*)$", text, flags=re.MULTILINE)
    assert run(*command.split()).exit_code == 0
    check(files / "report", oracle())
