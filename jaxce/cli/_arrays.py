"""Read arrays from files a block of rows at a time: .npy, .npz, .safetensors, or a folder of them.

Nothing is ever read whole: an .npy file is mapped into memory, the others are read from where the
rows are. Files are opened when their turn comes, so a folder may hold more of them than a process
may have open.
"""

import contextlib
import itertools
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import ml_dtypes
import numpy as np

from jaxce.cli._files import InputError

Read = Callable[[int, int], np.ndarray]  # entries [first, last) of the flattened array
SUFFIXES = (".npy", ".npz", ".safetensors")


class _Opened(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Read
    close: Callable[[], None] = lambda: None


class _Unreadable(Exception):
    """Why a file cannot be read, in a few words."""


class Column:
    """Rows of one array, from one file or from the files of a folder, one after another.

    Attributes:
        length: Number of rows: the product of all axes but those of an item.
        inner: Axes between the first one and those of an item.
        item: Shape of a row.
        dtype: As stored; bfloat16 where a .npy file holds numbers of two bytes without a type,
            which is how NumPy stores it.
    """

    def __init__(self, option: str, path: Path, item_ndim: int) -> None:
        """Look at the headers of all files; their contents are not read.

        Args:
            option: The option that named the path; its words are the array's name in a file that
                holds several.
            path: A file or a folder.
            item_ndim: How many of the last axes belong to a row.

        Raises:
            InputError: If a file cannot be read, is cut short, or does not fit the first one.
        """
        self.option, self.path, self._key = option, path, option.strip("-").replace("-", "_")
        self._files = _files(option, path)
        headers = [self._header(file) for file in self._files]
        first = headers[0]
        if len(first.shape) <= item_ndim:
            kind = "an axis of rows" + (" and one of classes" if item_ndim else "")
            raise InputError(
                f"{option}: {self._files[0]}: expected {kind}, got shape {first.shape}"
            )
        for file, header in zip(self._files, headers, strict=True):
            if header.shape[1:] != first.shape[1:] or len(header.shape) != len(first.shape):
                raise InputError(
                    f"{option}: {file}: expected shape {_any_rows(first.shape)} like "
                    f"{self._files[0].name}, got {header.shape}"
                )
            if header.dtype != first.dtype:
                raise InputError(
                    f"{option}: {file}: expected {first.dtype} like {self._files[0].name}, "
                    f"got {header.dtype}"
                )
        split = len(first.shape) - item_ndim
        self.inner, self.item, self.dtype = first.shape[1:split], first.shape[split:], first.dtype
        lengths = (math.prod(header.shape[:split]) for header in headers)
        self._starts = list(itertools.accumulate(lengths, initial=0))
        self.length = self._starts[-1]
        self._current: tuple[int, _Opened] | None = None

    def read(self, first: int, last: int) -> np.ndarray:
        """Return rows [first, last); read-only, and not copied where the file is mapped."""
        blocks: list[np.ndarray] = []
        size = math.prod(self.item)
        for i, (start, end) in enumerate(itertools.pairwise(self._starts)):
            low, high = max(first, start) - start, min(last, end) - start
            if low >= high:
                continue
            if self._current is None or self._current[0] != i:
                self.close()
                self._current = i, self._open(self._files[i])
            try:
                block = self._current[1].read(low * size, high * size)
            except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
                place = self.place(start + low)
                raise InputError(f"{self.option}: {place}: cannot read on: {error}") from None
            blocks.append(block.reshape(-1, *self.item))
        rows = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        if not rows.dtype.isnative:
            rows = rows.astype(rows.dtype.newbyteorder("="))
        rows.flags.writeable = False
        return rows

    def close(self) -> None:
        """Close the file that was read last; reading on opens it again."""
        if self._current is not None:
            self._current[1].close()
            self._current = None

    def place(self, row: int) -> str:
        """Return the file and the row in it, as stored there, of a row of this column."""
        part = max(i for i, start in enumerate(self._starts[:-1]) if start <= row)
        outer, *inner = np.unravel_index(row - self._starts[part], (self.length, *self.inner))
        return f"{self._files[part]}, row {', '.join(str(i) for i in (outer, *inner))}"

    def identity(self) -> list[tuple[str, int, int]]:
        """Return name, size and time of change of every file: other input has others."""
        stats = [(file.name, file.stat()) for file in self._files]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

    def _header(self, file: Path) -> _Opened:
        opened = self._open(file)
        opened.close()
        return opened

    def _open(self, file: Path) -> _Opened:
        try:
            opened = _OPEN[file.suffix](file, self._key)
        except _Unreadable as reason:
            raise InputError(f"{self.option}: {file}: {reason}") from None
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{self.option}: cannot read {file}: {reason}") from None
        return opened


def _files(option: str, path: Path) -> list[Path]:
    """Return the path itself or, of a folder, its files in the order of the numbers in them."""
    if not path.is_dir():
        files = [path]
    else:
        files = [file for file in path.iterdir() if not file.name.startswith(".")]
        # Shard 10 comes after shard 9.
        files.sort(
            key=lambda f: [p.zfill(20) if p.isdecimal() else p for p in _PIECES.findall(f.name)]
        )
        if not files:
            raise InputError(f"{option}: {path} holds no files")
    for file in files:
        if file.suffix not in SUFFIXES:
            known = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
            raise InputError(f"{option}: expected files that end in {known}, got {file}")
    return files


_PIECES = re.compile(r"\d+|\D+")


def _any_rows(shape: tuple[int, ...]) -> str:
    return f"(any, {', '.join(map(str, shape[1:]))})"


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Read the header of the .npy format; what follows are the numbers."""
    headers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, fortran, dtype = headers[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError):
        raise _Unreadable("expected an array in NumPy's .npy format") from None
    if dtype.hasobject:
        raise _Unreadable("expected numbers, got Python objects")
    if not shape:
        raise _Unreadable("expected an array of rows, got a single number")
    if fortran and len(shape) > 1:
        raise _Unreadable("its columns come first: save numpy.ascontiguousarray of it")
    if dtype == np.dtype("V2"):
        dtype = np.dtype(ml_dtypes.bfloat16)
    return shape, dtype


def _whole(shape: tuple[int, ...], dtype: np.dtype, there: int) -> None:
    """Refuse an array that is longer than the bytes that are there."""
    if there < math.prod(shape) * dtype.itemsize:
        row = there // (math.prod(shape[1:]) * dtype.itemsize)
        raise _Unreadable(f"the file is cut short: it ends in row {row} of {shape[0]}")


def _npy(path: Path, key: str) -> _Opened:
    with path.open("rb") as file:
        shape, dtype = _header(file)
        offset = file.tell()
    _whole(shape, dtype, path.stat().st_size - offset)
    if not math.prod(shape):  # there is nothing to map
        return _Opened(shape, dtype, lambda first, last: np.empty(0, dtype))
    numbers = np.asarray(np.memmap(path, dtype, "r", offset, shape=(math.prod(shape),)))
    return _Opened(shape, dtype, lambda first, last: numbers[first:last])


def _npz(path: Path, key: str) -> _Opened:
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            member = archive.open(_chosen(archive.namelist(), key, ".npy"))
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise _Unreadable(f"not a whole .npz file: {error}") from None
        stack.enter_context(member)
        shape, dtype = _header(member)
        begin, size = member.tell(), dtype.itemsize
        _whole(shape, dtype, archive.getinfo(member.name).file_size - begin)

        def read(first: int, last: int) -> np.ndarray:
            member.seek(begin + first * size)  # onwards costs what lies between
            return np.frombuffer(member.read((last - first) * size), dtype)

        return _Opened(shape, dtype, read, stack.pop_all().close)


def _safetensors(path: Path, key: str) -> _Opened:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        raise _Unreadable("reading it needs safetensors: pip install 'jaxce[cli]'") from None
    try:
        file = safe_open(path, framework="np")
        array = file.get_slice(_chosen(list(file.keys()), key))
        shape = tuple(array.get_shape())
    except SafetensorError as error:
        raise _Unreadable(f"not a whole .safetensors file: {error}") from None
    if not shape:
        raise _Unreadable("expected an array of rows, got a single number")
    try:
        dtype = array[:0].dtype
    except (SafetensorError, TypeError, AttributeError):
        raise _Unreadable(f"holds {array.get_dtype()}, a type that NumPy lacks") from None

    def read(first: int, last: int) -> np.ndarray:
        pieces = [array[piece].reshape(-1) for piece in _slices(shape, first, last)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    return _Opened(shape, dtype, read)


def _slices(shape: tuple[int, ...], first: int, last: int) -> Iterator[tuple[slice, ...]]:
    """Return slices of an array that are entries [first, last) of it if flattened, in order."""
    size = math.prod(shape[1:])
    while first < last:
        row, offset = divmod(first, size)
        rows = (last - first) // size
        if offset or not rows:
            end = min(last, (row + 1) * size)
            for inner in _slices(shape[1:], offset, offset + end - first):
                yield slice(row, row + 1), *inner
        else:
            end = first + rows * size
            yield (slice(row, row + rows),)
        first = end


def _chosen(names: Sequence[str], key: str, ending: str = "") -> str:
    """Return the name of the only array, or of the one called after the option."""
    wanted = key + ending
    if wanted in names or len(names) != 1:
        if wanted not in names:
            found = ", ".join(name.removesuffix(ending) for name in names) or "nothing"
            raise _Unreadable(f"expected one array, or one called {key}; it holds {found}")
        return wanted
    return names[0]


_OPEN = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}
