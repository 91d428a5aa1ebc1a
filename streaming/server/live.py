"""The sessions of a server: admitted, fed no faster than they are heard, kept for a while when their client is gone."""

import asyncio
import hashlib
import secrets
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechkit.errors import InputError
from speechkit.streaming.adapters.adapter import RefusalError
from speechkit.streaming.command import Command, Finish, SetPhrases, Settings
from speechkit.streaming.encoding import Decoder, Pcm
from speechkit.streaming.engine import Engine
from speechkit.streaming.event import Done, Event, Final, Partial
from speechkit.streaming.pool import Handle, LostError, Pool
from speechkit.streaming.server.limits import Limits
from speechkit.streaming.server.log import say
from speechkit.streaming.server.metrics import Metrics

PHRASES = 25  # hotwords that count as a wish
POLL_S = 0.02  # how often a stream that has enough waiting is looked at
WISHES, WISHES_HZ = 20, 20.0  # what a client may ask for at once, and how often after that: each costs a model call


@dataclass(frozen=True)
class Model:
    """What clients are told of the model."""

    name: str
    rate: int
    latencies_ms: tuple[float, ...]
    default_ms: float
    chunk_s: float = 0.0  # audio of the longest call

    def latency_ms(self, wanted: float | None) -> float:
        """The longest look-ahead that is not over the wanted one; the shortest where none is."""
        most = self.default_ms if wanted is None else wanted
        return max((ms for ms in self.latencies_ms if ms <= most), default=min(self.latencies_ms))


def describe(engine: Engine, release: str | None) -> Model:
    """The model of an engine."""
    name = Path(release).name if release else "default"
    modules = [engine.module(engine.context(ms)) for ms in engine.transcriber.latencies_ms]
    longest = max(max(module.first, module.chunk) for module in modules) / engine.rate
    default = engine.model.latency_ms(engine.context(None))
    return Model(name, engine.rate, tuple(engine.transcriber.latencies_ms), default, longest)


