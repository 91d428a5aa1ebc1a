"""What a machine bears, as measured when a server starts."""

import time
from collections.abc import Sequence

import pytest

from speechkit.errors import InputError
from speechkit.streaming import capacity
from speechkit.streaming.session import Session
from tests.server.serving import make_engine


@pytest.mark.parametrize(("call_s", "expected"), [(0.042, None), (9.0, 4)])
def test_streams_are_those_whose_calls_take_a_third_of_the_time(
    monkeypatch: pytest.MonkeyPatch, call_s: float, expected: int | None
) -> None:
    """And some, however slow the machine seems."""
    engine = make_engine()
    plain, clock = engine.step, [0.0]

    def step(sessions: Sequence[Session]) -> dict[Session, Exception]:
        assert len(sessions) == 32
        clock[0] += call_s
        return plain(sessions)

    monkeypatch.setattr(engine, "step", step)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    period = engine.module(engine.context(min(engine.transcriber.latencies_ms))).chunk / engine.rate
    assert capacity.streams(engine, 32) == (expected or int(0.35 * period * 32 / call_s))


def test_a_model_that_cannot_be_run_is_known_before_anybody_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    engine.warm()

    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not fit")

    for module in engine._modules.values():
        monkeypatch.setattr(module, "step", broken)
    with pytest.raises(InputError, match="the model cannot be run at .* ms: RuntimeError\\('shapes do not fit'\\)"):
        engine.warm()
