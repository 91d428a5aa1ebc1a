"""Sessions in processes of their own: the same results, and what dies or fails harms nothing else."""

import functools
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from websockets.exceptions import ConnectionClosed

from speechkit.errors import InputError
from speechkit.streaming.command import Finish, SetPhrases, Settings
from speechkit.streaming.endpoint import EndpointRules
from speechkit.streaming.engine import Engine
from speechkit.streaming.event import Done, Event, Final, Refused
from speechkit.streaming.pool import LostError, Pool, ThreadPool
from speechkit.streaming.processes import BROKEN, ProcessPool
from speechkit.streaming.server.metrics import Metrics
from speechkit.streaming.session import Session
from speechkit.streaming.state import Chunk, leaves, size_bytes, stack
from tests.asr.tiny import babble
from tests.server.serving import Running, Talk, eventually, heard, make_engine, serving, texts

NEVER = EndpointRules(trailing_s=None, silence_s=None, longest_s=None)


def no_engine(sentence: str) -> Engine:
    """What a worker does that cannot load its model."""
    raise InputError(sentence)


class Heard:
    """What a pool tells of a session."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.error: Exception | None = None
        self.over = threading.Event()

    def __call__(self, events: list[Event], error: Exception | None) -> None:
        self.events += events
        self.error = error
        if error is not None or (events and isinstance(events[-1], Done)):
            self.over.set()

    def texts(self) -> list[str]:
        assert self.over.wait(30)
        assert self.error is None
        return [event.text for event in self.events if isinstance(event, Final)]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(scope="module")
def pool(metrics: Metrics) -> Iterator[ProcessPool]:
    made = ProcessPool(2, make_engine, 8, 2.0, metrics)
    yield made
    made.close()
    assert eventually(lambda: not any(worker.process.is_alive() for worker in made._workers))


def stream(pool: Pool, waves: Sequence[np.ndarray], latencies: Sequence[float]) -> list[list[str]]:
    """Finals of several sessions at once, each in pieces."""
    told = [Heard() for _ in waves]
    handles = [
        pool.open(Settings(latency_ms=latency, rules=NEVER), tell)
        for tell, latency in zip(told, latencies, strict=True)
    ]
    for pieces in zip(*(np.array_split(wave, 5) for wave in waves), strict=True):
        for handle, piece in zip(handles, pieces, strict=True):
            handle.push(piece)
    for handle in handles:
        handle.do(Finish())
    found = [tell.texts() for tell in told]
    for handle in handles:
        handle.drop()
    return found


def test_processes_say_what_a_thread_says(pool: ProcessPool, engine: Engine, metrics: Metrics) -> None:
    waves = [babble(1.5, seed=seed) for seed in range(6)]
    latencies = [80.0, 0.0] * 3
    assert pool.alive == 2
    calls = metrics.registry.get_sample_value("speechkit_step_seconds_count") or 0
    found = stream(pool, waves, latencies)
    threads = ThreadPool(engine, 8, 2.0)
    assert found == stream(threads, waves, latencies)
    threads.close()
    assert (metrics.registry.get_sample_value("speechkit_step_seconds_count") or 0) > calls


def test_both_processes_get_sessions(pool: ProcessPool) -> None:
    handles = [pool.open(Settings(), Heard()) for _ in range(4)]
    assert [len(worker.sessions) for worker in pool._workers] == [2, 2]
    for handle in handles:
        handle.drop()
    assert [len(worker.sessions) for worker in pool._workers] == [0, 0]


def test_wishes_and_refusals_cross_the_border(pool: ProcessPool) -> None:
    with pytest.raises(InputError, match="look-ahead"):
        pool.open(Settings(latency_ms=-1), Heard())
    told = Heard()
    handle = pool.open(Settings(rules=NEVER), told)
    handle.do(SetPhrases(["xyz"]))
    handle.push(np.array([np.nan], np.float32))
    assert told.over.wait(20)
    assert isinstance(told.error, InputError)
    assert any(isinstance(event, Refused) for event in told.events)
    handle.drop()


def test_what_waits_is_known_on_this_side(pool: ProcessPool) -> None:
    told = Heard()
    handle = pool.open(Settings(rules=NEVER), told)
    handle.push(babble(3, seed=1))
    assert handle.waiting_s == pytest.approx(3, abs=0.5)
    assert eventually(lambda: handle.waiting_s < 0.3, 20)
    handle.do(Finish())
    told.texts()
    handle.drop()


@pytest.mark.soak
def test_a_worker_that_cannot_load_says_why() -> None:
    with pytest.raises(InputError, match="no such model"):
        ProcessPool(1, functools.partial(no_engine, "no such model"))


class Faulty(Engine):
    """A model that fails whenever it is called, or never comes back."""

    hangs = False

    def step(self, sessions: Sequence[Session]) -> dict[Session, Exception]:
        if self.hangs:
            time.sleep(3600)
        return dict.fromkeys(sessions, RuntimeError("no such kernel"))


def faulty(hangs: bool, flag: Path) -> Engine:
    """A bad engine the first time, a good one after that."""
    if flag.exists():
        return make_engine()
    flag.touch()
    found = Faulty(make_engine().transcriber)
    found.hangs = hangs
    return found


@pytest.mark.parametrize("hangs", [False, True])
def test_a_worker_that_only_fails_or_hangs_gives_way_to_another(hangs: bool, tmp_path: Path, engine: Engine) -> None:
    pool = ProcessPool(1, functools.partial(faulty, hangs, tmp_path / "flag"), hang_s=1)
    try:
        for _ in range(BROKEN if not hangs else 1):
            bad = Heard()
            pool.open(Settings(), bad).push(babble(2))
            assert bad.over.wait(20)
            assert bad.error is not None
        assert eventually(lambda: pool.alive == 1 and tmp_path.exists() and good(pool, engine), 30)
    finally:
        pool.close()


def good(pool: Pool, engine: Engine) -> bool:
    """Whether a stream says what it should."""
    heard = Heard()
    try:
        handle = pool.open(Settings(rules=NEVER), heard)
    except LostError:
        return False
    handle.push(babble(2, seed=2))
    handle.do(Finish())
    return (
        heard.over.wait(10)
        and heard.error is None
        and heard.texts() == [engine.transcriber.transcribe(babble(2, seed=2)).text]
    )


def test_a_number_of_workers_that_cannot_be_is_refused() -> None:
    for count in (-1, 0, 1000):
        with pytest.raises(InputError, match="workers must be"):
            ProcessPool(count, make_engine)


def test_a_worker_that_is_killed_takes_its_own_streams_alone(pool: ProcessPool, engine: Engine) -> None:
    waves = [babble(2, seed=seed) for seed in range(4)]
    with serving(engine, pool=Kept(pool)) as running, ExitStack() as stack:
        talks = [stack.enter_context(Talk(running.url)) for _ in waves]
        for talk, wave in zip(talks, waves, strict=True):
            talk.config()
            talk.audio(wave[:16_000])
        hall = running.application.hall
        victim = pool._workers[0]
        by_worker = [live.handle.worker is victim for live in hall.lives.values()]  # type: ignore[union-attr]
        assert sorted(by_worker) == [False, False, True, True]
        os.kill(victim.process.pid or 0, signal.SIGKILL)
        begin = time.perf_counter()
        for talk, wave, lost in zip(talks, waves, by_worker, strict=True):
            if not lost:
                talk.audio(wave[16_000:])
                talk.say(type="close")
            events = talk.rest()
            if lost:
                assert events[-1]["code"] == "lost"
                assert talk.closed[0] == 1011
            else:
                assert texts(events) == [running.text(heard(wave))]
        assert pool.alive == 1
        assert httpx.get(f"{running.http}/ready").json()["ready"]
        assert running.empty()
        assert eventually(lambda: pool.alive == 2, 60)
        print(f"another worker after {time.perf_counter() - begin:.1f} s")
        with Talk(running.url) as first, Talk(running.url) as second:
            for talk in (first, second):
                talk.config()
            assert [len(worker.sessions) for worker in pool._workers] == [1, 1]
            for talk in (first, second):
                talk.audio(waves[0])
                talk.say(type="close")
                assert texts(talk.rest()) == [running.text(heard(waves[0]))]


class Kept:
    """A pool that a server does not close."""

    def __init__(self, pool: ProcessPool) -> None:
        self.open = pool.open
        self._pool = pool

    def close(self) -> None:
        """Does nothing."""

    @property
    def alive(self) -> int:
        """As of the pool."""
        return self._pool.alive


def test_without_any_worker_clients_are_told_to_come_later(engine: Engine) -> None:
    class Nobody(Kept):
        def __init__(self) -> None:
            pass

        def open(self, *_: object) -> Any:
            raise LostError("no worker is there at present")

        alive = 1

    with serving(engine, pool=Nobody()) as running:
        with Talk(running.url) as talk:
            talk.say(type="config")
            assert talk.rest()[-1]["code"] == "lost"
        assert talk.closed[0] == 1013
        assert running.empty()


# What fails in the model.


def fragile(monkeypatch: pytest.MonkeyPatch, marks: Any) -> None:
    """The model fails where a session's samples have a mark."""
    real = Engine._call

    def call(self: Engine, context: Any, sessions: Sequence[Session], work: Any) -> Any:
        if any(marks(item.samples) for item in work):
            raise RuntimeError("out of memory")
        return real(self, context, sessions, work)

    monkeypatch.setattr(Engine, "_call", call)


