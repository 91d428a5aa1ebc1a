"""Sessions computed in several processes, each with a model of its own; one that dies takes its own sessions alone."""

import itertools
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from speechkit.errors import InputError
from speechkit.streaming.batcher import Batcher, Meter
from speechkit.streaming.command import Command, Settings
from speechkit.streaming.engine import Engine
from speechkit.streaming.event import Event
from speechkit.streaming.pool import Handle, LostError, Tell, ThreadPool

log = logging.getLogger(__name__)
BROKEN = 5  # calls in a row that fail for all of their streams
HUNG = 70  # exit code
START_S, OPEN_S, AGAIN_S = 300.0, 10.0, 1.0  # how long a start and an opening may take; before a dead one starts again


class ProcessPool:
    """Several processes; a session goes to the one that has the fewest.

    Args:
        count: processes.
        load: makes the engine, in each process; must be a function that can be sent there.
        max_batch: as in `Batcher`.
        wait_ms: as in `Batcher`.
        meter: measures the calls of all.

        hang_s: a call of the model that takes longer ends its process.

    A process whose model fails for all streams of `BROKEN` calls in a row ends too; another one takes its place.

    Raises:
        InputError: what `load` raised.
    """

    def __init__(
        self,
        count: int,
        load: Callable[[], Engine],
        max_batch: int = 32,
        wait_ms: float = 5.0,
        meter: Meter | None = None,
        hang_s: float = 60.0,
    ) -> None:
        if not 1 <= count <= 256:
            raise InputError(f"workers must be from 0 to 256, got {count}")
        self._closed = False
        self._begin: Callable[[], _Worker] = lambda: _Worker((load, max_batch, wait_ms, hang_s), meter, self._ended)
        self._workers = [self._begin() for _ in range(count)]
        try:
            for worker in self._workers:
                worker.wait()
        except BaseException:
            self.close()
            raise

    def open(self, settings: Settings, tell: Tell) -> Handle:
        """As `Pool.open`."""
        ready = [worker for worker in self._workers if worker.ready]
        if not ready:
            raise LostError("no worker is there at present: try again in some seconds")
        return min(ready, key=lambda worker: len(worker.sessions)).open(settings, tell)

    def close(self) -> None:
        """As `Pool.close`."""
        self._closed = True
        for worker in self._workers:
            worker.stop()

    @property
    def alive(self) -> int:
        """As `Pool.alive`."""
        return sum(worker.ready for worker in self._workers)

    def _ended(self, worker: "_Worker") -> None:
        """Starts another one in the place of a worker that died; in that worker's own thread."""
        if self._closed or worker not in self._workers:
            return
        log.error("a worker process ended with exit code %s; another one starts", worker.process.exitcode)
        time.sleep(AGAIN_S)
        if not self._closed:
            self._workers[self._workers.index(worker)] = self._begin()


class _Worker:
    """A process as the parent sees it."""

    def __init__(
        self,
        work: tuple[Callable[[], Engine], int, float, float],
        meter: Meter | None,
        ended: Callable[["_Worker"], None],
    ) -> None:
        self.meter, self.ended = meter, ended
        self.sessions: dict[int, _Remote] = {}
        self._numbers = itertools.count()
        self._up = threading.Event()
        self._failure: Exception | None = None
        self.gone = False
        self._failing = 0  # calls in a row that failed for all of their streams
        context = multiprocessing.get_context("spawn")  # a process with threads must not be forked
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, *work), daemon=True)
        self.process.start()
        theirs.close()
        self._out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for target in (self._send, self._receive):
            threading.Thread(target=target, daemon=True, name=f"speechkit-worker-{self.process.pid}").start()

    @property
    def ready(self) -> bool:
        """Whether it takes sessions."""
        return self._up.is_set() and not self.gone

    def wait(self) -> None:
        """Waits for the model to be loaded."""
        if not self._up.wait(START_S):
            raise InputError(f"a worker did not start within {START_S:g} s")
        if self._failure is not None:
            raise self._failure

    def open(self, settings: Settings, tell: Tell) -> Handle:
        """As `Pool.open`."""
        remote = _Remote(self, next(self._numbers), settings.rate, tell)
        self.sessions[remote.number] = remote
        if self.gone:  # the process ended just now, and its sessions have been told
            self.sessions.pop(remote.number, None)
            raise LostError("the worker ended just now: try again")
        self.send((remote.number, settings))
        if not remote.opened.wait(OPEN_S):
            remote.drop()
            raise LostError(f"a worker did not answer within {OPEN_S:g} s")
        if remote.failure is not None:
            self.sessions.pop(remote.number, None)
            raise remote.failure
        return remote

    def send(self, message: Any) -> None:
        """Hands a message to the thread that sends: a worker that does not read blocks nobody else."""
        self._out.put(message)

    def stop(self) -> None:
        """Ends the process."""
        self.gone = True
        self.process.kill()
        self._out.put(None)

    def _send(self) -> None:
        while (message := self._out.get()) is not None:
            try:
                self._pipe.send(message)
            except OSError:
                return

    def _receive(self) -> None:
        try:
            while True:
                self._take(*self._pipe.recv())
        except (EOFError, OSError):
            pass
        self.gone = True
        self.process.join(5)
        if not self._up.is_set():
            self._failure = InputError("a worker process ended while it loaded the model")
            self._up.set()
        self._out.put(None)
        error = LostError("the worker that computed this stream ended unexpectedly")
        for remote in list(self.sessions.values()):
            remote.failure = error
            remote.opened.set()
            remote.tell([], error)
        self.sessions.clear()
        self.ended(self)

    def _take(self, kind: str, *values: Any) -> None:
        match kind:
            case "up":
                self._failure = values[0]
                self._up.set()
            case "opened":
                if (remote := self.sessions.get(values[0])) is not None:
                    remote.failure, remote.rate = values[1], values[2]
                    remote.opened.set()
            case "told":
                number, events, error = values
                remote = self.sessions.get(number)
                if remote is not None:
                    remote.tell(events, error)
            case "heard":
                for number, waiting in values[0].items():
                    if (remote := self.sessions.get(number)) is not None:
                        remote.unheard = waiting
            case "stepped":
                if self.meter is not None:
                    self.meter.stepped(*values)
                self._failing = self._failing + 1 if values[0] == values[1] else 0
                if self._failing >= BROKEN:
                    self.process.kill()


