"""Many sessions, one model: a thread of its own steps whichever sessions are ready together."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np

from speechkit.errors import InputError
from speechkit.streaming.engine import Engine
from speechkit.streaming.event import Event
from speechkit.streaming.session import Session

log = logging.getLogger(__name__)
Command = Callable[[Session], None]


class Meter(Protocol):
    """What is measured of every call of the model."""

    def stepped(self, batch: int, failed: int, seconds: float, waited: Sequence[float]) -> None:
        """A call for so many sessions, for how many it failed, its seconds, and for how many each one had waited."""
        ...


class Feed:
    """One session as its owner sees it, from any thread: what goes in is done in order, what comes out is told.

    Args:
        batcher: steps it.
        session: is touched by the batcher's thread alone from here on.
        tell: takes the events, and the error that ended the session if one did, in the batcher's thread.
    """

    def __init__(
        self, batcher: "Batcher", session: Session, tell: Callable[[list[Event], Exception | None], None]
    ) -> None:
        self.session, self.tell = session, tell
        self._batcher = batcher
        self._inbox: deque[tuple[float, np.ndarray | Command | Future[Command]]] = deque()  # and when each came
        self._pushed = 0  # samples in the inbox
        self.came_at = 0.0  # what was taken in last
        self.ready_at: float | None = None  # since when it waits for its turn
        self.over = False

    def push(self, samples: np.ndarray) -> None:
        """Hands over (samples,) at the session's rate."""
        with self._batcher.changed:
            if not self.over:
                self._inbox.append((time.monotonic(), samples))
                self._pushed += len(samples)
                self._batcher.changed.notify()

    def do(self, command: Command | Future[Command]) -> None:
        """Has a command done to the session after all that was handed over before.

        One that is still being made is waited for, which holds up no other session.
        """
        with self._batcher.changed:
            if not self.over:
                self._inbox.append((time.monotonic(), command))
                self._batcher.changed.notify()
        if isinstance(command, Future):
            command.add_done_callback(lambda _: self._batcher.wake())

    def waiting(self, rate: int) -> float:
        """Seconds of audio, pushed at `rate`, that were not heard yet."""
        return self._pushed / rate + self.session.waiting_s

    @property
    def due(self) -> bool:
        """Whether something can be taken in."""
        return bool(self._inbox) and not (isinstance(item := self._inbox[0][1], Future) and not item.done())

    def take_in(self) -> None:
        """Does what waits, no more than has come by now; in the batcher's thread."""
        for _ in range(len(self._inbox)):
            with self._batcher.changed:
                if self.over or not self.due:
                    return
                self.came_at, item = self._inbox.popleft()
            if isinstance(item, Future):
                item.result()(self.session)
            elif callable(item):
                item(self.session)
            else:
                self.session.push(item)
                with self._batcher.changed:  # only now, so that what waits is never more than it seems
                    self._pushed -= len(item)
            if self.ready_at is None and self.session.ready:
                self.ready_at = self.came_at


class Batcher:
    """Steps sessions in a thread until it is closed.

    Args:
        engine: the model; its `step` is called in the thread alone.
        max_batch: sessions in a call.
        wait_ms: how long a call waits for more sessions, from when what makes the first one ready has come.
        meter: measures.
    """

    def __init__(self, engine: Engine, max_batch: int = 32, wait_ms: float = 5.0, meter: Meter | None = None) -> None:
        if not 1 <= max_batch <= 4096:
            raise InputError(f"max_batch must be from 1 to 4096, got {max_batch}")
        if not 0 <= wait_ms <= 1000:
            raise InputError(f"wait_ms must be from 0 to 1000, got {wait_ms}")
        self.engine, self.max_batch, self.wait_s, self.meter = engine, max_batch, wait_ms / 1000, meter
        self.changed = threading.Condition()
        self._feeds: list[Feed] = []
        self._closed = False
        self.stepping_since: float | None = None  # when the call under way began
        self._thread = threading.Thread(target=self._run, name="speechkit-batcher", daemon=True)
        self._thread.start()

    def open(self, session: Session, tell: Callable[[list[Event], Exception | None], None]) -> Feed:
        """Takes a session."""
        feed = Feed(self, session, tell)
        with self.changed:
            if self._closed:
                raise ValueError("this batcher was closed")
            self._feeds.append(feed)
        return feed

    def drop(self, feed: Feed) -> None:
        """Forgets a session, whose owner is gone."""
        with self.changed:
            feed.over = True
            feed._inbox.clear()
            if feed in self._feeds:
                self._feeds.remove(feed)

    def close(self) -> None:
        """Ends the thread; what sessions still have to do is not done."""
        with self.changed:
            self._closed = True
            self.changed.notify()
        self._thread.join()

    def wake(self) -> None:
        """Has the thread look again."""
        with self.changed:
            self.changed.notify()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self.changed:
                while not self._closed and not any(feed.due for feed in self._feeds) and self._pause() != 0:
                    self.changed.wait(self._pause())
                if self._closed:
                    return
                feeds = list(self._feeds)
            for feed in feeds:
                self._take_in(feed)
            if self._pause() == 0:
                self._step([feed for feed in _ready(feeds) if feed.session.closing is None][: self.max_batch])
                # A second hearing takes long: what others said is told before, and they go on after each one.
                self._step([feed for feed in _ready(feeds) if feed.session.closing is not None][:1])

    def _take_in(self, feed: Feed) -> None:
        try:
            feed.take_in()
        except Exception as error:
            self._end(feed, error)
            return
        self._tell(feed, feed.session.events(), None)

    def _pause(self) -> float | None:
        """Seconds until a call is due, 0 where it is: full, with everybody, or long enough waited for; else None."""
        with self.changed:
            since = [feed.ready_at for feed in self._feeds if feed.ready_at is not None]
            if not since:
                return None
            if len(since) >= min(self.max_batch, len(self._feeds)):
                return 0
            return max(0.0, min(since) + self.wait_s - time.monotonic())

    def _step(self, feeds: Sequence[Feed]) -> None:
        if not feeds:
            return
        begin = self.stepping_since = time.monotonic()
        waited = [begin - min(feed.came_at, feed.ready_at or begin) for feed in feeds]
        try:
            failed = self.engine.step([feed.session for feed in feeds])
        except Exception as error:  # whatever it is, the thread goes on
            failed = {feed.session: error for feed in feeds}
        self.stepping_since = None
        if self.meter is not None:
            self.meter.stepped(len(feeds), len(failed), time.monotonic() - begin, waited)
        for feed in feeds:
            if feed.session in failed:
                log.error("the model failed for a session", exc_info=failed[feed.session])
                self._end(feed, failed[feed.session])
                continue
            feed.ready_at = time.monotonic() if feed.session.ready else None
            self._tell(feed, feed.session.events(), None)
            if feed.session.done:
                self.drop(feed)

    def _end(self, feed: Feed, error: Exception) -> None:
        self._tell(feed, feed.session.events(), error)
        self.drop(feed)

    def _tell(self, feed: Feed, events: list[Event], error: Exception | None) -> None:
        """Tells an owner; one that fails is treated as gone."""
        if feed.over or not (events or error):
            return
        try:
            feed.tell(events, error)
        except Exception:
            log.exception("the owner of a session failed")
            self.drop(feed)


def _ready(feeds: Sequence[Feed]) -> list[Feed]:
    """Those that wait for their turn, the longest first."""
    ready = [feed for feed in feeds if feed.ready_at is not None and not feed.over]
    return sorted(ready, key=lambda feed: feed.ready_at or 0.0)