def outcome(running: Running) -> str:
    """How a short stream ends: with a code, or done."""
    with Talk(running.url) as talk:
        with suppress(ConnectionClosed):
            talk.config()
            talk.audio(babble(0.5))
            talk.say(type="close")
        last = talk.rest()[-1]
        return str(last.get("code", last["type"]))


def test_a_crash_of_the_model_ends_its_stream_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    wave, mark = babble(1, seed=1), np.full(1600, 0.9990234375, np.float32)
    fragile(monkeypatch, lambda samples: bool((samples == mark[0]).any()))
    with serving(engine) as running, ExitStack() as stack:
        talks = [stack.enter_context(Talk(running.url)) for _ in range(4)]
        for i, talk in enumerate(talks):
            with suppress(ConnectionClosed):
                talk.config()
                talk.audio(np.concatenate([wave[:8000], mark if i == 1 else wave[8000:9600], wave[9600:]]))
                talk.say(type="close")
        for i, talk in enumerate(talks):
            events = talk.rest()
            if i == 1:
                assert events[-1]["code"] == "internal"
                assert "memory" not in events[-1]["message"]  # what is inside stays inside
                assert talk.closed[0] == 1011
            else:
                assert texts(events) == [running.text(heard(wave))]
        assert httpx.get(f"{running.http}/health").status_code == 200
        assert running.empty()


