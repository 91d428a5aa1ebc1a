"""How far a recording is: a bar on a terminal's standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from speechkit.errors import InputError
from speechkit.reader import open_source

Passed = Callable[[Iterator[np.ndarray], int], Iterator[np.ndarray]]


@contextmanager
def progress(path: str, shown: bool) -> Iterator[Passed]:
    """Gives a function that passes blocks (samples,) at a rate on, and moves the bar where one is shown."""
    if not shown:
        yield _unseen
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:.0f} s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(path, total=_seconds(path))

        def passed(blocks: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
            for block in blocks:
                yield block
                bar.advance(task, len(block) / rate)

        yield passed


def _unseen(blocks: Iterator[np.ndarray], _rate: int) -> Iterator[np.ndarray]:
    return blocks


def _seconds(path: str) -> float | None:
    """What the header says, None where it says nothing or is not to be read twice."""
    if path == "-":
        return None
    try:
        with open_source(path) as reader:
            return reader.info.seconds if reader.sized else None
    except (InputError, UnicodeEncodeError):
        return None  # said when it is transcribed
