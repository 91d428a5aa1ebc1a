"""Events that are kept: a client that listens loses none, one that comes back is told when some are gone."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from speechkit.streaming.adapters.adapter import RefusalError
from speechkit.streaming.command import Finalize, Settings
from speechkit.streaming.encoding import Pcm
from speechkit.streaming.engine import Engine
from speechkit.streaming.event import Final, Partial
from speechkit.streaming.server.limits import Limits
from speechkit.streaming.server.live import Hall, Live
from speechkit.streaming.server.metrics import Metrics
from tests.asr.tiny import babble
from tests.server.serving import Running, Talk, eventually, make_engine, serving, texts

RULES = {"trailing_s": None, "silence_s": None, "longest_s": 1.0}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


@pytest.fixture(scope="module")
def running(engine: Engine) -> Iterator[Running]:
    with serving(engine, streams=4, history=3) as found:
        yield found


def live() -> Live:
    hall = SimpleNamespace(limits=Limits(history=4), metrics=Metrics(), log_text=False)
    return Live(cast(Hall, hall), "own", b"", Settings(), Pcm())


def final(text: str) -> Final:
    return Final(0, text, (), 0.0, 1.0, "finalize")


def told(found: Live, after: int) -> list[str]:
    return [event.text for _, event in found.since(after) if isinstance(event, Final | Partial)]


def test_what_a_listener_was_not_told_yet_is_kept_and_holds_up_its_audio() -> None:
    found = live()
    found.told_to = 0
    for number in range(10):
        found.told([final(str(number))], None)
    assert told(found, 0) == [str(number) for number in range(10)]
    assert found._untold()
    found.told_to = 9
    assert not found._untold()
    found.told([final("10")], None)
    assert len(found.history) == 4
    found.check(9)


def test_a_listener_that_is_gone_is_told_when_events_are_kept_no_more() -> None:
    found = live()
    found.told([final(str(number)) for number in range(6)], None)
    found.check(2)
    assert told(found, 2) == ["2", "3", "4", "5"]
    for number in (0, 1, 7):
        with pytest.raises(RefusalError, match="begin anew"):
            found.check(number)


def test_a_partial_that_a_later_one_replaces_is_not_missed() -> None:
    found = live()
    for number in range(50):
        found.told([Partial(0, "a" * number, "", 0.0, 1.0)], None)
    found.check(0)
    assert len(found.history) == 1


def test_wishes_wait_too_for_a_listener_that_is_behind() -> None:
    found = live()
    asked: list[object] = []
    found.handle = cast(Any, SimpleNamespace(do=asked.append, waiting_s=0.0))
    found.told_to = 0
    found.told([final(str(number)) for number in range(4)], None)

    async def ask() -> None:
        task = asyncio.ensure_future(found.ask(Finalize()))
        await asyncio.sleep(0.1)
        assert asked == []
        found.told_to = 4
        await task

    asyncio.run(ask())
    assert asked == [Finalize()]


def test_a_short_history_costs_a_client_that_listens_nothing(running: Running) -> None:
    wave = babble(12, seed=3)
    with Talk(running.url) as talk:
        events: list[dict[str, Any]] = talk.whole(wave, endpoint=RULES)
    finals = [event for event in events if event["type"] == "final"]
    assert [event["segment"] for event in finals] == list(range(len(finals)))
    assert len(texts(events)) > 6  # twice what is kept
    assert running.empty()


def test_who_comes_back_too_late_is_refused_and_not_given_half(running: Running) -> None:
    first = Talk(running.url)
    session = first.config(endpoint=RULES)["session"]
    first.audio(babble(12, seed=4))
    first.say(type="close")
    (found,) = running.application.hall.lives.values()
    assert eventually(lambda: found.finishing)
    first.socket.socket.shutdown(2)
    first.__exit__()
    assert eventually(lambda: running.places == 0)
    with Talk(running.url) as second:
        second.say(type="config", resume=session)
        assert second.rest()[-1]["code"] == "lost_events"