def test_three_failures_in_a_row_degrade_health_and_one_success_mends_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = True
    fragile(monkeypatch, lambda samples: broken)

    def health(running: Running) -> tuple[int, str]:
        response = httpx.get(f"{running.http}/health")
        return response.status_code, response.json()["status"]

    with serving(engine) as running:
        seen = []
        for _ in range(3):
            assert outcome(running) == "internal"
            seen.append(health(running))
        assert seen == [(200, "ok"), (200, "ok"), (503, "degraded")]
        broken = False
        assert outcome(running) == "done"
        assert health(running) == (200, "ok")


def test_an_engine_that_raises_ends_the_streams_of_its_call_and_not_the_server(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(engine) as running:
        with monkeypatch.context() as broken:

            def fail(self: Engine, sessions: Sequence[Session]) -> Any:
                raise RuntimeError("no such device")

            broken.setattr(Engine, "step", fail)
            assert outcome(running) == "internal"
        assert outcome(running) == "done"


# What a stream costs, and that others change nothing.


def test_the_memory_of_a_stream_is_the_size_of_its_state(engine: Engine) -> None:
    """Counted from the shapes, as README and `speechkit bench` count, and as storage that 64 sessions really hold."""
    sessions = [Session(engine, rules=NEVER) for _ in range(64)]
    for session in sessions:
        session.push(babble(0.5, seed=1))
    engine.run(sessions)
    kept: dict[int, int] = {}
    for session in sessions:
        for leaf in leaves(session.state):
            kept[leaf.untyped_storage().data_ptr()] = leaf.untyped_storage().nbytes()
    computed = size_bytes(session.state)
    measured = sum(kept.values()) / len(sessions)
    print(f"state of {computed} bytes, {measured:.0f} held")
    assert measured == pytest.approx(computed, rel=0.2)


def test_a_stream_is_the_same_alone_and_among_others(engine: Engine) -> None:
    waves = [babble(1.5, seed=seed) for seed in range(8)]
    alone = [engine.transcriber.transcribe(wave).text for wave in waves]
    threads = ThreadPool(engine, 8, 20.0)
    assert [[text] for text in alone] == stream(threads, waves, [80.0] * 8)
    threads.close()
    module = engine.module(engine.context(None))
    with torch.inference_mode():
        apart, joined = [module.init_state(1) for _ in waves], module.init_state(8)
        worst = 0.0
        for start in range(0, 24_000 - module.chunk, module.chunk):
            values = torch.from_numpy(np.stack([wave[start : start + module.chunk] for wave in waves]))[..., None]
            lengths = torch.full((8,), module.chunk if start else module.first)
            values[:, int(lengths[0]) :] = 0
            x = Chunk(values, lengths, torch.zeros(8, dtype=torch.bool))
            y, joined = module.step(x, joined)
            for row in range(8):
                one, apart[row] = module.step(Chunk(*(part[row : row + 1] for part in x)), apart[row])
                worst = max(worst, float((one.values[0] - y.values[row]).abs().max()))
        states = zip(leaves(joined), leaves(stack(apart)), strict=True)
        worst = max(worst, *(float((a.float() - b.float()).abs().max()) for a, b in states if a.numel()))
    print(f"encoder outputs differ by {worst:.1e} at most")
    assert worst < 1e-4
