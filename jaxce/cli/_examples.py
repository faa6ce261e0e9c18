"""What `jaxce evaluate` is given: logits, labels and what goes with them, row by row."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxce.cli._arrays import Column
from jaxce.cli._files import InputError

_SCANNED = 1 << 20  # rows at a time
# Of a batch, so that its logits stay in a processor's cache, and what is kept of each of its rows
# in memory that the system need not clear again for the next.
_ENTRIES, _ROWS = 1 << 21, 5 << 14


@dataclass(frozen=True)
class Examples:
    """Columns of one length, and how labels are to be understood.

    Attributes:
        logits: The logits.
        labels: The labels.
        others: Columns called where, weights and bytes, as far as they are given.
        bytes_per_token: The same number of bytes for every example, in place of a column.
        ignore_index: The label of examples that do not count.
    """

    logits: Column
    labels: Column
    others: dict[str, Column]
    bytes_per_token: float | None
    ignore_index: int | None

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.logits.item[0]

    @property
    def with_bytes(self) -> bool:
        """Whether it is known how many bytes an example stands for."""
        return self.bytes_per_token is not None or "bytes" in self.others

    def close(self) -> None:
        """Close the files."""
        for column in (self.logits, self.labels, *self.others.values()):
            column.close()

    def identity(self) -> dict[str, Any]:
        """Return what tells these files from others."""
        columns = {"logits": self.logits, "labels": self.labels, **self.others}
        return {name: column.identity() for name, column in columns.items()} | {
            "bytes_per_token": self.bytes_per_token,
            "ignore_index": self.ignore_index,
        }

    def columns(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Return rows [first, last) of all but the logits; a label that is no class becomes -1."""
        found = {name: column.read(first, last) for name, column in self.others.items()}
        given = self.labels.read(first, last)
        found["labels"] = given.astype(np.int32)
        if not self._labels_are_classes:
            found["labels"][(given < 0) | (given >= self.classes)] = -1
        if "where" in found:
            found["where"] = found["where"].astype(bool)
        if self.ignore_index is not None:
            found["where"] = found.get("where", True) & (given != self.ignore_index)
        for name in {"weights", "bytes"} & set(found):
            found[name] = found[name].astype(np.float32)
        if self.bytes_per_token is not None:
            found["bytes"] = np.full(last - first, self.bytes_per_token, np.float32)
        for array in found.values():
            array.flags.writeable = False  # and need not be copied once more
        return found

    def check(self, *, skip_bad_labels: bool) -> None:
        """Refuse labels, weights and the like that make no sense; the logits are not read."""
        for first in range(0, self.labels.length, _SCANNED):
            last = min(first + _SCANNED, self.labels.length)
            for name, column in self.others.items():
                values = column.read(first, last)
                if name == "where":
                    self._refuse(column, first, (values == 0) | (values == 1), "0 or 1", values)
                else:
                    with np.errstate(over="ignore"):
                        narrow = values.astype(np.float32)
                    good = (values >= 0) & (narrow < np.inf) & ((values == 0) | (narrow > 0))
                    self._refuse(column, first, good, "finite float32 numbers from 0", values)
            if not (skip_bad_labels or self._labels_are_classes):
                given = self.labels.read(first, last)
                rows = self.columns(first, last)
                good = (rows["labels"] >= 0) | ~rows.get("where", np.ones((), bool))
                if "weights" in rows:
                    good = good | (rows["weights"] == 0)
                expected = f"classes from 0 to {self.classes - 1}"
                self._refuse(self.labels, first, good, expected, given)

    @cached_property
    def _labels_are_classes(self) -> bool:
        """Whether all of them are."""
        # As unsigned numbers negative ones are the largest of all: one pass instead of two.
        unsigned = f"u{self.labels.dtype.itemsize}"
        return all(
            self.labels.read(first, min(first + _SCANNED, self.labels.length)).view(unsigned).max()
            < self.classes
            for first in range(0, self.labels.length, _SCANNED)
        )

    @staticmethod
    def _refuse(
        column: Column, first: int, good: np.ndarray, expected: str, values: np.ndarray
    ) -> None:
        if not good.all():
            at = int(np.argmin(good))
            place = column.place(first + at)
            raise InputError(f"{column.option}: {place}: expected {expected}, got {values[at]}")

    def default_batch_size(self, devices: int) -> int:
        """Return how many rows are read at once, for every device an odd number of whole lines.

        With a power of two the numbers of a row would share one place in a processor's cache.
        """
        rows = min(_ENTRIES // self.classes, _ROWS, self.logits.length // devices)
        lines = max(1, rows // 16)
        return 16 * (lines - (lines % 2 == 0)) * devices


@dataclass(frozen=True)
class Batches:
    """The batches from a row on."""

    examples: Examples
    size: int
    start: int = 0

    def __len__(self) -> int:
        """How many they are."""
        return -(-(self.examples.logits.length - self.start) // self.size)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Read one after the other."""
        end = self.examples.logits.length
        for first in range(self.start, end, self.size):
            last = min(first + self.size, end)
            logits = self.examples.logits.read(first, last)
            yield {"logits": logits, **self.examples.columns(first, last)}


def opened(
    logits: Path,
    labels: Path,
    where: Path | None,
    weights: Path | None,
    bytes_per_token: str | None,
    ignore_index: int | None,
) -> Examples:
    """Open the files of a command line and see that they fit each other."""
    scores = Column("--logits", logits, 1)
    if not _is_real(_kind(scores.dtype), np.floating):
        raise InputError(f"--logits: {logits}: expected floating numbers, got {scores.dtype}")
    if not (scores.length and scores.item[0]):
        raise InputError(f"--logits: {logits}: expected rows and classes, got none")
    classes = Column("--labels", labels, 0)
    if not np.issubdtype(classes.dtype, np.integer):
        raise InputError(f"--labels: {labels}: expected integers, got {classes.dtype}")
    paths: dict[str, Path | None] = {"where": where, "weights": weights}
    constant = None
    if bytes_per_token is not None:
        try:
            constant = float(bytes_per_token)
        except ValueError:
            paths["bytes"] = Path(bytes_per_token)
        else:
            float32 = np.finfo(np.float32)
            if not float(float32.tiny) <= constant <= float(float32.max):
                raise InputError(f"--bytes-per-token: expected more than 0, got {constant:g}")
    options = {"bytes": "--bytes-per-token"}
    others = {
        name: Column(options.get(name, f"--{name}"), path, 0)
        for name, path in paths.items()
        if path is not None
    }
    for column in (classes, *others.values()):
        _check_length(column, scores)
    for name, column in others.items():
        kind = _kind(column.dtype)
        if kind != np.bool_ and not _is_real(kind, np.integer if name == "where" else np.number):
            expected = "booleans" if name == "where" else "numbers"
            raise InputError(f"{column.option}: {column.path}: expected {expected}, got {kind}")
    return Examples(scores, classes, others, constant, ignore_index)


def _check_length(column: Column, logits: Column) -> None:
    if (column.length, column.inner) != (logits.length, logits.inner):
        got, expected = (_shape(c) for c in (column, logits))
        raise InputError(
            f"{column.option}: {column.path}: expected shape {expected}, "
            f"that of --logits without classes, got {got}"
        )


def _shape(column: Column) -> tuple[int, ...]:
    inner = int(np.prod(column.inner, dtype=np.int64))
    return (column.length // max(inner, 1), *column.inner)


def _is_real(dtype: np.dtype, kind: type[np.generic]) -> bool:
    """Whether JAX has such numbers: no complex or longer ones, and no times."""
    return np.issubdtype(dtype, kind) and dtype.kind in "iuf" and dtype.itemsize <= 8


def _kind(dtype: np.dtype) -> np.dtype:
    """Return a type of NumPy's own: bfloat16 counts as float32."""
    return np.dtype(np.float32) if dtype.name == "bfloat16" else dtype