class Live:
    """A session of the server, and what came of it. Belongs to the event loop."""

    def __init__(self, hall: "Hall", protocol: str, owner: bytes, settings: Settings, decoder: Decoder) -> None:
        self.hall, self.protocol, self.owner, self.settings, self.decoder = hall, protocol, owner, settings, decoder
        self.id = secrets.token_urlsafe(24)
        self.label = hashlib.sha256(self.id.encode()).hexdigest()[:12]  # for logs: the id itself is a secret
        self.received = 0  # bytes of audio
        self.number = 0  # of the last event
        self.dropped = 0  # number of the last event that says something and is kept no more
        self.told_to: int | None = None  # number of the last event that was sent; None while nobody listens
        self.history: deque[tuple[int, Event]] = deque()
        self.error: Exception | None = None
        self.finishing = self.over = False
        self.changed = asyncio.Event()
        self.handle: Handle | None = None
        self.attached: object | None = None  # the connection that it belongs to
        self.forget: asyncio.TimerHandle | None = None
        self.order = asyncio.Lock()  # held while something is handed over: a second connection comes after the first
        self._wishes, self._wished_at = 0.0, 0.0  # that count at present, and when the last one came
        self._samples = 0
        self._arrivals: deque[tuple[float, float]] = deque()  # seconds of the stream, and when they had come
        self._words = 0  # of the segment, that were told

    # What protocols tell of it.

    @property
    def latency_ms(self) -> float:
        """Look-ahead that it began with."""
        return self.hall.model.latency_ms(self.settings.latency_ms)

    @property
    def latencies_ms(self) -> Sequence[float]:
        """Look-aheads that it may have."""
        return self.hall.model.latencies_ms

    @property
    def second_pass(self) -> bool:
        """Whether its segments are heard a second time; one for which they cannot be is never opened."""
        return self.settings.again

    @property
    def rate(self) -> int:
        """Of what is sent, Hz."""
        return self.settings.rate or self.hall.model.rate

    @property
    def model(self) -> str:
        """Its name."""
        return self.hall.model.name

    @property
    def server(self) -> str:
        """Name of the server or replica that it is on."""
        return self.hall.name

    @property
    def resume_s(self) -> float:
        """How long it is kept for a client that is gone."""
        return self.hall.limits.resume_s

    # What comes in.

    async def push(self, data: bytes) -> None:
        """Hands over audio when there is room; raises RefusalError where it is too much, InputError where broken."""
        async with self.order:
            plain = isinstance(self.decoder, Pcm)
            samples = self.decoder.push(data) if plain else await asyncio.to_thread(self.decoder.push, data)
            self.received += len(data)
            await self.feed(samples)

    async def feed(self, samples: np.ndarray) -> None:
        """Hands over (samples,) at the session's rate when there is room; raises RefusalError where it is too long."""
        most = self.hall.limits.stream_s
        if most is not None and (self._samples + len(samples)) / self.rate > most:
            raise RefusalError(1008, "too_long", f"a stream may have {most:g} s of audio")
        size = max(1, self.rate // 4)
        for start in range(0, len(samples), size):
            await self._room()
            piece = samples[start : start + size]
            if self.handle is None or self.finishing:
                return
            self._samples += len(piece)
            self.hall.metrics.audio.inc(len(piece) / self.rate)
            self._arrivals.append((self._samples / self.rate, time.monotonic()))
            while len(self._arrivals) > 4000:
                self._arrivals.popleft()
            self.handle.push(piece)

    async def _room(self) -> None:
        while self.handle is not None and not self.over and (self._full(self.handle) or self._untold()):
            await asyncio.sleep(POLL_S)

    def _full(self, handle: Handle) -> bool:
        return handle.waiting_s > max(self.hall.limits.waiting_s, self.hall.model.chunk_s)

    def _done_with(self, number: int) -> bool:
        return self.told_to is None or number <= self.told_to

    def _untold(self) -> bool:
        """Whether whoever listens is so far behind that what comes next could not be kept."""
        return self.told_to is not None and len(self.since(self.told_to)) > self.hall.limits.history // 2

    async def ask(self, command: Command) -> None:
        """Asks the session for something, later where too much was asked for just now."""
        async with self.order:
            now = time.monotonic()
            cost = 1 + (len(command.phrases or ()) / PHRASES if isinstance(command, SetPhrases) else 0)
            self._wishes = max(0.0, self._wishes - (now - self._wished_at) * WISHES_HZ) + cost
            self._wished_at = now
            if self._wishes > WISHES:
                await asyncio.sleep((self._wishes - WISHES) / WISHES_HZ)
            while self.handle is not None and not self.over and self._untold():
                await asyncio.sleep(POLL_S)
            self.do(command)

    def do(self, command: Command) -> None:
        """Asks the session for something."""
        if self.handle is not None and not self.finishing:
            self.finishing = isinstance(command, Finish)
            self.handle.do(command)

    # What comes out.

    def told(self, events: list[Event], error: Exception | None) -> None:
        """Takes what the pool tells, in the event loop."""
        if self.over:
            return
        now = time.monotonic()
        for event in events:
            self.number += 1
            self._measure(event, now)
            if self.hall.log_text and isinstance(event, Final):
                say("final", session=self.label, text=event.text)
            if isinstance(event, Partial | Final):  # the partials before it say nothing more
                self.history = deque(item for item in self.history if not isinstance(item[1], Partial))
            self.history.append((self.number, event))
            while len(self.history) > self.hall.limits.history and self._done_with(self.history[0][0]):
                self.dropped = self.history.popleft()[0]
        self.error = error
        if error is not None or (events and isinstance(events[-1], Done)):
            self.over = True
            if error is not None and not isinstance(error, InputError | LostError):
                say("stream_failed", 40, session=self.label, error=repr(error))
            if self.attached is None:
                self.hall.end(self, "unclaimed", keep=True)
        self.changed.set()

    def _measure(self, event: Event, now: float) -> None:
        if not isinstance(event, Partial | Final):
            return
        for word in event.words[self._words :]:
            while len(self._arrivals) > 1 and self._arrivals[0][0] < word.end_s:
                self._arrivals.popleft()
            if self._arrivals:
                self.hall.metrics.latency.observe(now - self._arrivals[0][1])
        self._words = max(self._words, len(event.words))
        if isinstance(event, Final):
            self.hall.metrics.words.inc(len(event.words))
            self._words = 0

    def since(self, number: int) -> list[tuple[int, Event]]:
        """Events after a number."""
        return [item for item in self.history if item[0] > number]

    def check(self, number: int) -> None:
        """Raises RefusalError where the events after a number are not all there."""
        if not self.dropped <= number <= self.number:
            raise RefusalError(
                1008, "lost_events", f"the events after number {number} are not kept any more: begin anew"
            )


class Hall:
    """All sessions of a server.

    Args:
        pool: computes them.
        model: what is told of it.
        limits: how many there may be, and more.
        metrics: measures.
    """

    def __init__(self, pool: Pool, model: Model, limits: Limits, metrics: Metrics) -> None:
        self.pool, self.model, self.limits, self.metrics = pool, model, limits, metrics
        self.name = secrets.token_hex(4)  # tells one server or replica from another
        self.lives: dict[str, Live] = {}
        self.places = 0  # taken: connections that have no session yet, and sessions
        self.draining = False
        self.log_text = False  # whether what is said is logged
        self._opening = ThreadPoolExecutor(8, "speechkit-open")  # a worker that hangs holds nothing else up
        metrics.gauge("streams", "Streams that are open, those that wait to be resumed included.", lambda: self.places)
        metrics.gauge("workers", "Workers that can take streams.", lambda: self.pool.alive)

    def refusal(self, resumable: bool = False) -> tuple[str, str] | None:
        """Why nobody can be admitted now: a word and a sentence.

        Whoever may be coming back to a stream, which has its place, is let in to say so.
        """
        if self.draining:
            return "draining", "this server is about to stop: try another one"
        left = sum(live.attached is None for live in self.lives.values()) if resumable else 0
        if self.places >= self.limits.streams + left:
            return "full", f"all {self.limits.streams} streams of this server are taken: try again later"
        if not self.pool.alive:
            return "no_worker", "the model is not there at present: try again in some seconds"
        return None

    async def open(self, protocol: str, owner: bytes, settings: Settings, decoder: Decoder) -> Live:
        """A session, in a place that the caller took; raises InputError for settings that cannot be had."""
        if self.places > self.limits.streams:
            raise RefusalError(1013, "full", f"all {self.limits.streams} streams of this server are taken: try later")
        live = Live(self, protocol, owner, settings, decoder)
        loop = asyncio.get_running_loop()

        def tell(events: list[Event], error: Exception | None) -> None:
            loop.call_soon_threadsafe(live.told, events, error)

        live.handle = await loop.run_in_executor(self._opening, self.pool.open, settings, tell)
        self.lives[live.id] = live
        self.metrics.opened.labels(protocol).inc()
        say("stream_opened", session=live.label, protocol=protocol, rate=live.rate, latency_ms=live.latency_ms)
        if self.draining:
            live.do(Finish())
        return live

    def find(self, session: str, after: int, owner: bytes) -> Live:
        """A session whose client comes back; raises RefusalError where there is none that it may have."""
        live = self.lives.get(session)
        if live is None or live.owner != owner:
            raise RefusalError(
                1008, "unknown_session", "there is no such session, or it was kept no longer: begin anew"
            )
        live.check(after)
        self.metrics.resumed.inc()
        say("stream_resumed", session=live.label)
        return live

    def leave(self, live: Live, connection: object, keep: bool) -> None:
        """A client is gone: its session is kept for a while, or ends."""
        if live.attached is not connection:
            return  # somebody else has it by now
        live.attached = None
        if not keep:
            self.end(live, "left")
            return
        say("stream_left", session=live.label, kept_s=self.limits.resume_s)
        loop = asyncio.get_running_loop()
        live.forget = loop.call_later(self.limits.resume_s, self.end, live, "expired")

    def end(self, live: Live, reason: str, keep: bool = False) -> None:
        """Ends a session; the pool forgets it, and, unless its results wait for a client, so does the hall."""
        if live.handle is not None:
            live.handle.drop()
            live.handle = None
            self.places -= 1
            self.metrics.closed.labels(live.protocol, reason).inc()
            say("stream_ended", session=live.label, reason=reason, seconds=round(live._samples / live.rate, 3))
        if not keep or len(self.lives) > 2 * self.limits.streams:
            live.over = True
            live.changed.set()
            self.lives.pop(live.id, None)
            if live.forget is not None:
                live.forget.cancel()

    async def drain(self) -> None:
        """Admits nobody any more, ends all streams with what they have heard, and waits for it."""
        self.draining = True
        say("draining", streams=len(self.lives))
        for live in list(self.lives.values()):
            live.do(Finish())
            if live.attached is None:
                self.end(live, "drained")
        until = time.monotonic() + self.limits.drain_s
        while (left := sum(live.handle is not None for live in self.lives.values())) and time.monotonic() < until:
            await asyncio.sleep(POLL_S)
        say("drained", streams_cut=left)
