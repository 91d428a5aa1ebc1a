"""How many streams an engine bears in real time on this machine."""

import time

import numpy as np

from speechkit.streaming.engine import Engine
from speechkit.streaming.session import Session

SHARE = 0.35  # of the time between two chunks that calls may take: more, and words come late (docs/deploy.md)
SECONDS = 1.0  # that is measured
LEAST = 4
SEED = 1


def streams(engine: Engine, batch: int) -> int:
    """Streams in real time at the shortest look-ahead, which costs most, by full calls.

    Args:
        engine: the model; nobody else uses it meanwhile.
        batch: streams in a call at most.

    Returns:
        At least 4, however busy the machine is just now.
    """
    shortest = min(engine.transcriber.latencies_ms)
    period_s = engine.module(engine.context(shortest)).chunk / engine.rate
    noise = np.random.default_rng(SEED).normal(0, 0.05, int(16 * period_s * engine.rate)).astype(np.float32)
    sessions = [Session(engine, latency_ms=shortest) for _ in range(batch)]
    for session in sessions:
        session.push(noise)
    times: list[float] = []
    begin = time.perf_counter()
    while sessions[0].ready and (len(times) < 2 or time.perf_counter() - begin < SECONDS):
        before = time.perf_counter()
        engine.step(sessions)
        times.append(time.perf_counter() - before)
    fastest = min(times)  # the others waited for whatever else ran
    return max(LEAST, int(SHARE * period_s * batch / fastest))
