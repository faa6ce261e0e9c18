"""Read the distributions that a command line names: lists, CSV columns, files of bytes."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxce.cli._files import InputError

# Probabilities typed with two decimals may miss 1 by this much.
_TYPED = 0.02


@dataclass(frozen=True)
class Outcomes:
    """A distribution over named outcomes.

    Attributes:
        source: What it is, in a few words.
        p: Probabilities in float64, of shape [outcomes].
        labels: Their names.
        kind: What one outcome is called.
        size: Number of observations, where they were counted; else 0.
    """

    source: str
    p: np.ndarray
    labels: list[str]
    kind: str = "outcome"
    size: int = 0

    def __str__(self) -> str:
        """Return one line for the user."""
        if self.size:
            different = np.count_nonzero(self.p)
            return f"{self.source}: {self.size} {self.kind}s, {different} different ones"
        return f"{self.source}: {len(self.p)} {self.kind}s"


_WEATHER = ("sunny", "fair", "cloudy", "overcast", "rain", "storm", "snow", "hail")

# Named examples, and the code that a fit of them starts from: made for the opposite climate.
EXAMPLES = {
    "weather": (
        Outcomes(
            "weather", np.array([0.35, 0.35, 0.1, 0.1, 0.04, 0.04, 0.01, 0.01]), list(_WEATHER)
        ),
        np.array([5.0, 5.0, 4.0, 4.0, 3.0, 3.0, 2.0, 2.0]),
    ),
}


def numbers(option: str, text: str) -> np.ndarray:
    """Return a comma-separated list as float64."""
    parts = text.split(",")
    try:
        return np.array([float(part) for part in parts])
    except ValueError:
        bad = next(part for part in parts if not _is_number(part))
        raise InputError(
            f"{option}: expected numbers separated by commas, got {bad.strip()!r}"
        ) from None


def probabilities(option: str, text: str) -> np.ndarray:
    """Return a comma-separated list of probabilities, normalized if rounding left a rest."""
    p = _shares(option, numbers(option, text), "number {}")
    total = math.fsum(float(part) for part in text.split(","))
    if abs(total - 1) > _TYPED:
        raise InputError(
            f"{option}: expected probabilities that sum to 1, got a sum of {total:.6g} "
            "(--csv takes weights of any sum)"
        )
    return p


def from_probs(text: str) -> Outcomes:
    """Return the distribution of `--probs`."""
    p = probabilities("--probs", text)
    return Outcomes("probabilities", p, [str(i) for i in range(len(p))])


def from_csv(path: Path, column: str | None) -> Outcomes:
    """Return the distribution of a CSV column of weights; a column of words gives the labels."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable("--csv", path, error) from None
    first = text.partition("\n")[0]
    delimiter = next((mark for mark in "\t;" if mark in first and "," not in first), ",")
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(f"--csv: {path}, line {reader.line_num}: {error}") from None
    header = rows[0][1] if rows and not any(map(_is_number, rows[0][1])) else []
    rows = rows[bool(header) :]
    if not rows:
        raise InputError(f"--csv: {path} has no rows of numbers")
    chosen = _column(path, column, header, rows[0][1])
    values: list[float] = []
    for line, row in rows:
        cell = row[chosen] if chosen < len(row) else ""
        if not _is_number(cell):
            raise InputError(f"--csv: {path}, line {line}: expected a number, got {cell!r}")
        values.append(float(cell))
    lines = [line for line, _ in rows]
    p = _shares(f"--csv: {path}", np.array(values), "line {}", lines)
    names = next((i for i, cell in enumerate(rows[0][1]) if not _is_number(cell)), None)
    labels = [
        str(i) if names is None or names >= len(row) else row[names].strip()
        for i, (_, row) in enumerate(rows)
    ]
    return Outcomes(path.name, p, labels)


def _column(path: Path, column: str | None, header: list[str], first: list[str]) -> int:
    """Return the index of the wanted column; by default, the only one that holds numbers."""
    header = [name.strip() for name in header]
    width = max(len(header), len(first))
    if column is None:
        numeric = [i for i, cell in enumerate(first) if _is_number(cell)]
        if len(numeric) == 1 or width == 1:
            return numeric[0] if numeric else 0
        names = ", ".join(header or map(str, range(1, width + 1)))
        raise InputError(f"--csv: {path} has several columns: choose one of {names} by --column")
    if column in header:
        return header.index(column)
    if column.isdecimal() and 1 <= int(column) <= width:
        return int(column) - 1
    names = f"one of {', '.join(header)}, or " if header else ""
    raise InputError(f"--column: expected {names}a number from 1 to {width}, got {column!r}")


def from_bytes(path: Path) -> Outcomes:
    """Return the distribution of the bytes of a file."""
    counts = np.zeros(256, np.int64)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                counts += np.bincount(np.frombuffer(block, np.uint8), minlength=256)
    except OSError as error:
        raise _unreadable("--bytes", path, error) from None
    size = int(counts.sum())
    if not size:
        raise InputError(f"--bytes: {path} is empty")
    labels = [f"{i:02x} {chr(i)!r}" if 32 <= i < 127 else f"{i:02x}" for i in range(256)]
    return Outcomes(path.name, counts / size, labels, "byte", size)


def _shares(
    source: str, weights: np.ndarray, place: str, places: list[int] | None = None
) -> np.ndarray:
    """Return weights over their sum."""
    for i, weight in enumerate(weights):
        if not (0 <= weight < math.inf):
            at = place.format(places[i] if places else i + 1)
            raise InputError(f"{source}: expected finite numbers from 0, got {weight:g} at {at}")
    if not weights.any():
        raise InputError(f"{source}: all weights are 0")
    scaled = weights / weights.max()  # the sum of large finite weights may overflow
    return scaled / scaled.sum()


def _unreadable(option: str, path: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or "it is not a text file in UTF-8"
    return InputError(f"{option}: cannot read {path}: {reason}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
