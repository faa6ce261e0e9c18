"""Ctrl-C that waits for a safe moment."""

import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType


@contextlib.contextmanager
def deferred() -> Generator[Callable[[], bool]]:
    """Make the first Ctrl-C a note, which a loop reads between two compiled scans.

    An exception in the middle of one may be swallowed by a callback of JAX, or end the process
    under a running computation, which then crashes. The second Ctrl-C is an exception again.

    Where Ctrl-C is not Python's own KeyboardInterrupt, or not ours to change (outside the main
    thread), it is left as it is.

    Yields:
        A function that tells whether there was a Ctrl-C.
    """
    seen = threading.Event()

    def note(signum: int, frame: FrameType | None) -> None:
        if seen.is_set():
            signal.default_int_handler(signum, frame)
        seen.set()

    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    ours = main and before is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield seen.is_set
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
