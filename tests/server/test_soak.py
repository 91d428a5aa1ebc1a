"""What grows where many come, or one stays long: nothing. The long versions run with `make soak`."""

import os
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from speechkit.asr.transcriber import Transcriber
from speechkit.streaming.engine import Engine
from speechkit.streaming.pool import ThreadPool
from speechkit.streaming.server.metrics import Metrics
from speechkit.streaming.state import Chunk
from speechkit.text import CharTokenizer
from tests.asr.tiny import SYMBOLS, babble, configuration, recognizer
from tests.server import raw
from tests.server.serving import Running, Talk, eventually, pcm, serving
from tests.server.test_limits import rss, tasks

STEPS = 10  # of which the cost is kept as one


@pytest.fixture(scope="module")
def engine() -> Engine:
    """With the cheaper decoder."""
    return Engine(Transcriber(recognizer(configuration()), CharTokenizer(SYMBOLS)), "ctc")


def descriptors() -> int:
    """Open files and sockets of this process."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def short(running: Running, number: int, audio: bytes) -> None:
    """A connection: most end as they should, some vanish, some are refused."""
    client, status = raw.knock(running.port)
    with client:
        assert status == 101
        match number % 8:
            case 0:
                return
            case 1:
                client.sendall(raw.message(type="config") + raw.frame(audio))
                return
            case 2:
                client.sendall(raw.frame("{"))
                assert raw.close_code(raw.rest(client)) == 1007
            case _:
                client.sendall(raw.message(type="config") + raw.frame(audio) + raw.message(type="close"))
                found = raw.rest(client)
                assert raw.events(found)[-1]["type"] == "done"
                assert raw.close_code(found) == 1000
        client.sendall(raw.frame(b"\x03\xe8", raw.CLOSE))


@pytest.mark.parametrize(
    ("count", "warm"), [(200, 60), pytest.param(2000, 200, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])]
)
def test_short_connections_leave_neither_memory_nor_files_behind(engine: Engine, count: int, warm: int) -> None:
    audio = pcm(babble(0.3, seed=1))
    with serving(engine, streams=64, resume_s=0.05) as running:

        def settled() -> bool:
            idle = running.places == 0 and not running.application.hall.lives
            return idle and not running.server.server_state.connections and tasks(running) == alone

        alone = tasks(running)
        for number in range(warm):
            short(running, number, audio)
        assert eventually(settled, 15)
        before = rss(), descriptors(), threading.active_count()
        for number in range(count - warm):
            short(running, number, audio)
        assert eventually(settled, 15)
        grown = rss() - before[0]
        print(f"{count} connections: {grown:+.1f} MB after the first {warm}, {descriptors() - before[1]:+d} files")
        assert grown <= 5
        assert descriptors() <= before[1]
        assert threading.active_count() <= before[2] + 6  # of those in which sessions are opened


class Watch(Metrics):
    """Also keeps the memory, and the CPU time of calls: in that of a new stream's, for a busy machine has no speed."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.costs: list[float] = []
        self.memory: list[float] = []
        self._module = engine.module(engine.context(None))
        samples = torch.from_numpy(babble(1, seed=3)[: self._module.first])[None, :, None]
        self._first = Chunk(samples, torch.tensor([samples.shape[1]]), torch.tensor([False]))
        self._block: list[float] = []
        self._at: float | None = None

    def stepped(self, batch: int, failed: int, seconds: float, waited: Sequence[float]) -> None:
        super().stepped(batch, failed, seconds, waited)
        if self._at is not None:
            self._block.append(time.thread_time() - self._at)
        if len(self._block) == STEPS:
            begin = time.thread_time()
            with torch.inference_mode():
                for _ in range(2):
                    self._module.step(self._first, self._module.init_state(1))
            self.costs.append(float(np.median(self._block)) / (time.thread_time() - begin))
            self.memory.append(rss())
            self._block = []
        self._at = time.thread_time()


def patient(running: Running) -> Talk:
    """A client that sends no pings: they would wait behind minutes of audio in its own socket."""
    return Talk(running.url, ping_interval=None)


def slope(costs: Sequence[float]) -> float:
    """Relative growth per 1,000 steps: the median of the slopes between all pairs (Theil 1950, Sen 1968)."""
    slopes = [(b - a) / (j - i) for i, a in enumerate(costs) for j, b in enumerate(costs) if j > i]
    return float(np.median(slopes)) / float(np.median(costs)) / STEPS * 1000


@pytest.mark.parametrize(
    ("minutes", "most"), [(2, 0.25), pytest.param(30, 0.01, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_a_long_stream_costs_at_its_end_what_it_cost_at_its_beginning(
    engine: Engine, minutes: int, most: float
) -> None:
    """Two minutes are too few steps for a slope of 1 % per 1,000 to be told from noise: there it is 25 %."""
    minute = babble(60, seed=2)
    watch = Watch(engine)
    with serving(engine, pool=ThreadPool(engine, 8, 2.0, watch), metrics=watch) as running, patient(running) as talk:
        talk.config(partials=False, words=False, endpoint={"longest_s": 10})
        begin = time.process_time()
        for _ in range(minutes):
            talk.audio(minute, 32_000)
        talk.say(type="close")
        done = talk.rest()[-1]
        seconds = time.process_time() - begin
    assert done["type"] == "done"
    assert done["seconds"] == 60 * minutes
    warm = len(watch.costs) // 5
    growth = slope(watch.costs[warm:])
    memory = watch.memory[len(watch.memory) // 5 :]
    print(
        f"{minutes} minutes, {STEPS * len(watch.costs)} steps in {seconds:.0f} s of CPU: {100 * growth:+.2f} % per "
        f"1,000 steps, memory {memory[-1] - memory[0]:+.1f} MB, from {min(memory):.1f} to {max(memory):.1f}"
    )
    assert growth < most
    assert memory[-1] - memory[0] <= 2
