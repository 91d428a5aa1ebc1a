"""Where sessions are computed: in a thread of this process, or (`processes`) in processes of their own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from speechkit.streaming.batcher import Batcher, Meter
from speechkit.streaming.command import Command, SetPhrases, Settings, prepared
from speechkit.streaming.engine import Engine
from speechkit.streaming.event import Event

Tell = Callable[[list[Event], Exception | None], None]


class Handle(Protocol):
    """A session that is computed somewhere else."""

    def push(self, samples: np.ndarray) -> None:
        """Hands over (samples,) float32 at the session's rate."""
        ...

    def do(self, command: Command) -> None:
        """Asks for something, after all that was handed over before."""
        ...

    def drop(self) -> None:
        """Forgets the session."""
        ...

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that were handed over and not heard yet."""
        ...


class Pool(Protocol):
    """Opens sessions; every method may be called from any thread."""

    def open(self, settings: Settings, tell: Tell) -> Handle:
        """Begins a session; blocks for some milliseconds.

        Args:
            tell: takes events, and the error that ended the session, in a thread of the pool's.

        Raises:
            InputError: as `Settings.begin`.
            LostError: no worker is there at present.
        """
        ...

    def close(self) -> None:
        """Ends everything; sessions are not told."""
        ...

    @property
    def alive(self) -> int:
        """Workers that can take sessions."""
        ...


class LostError(RuntimeError):
    """The worker that computed a session is gone, and the session with it."""


class ThreadPool:
    """One model in one thread of this process."""

    def __init__(self, engine: Engine, max_batch: int = 32, wait_ms: float = 5.0, meter: Meter | None = None) -> None:
        self.engine = engine
        self.batcher = Batcher(engine, max_batch, wait_ms, meter)
        self._helper = ThreadPoolExecutor(1, "speechkit-phrases")  # what takes long, in a thread that holds nobody up

    def open(self, settings: Settings, tell: Tell) -> Handle:
        """As `Pool.open`."""
        return _Fed(self.batcher, self._helper, settings, tell)

    def close(self) -> None:
        """As `Pool.close`."""
        self.batcher.close()
        self._helper.shutdown(wait=False, cancel_futures=True)

    @property
    def alive(self) -> int:
        """As `Pool.alive`."""
        return int(self.batcher.alive)


class _Fed:
    """A session in a batcher of this process."""

    def __init__(self, batcher: Batcher, helper: ThreadPoolExecutor, settings: Settings, tell: Tell) -> None:
        session = settings.begin(batcher.engine)
        self._rate = settings.rate or session.rate
        self._batcher, self._helper, self._feed = batcher, helper, batcher.open(session, tell)

    def push(self, samples: np.ndarray) -> None:
        self._feed.push(samples)

    def do(self, command: Command) -> None:
        engine = self._batcher.engine
        slow = isinstance(command, SetPhrases)
        self._feed.do(self._helper.submit(prepared, command, engine) if slow else prepared(command, engine))

    def drop(self) -> None:
        self._batcher.drop(self._feed)

    @property
    def waiting_s(self) -> float:
        return self._feed.waiting(self._rate)
