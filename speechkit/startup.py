"""How a command begins and ends: Ctrl-C in the seconds of importing, standard streams that are closed or full.

This module imports almost nothing, so that it can come first.
"""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from speechkit.errors import InputError

INTERRUPTED = 130  # 128 + SIGINT, as shells count
TERMINATED = 143  # 128 + SIGTERM
CLOSED = 141  # 128 + SIGPIPE
UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE)


def begin() -> None:
    """To be called before anything heavy is imported, and `ctrl_c_raises` when there is something to lose.

    Until then Ctrl-C ends the process at once: a KeyboardInterrupt would show where the import was, or be taken for a
    package that is missing. Files that are opened do not get the numbers of standard streams that are closed.
    """
    _exchange(signal.default_int_handler, _leave)
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115


def ctrl_c_raises() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt again."""
    _exchange(_leave, signal.default_int_handler)


@contextmanager
def starting() -> Iterator[None]:
    """For imports: Ctrl-C ends the process at once."""
    before = signal.getsignal(signal.SIGINT)
    _exchange(signal.default_int_handler, _leave)
    try:
        yield
    finally:
        if before is not _leave:
            ctrl_c_raises()


@contextmanager
def printing() -> Iterator[None]:
    """For a whole command: ends the process where standard output does not take what is printed.

    With a sentence and exit code 2, or as SIGPIPE would where the reader has enough.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in UNWRITTEN:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at its end
        if error.errno == errno.EPIPE:
            raise SystemExit(CLOSED) from None
        print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None


def status(command: Callable[[], None]) -> int:
    """Runs a small command: 0, or 2 after one sentence for bad input, or 130 after Ctrl-C."""
    try:
        command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def _exchange(old: object, new: object) -> None:
    """Another handler in the place of `old`; one that somebody else set stays, and so does a Ctrl-C that is ignored."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is old:
        signal.signal(signal.SIGINT, new)  # type: ignore[arg-type]
