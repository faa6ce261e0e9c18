"""`jaxce evaluate`: its numbers against float64, from every form of files."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from matplotlib import pyplot as plt
from safetensors.numpy import save_file
from typer.testing import CliRunner

from jaxce.cli import app
from jaxce.cli._arrays import Column
from tests.evaluations import (
    BATCHES,
    BYTES,
    FILES,
    LABELS,
    LOGITS,
    WEIGHTS,
    WHERE,
    N,
    V,
    check,
    numbers,
    oracle,
    run,
)


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
    ignored = np.random.default_rng(1).random(N) < 0.1
    labels = np.where(ignored, -100, LABELS).astype(np.int16)
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
    x = np.arange(120, dtype=np.float32).reshape(4, 3, 5, 2)
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


def test_the_report_is_written_if_nobody_reads_the_table(files):
    command = [sys.executable, "-m", "jaxce", "evaluate", *FILES, "--report", "out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, **streams) as process:
        process.stdout.close()
    assert process.returncode != 0
    check(files / "out", oracle())


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