class _Remote:
    """A session in another process."""

    def __init__(self, worker: _Worker, number: int, rate: int | None, tell: Tell) -> None:
        self.worker, self.number, self.tell = worker, number, tell
        self.rate = rate or 0
        self.opened = threading.Event()
        self.failure: Exception | None = None
        self.pushed = 0  # samples
        self.unheard: tuple[int, float] = (0, 0.0)  # samples that had come when the worker told, and seconds unheard

    def push(self, samples: np.ndarray) -> None:
        self.pushed += len(samples)
        self.worker.send((self.number, samples))

    def do(self, command: Command) -> None:
        self.worker.send((self.number, command))

    def drop(self) -> None:
        self.worker.sessions.pop(self.number, None)
        self.worker.send((self.number, None))

    @property
    def waiting_s(self) -> float:
        come, waiting = self.unheard
        return (self.pushed - come) / (self.rate or 1) + waiting


class _Reporter:
    """What a worker measures, told to the parent: the calls, and how much of what came is heard."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self.send = send
        self.handles: dict[int, tuple[Handle, list[int]]] = {}  # the list: samples that have come
        self.gone: set[int] = set()  # whose clients left before they were opened

    def stepped(self, batch: int, failed: int, seconds: float, waited: Sequence[float]) -> None:
        self.send(("stepped", batch, failed, seconds, list(waited)))
        self.send(("heard", {n: (come[0], handle.waiting_s) for n, (handle, come) in list(self.handles.items())}))


def _watch(batcher: Batcher, hang_s: float) -> None:
    """Ends the process when a call of the model does not end."""
    while True:
        time.sleep(hang_s / 4)
        since = batcher.stepping_since
        if since is not None and time.monotonic() - since > hang_s:
            log.error("a call of the model has not ended for %g s: this worker ends", hang_s)
            os._exit(HUNG)


def _work(pipe: Connection, load: Callable[[], Engine], max_batch: int, wait_ms: float, hang_s: float) -> None:
    """The process: does what comes through the pipe until it is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # of a terminal these come to all; the parent says when it is over
    lock = threading.Lock()

    def send(message: Any) -> None:
        with lock:
            pipe.send(message)

    reporter = _Reporter(send)
    try:
        pool = ThreadPool(load(), max_batch, wait_ms, reporter)
    except Exception as error:
        send(("up", error if isinstance(error, InputError) else RuntimeError(repr(error))))
        return
    threading.Thread(target=_watch, args=(pool.batcher, hang_s), daemon=True).start()
    send(("up", None))
    try:
        while True:
            number, item = pipe.recv()
            if isinstance(item, Settings):  # in a thread, for hotwords take a while
                threading.Thread(target=_open, args=(pool, reporter, number, item), daemon=True).start()
            else:
                _do(reporter, number, item)
    except (EOFError, OSError):
        return


def _open(pool: ThreadPool, reporter: _Reporter, number: int, settings: Settings) -> None:
    def tell(events: list[Event], error: Exception | None) -> None:
        plain = error if error is None or isinstance(error, InputError) else RuntimeError(repr(error))
        reporter.send(("told", number, events, plain))

    try:
        handle = pool.open(settings, tell)
    except Exception as error:
        reporter.send(("opened", number, error if isinstance(error, InputError) else RuntimeError(repr(error)), 0))
        return
    reporter.handles[number] = (handle, [0])
    if number in reporter.gone:
        _do(reporter, number, None)
    reporter.send(("opened", number, None, settings.rate or pool.engine.rate))


def _do(reporter: _Reporter, number: int, item: Any) -> None:
    found = reporter.handles.get(number)
    if found is None:
        if item is None:
            reporter.gone.add(number)  # perhaps it is being opened
        return
    handle, come = found
    if item is None:
        handle.drop()
        del reporter.handles[number]
    elif isinstance(item, np.ndarray):
        handle.push(item)
        come[0] += len(item)  # only now, so that what waits is never more than it seems
    else:
        handle.do(item)
