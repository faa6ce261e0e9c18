"""What `jaxce evaluate` refuses: in one line that names file and row, code 2, nothing written."""

import errno
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxce.cli import _job
from jaxce.cli._arrays import Column
from tests.evaluations import FILES, LABELS, LOGITS, N, V, run


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
        "--weights: weights.npy, row 44: expected finite float32 numbers from 0, got -1.0",
    ),
    "weights past float32": (
        lambda: np.save("weights.npy", np.where(np.arange(N) == 44, 1e39, 1)),
        PLAIN + " --weights weights.npy",
        "--weights: weights.npy, row 44: expected finite float32 numbers from 0, got 1e+39",
    ),
    "weights that float32 has not": (
        lambda: np.save("weights.npy", np.where(np.arange(N) == 44, 1e-50, 1)),
        PLAIN + " --weights weights.npy",
        "--weights: weights.npy, row 44: expected finite float32 numbers from 0, got 1e-50",
    ),
    "complex weights": (
        lambda: np.save("weights.npy", np.ones(N, complex)),
        PLAIN + " --weights weights.npy",
        "--weights: weights.npy: expected numbers, got complex128",
    ),
    "weights of time": (
        lambda: np.save("weights.npy", np.ones(N, "m8[s]")),
        PLAIN + " --weights weights.npy",
        "--weights: weights.npy: expected numbers, got timedelta64[s]",
    ),
    "long double": (
        lambda: np.save("logits.npy", LOGITS.astype(np.longdouble)),
        PLAIN,
        "--logits: logits.npy: expected floating numbers, got float128",
    ),
    "too many bytes": (
        None, PLAIN + " --bytes-per-token 1e39", "--bytes-per-token: expected more than 0"
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


@pytest.mark.parametrize("earlier", [False, True])
def test_a_file_that_is_found_damaged_late_leaves_nothing(earlier, files, monkeypatch):
    """What was saved before leads nowhere, and goes."""
    monkeypatch.setattr(_job, "_SECONDS", 0)
    prepare, arguments, message = BAD["npz damaged"]
    prepare()
    saved, save = [], _job._checkpoint.save
    monkeypatch.setattr(_job._checkpoint, "save", lambda *job: saved.append(save(*job)))
    if earlier:
        Path("out").mkdir()
        Path("out/other.txt").touch()
    result = run(*arguments.split(), "--report", "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert saved
    assert [path.name for path in files.glob("out/*")] == ["other.txt"] * earlier
    assert (files / "out").exists() == earlier


def test_a_full_disk_leaves_what_was_saved_before(files, monkeypatch):
    monkeypatch.setattr(_job, "_SECONDS", 0)
    whole = run(*FILES).stdout
    writes, savez = [], np.savez

    def full(file, *arrays, **keywords):
        writes.append(file)
        if len(writes) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        savez(file, *arrays, **keywords)

    with monkeypatch.context() as disk:
        disk.setattr(np, "savez", full)
        result = run(*FILES, "--report", "out")
    assert result.exit_code == 2
    assert result.stderr == (
        "jaxce: error: --report: cannot write out/state.npz: No space left on device\n"
    )
    resumed = run(*FILES, "--report", "out", "--resume").stdout
    assert resumed.startswith("resumed after 2 of 5 batches\n")
    assert resumed.endswith(whole)
