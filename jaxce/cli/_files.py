"""What every sub-command does with files: refuse early, and never leave half a result."""

import contextlib
import os
from collections.abc import Generator, Sequence
from pathlib import Path


class InputError(Exception):
    """Something the user gave does not work; the message is one line that says what and why."""


class OutputError(InputError):
    """A file cannot be written: what was read is not to blame."""


def check_outputs(outputs: dict[str, Path | None], inputs: Sequence[Path | None] = ()) -> None:
    """Refuse outputs that cannot be written, before any long work.

    Args:
        outputs: Option names and the files that they ask for.
        inputs: Files that are read, and must not be overwritten.
    """
    taken = {path.resolve() for path in inputs if path is not None}
    for option, path in outputs.items():
        if path is None:
            continue
        with replacing(option, path, keep=False):
            if path.resolve() in taken:
                raise InputError(f"{option}: {path} is used by another option")
            taken.add(path.resolve())


@contextlib.contextmanager
def replacing(option: str, path: Path, *, keep: bool = True) -> Generator[Path]:
    """Give a file to write to, which becomes `path` at the end, whole or not at all.

    Args:
        option: Name of the option, for the message.
        path: The file to make or to replace.
        keep: False to throw the result away: a test of whether writing works.

    Yields:
        A new file beside `path`; `path` itself if that is a device or a pipe.
    """
    draft = None
    try:
        if path.is_dir():
            raise InputError(f"{option}: expected a file, got the directory {path}")
        if path.exists() and not path.is_file():  # /dev/stdout must stay what it is
            yield path
            return
        final = path.resolve()  # a link goes on pointing where it does
        if final.exists():
            final.open("ab").close()  # renaming would get past a file's own write protection
        draft = final.with_name(f".{final.name[:200]}.{os.getpid()}.partial")
        draft.touch()
        yield draft
        if keep:
            draft.replace(final)
    except OSError as error:
        raise OutputError(f"{option}: cannot write {path}: {error.strerror or error}") from None
    finally:
        if draft is not None:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
