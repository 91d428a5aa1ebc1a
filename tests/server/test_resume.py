"""Clients that come back: nothing is lost, nothing doubled, and nobody else gets in."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from speechkit.streaming.client import AsyncClient, ServerError
from speechkit.streaming.engine import Engine
from tests.asr.tiny import babble
from tests.server import raw
from tests.server.serving import NO_RULES, TOKEN, Running, Talk, eventually, heard, make_engine, pcm, serving, texts

OTHER = "a-token-of-somebody-else-entirely"
RULES = {"trailing_s": None, "silence_s": None, "longest_s": 1.0}
SETTLED = ("final", "endpoint", "speech_start", "speech_end", "done")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


@pytest.fixture(scope="module")
def running(engine: Engine) -> Iterator[Running]:
    with serving(engine, streams=8, resume_s=5) as found:
        yield found


def settled(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All events but partials, of which later ones replace earlier ones."""
    return [event for event in events if event["type"] in SETTLED]


def drop(talk: Talk) -> None:
    """Breaks a connection without a word."""
    talk.socket.socket.shutdown(2)
    talk.__exit__()


def uninterrupted(running: Running, wave: np.ndarray) -> list[dict[str, Any]]:
    with Talk(running.url) as talk:
        return talk.whole(wave, endpoint=RULES)


@pytest.mark.parametrize("read", [True, False])
def test_a_stream_that_is_resumed_says_what_it_would_have_said(running: Running, read: bool) -> None:
    """Whether or not the client has read what was said before the break."""
    wave = babble(4, seed=1)
    expected = uninterrupted(running, wave)
    first = Talk(running.url)
    session = first.config(endpoint=RULES)["session"]
    first.audio(wave[:33_000])
    before: list[dict[str, Any]] = []
    while read and not any(event["type"] == "final" for event in before):
        before.append(first.take())
    drop(first)
    with Talk(running.url) as second:
        after = before[-1]["seq"] if before else 0
        ready = second.config(resume=session, after=after)
        assert ready["resumed"]
        assert ready["session"] == session
        second.socket.send(pcm(wave)[ready["received"] :][:64_000])
        second.socket.send(pcm(wave)[ready["received"] + 64_000 :])
        second.say(type="close")
        events = [*before, *second.rest()]
    assert settled(events) == settled(expected)
    numbers = [event["seq"] for event in events]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == expected[-1]["seq"]
    assert running.empty()


@pytest.mark.parametrize("seconds", [2, 4])
def test_what_was_sent_before_the_break_comes_before_what_was_sent_after_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """The first connection still hands over a message of two seconds when the second comes, with more or the end."""
    wave = babble(seconds, seed=2)
    with serving(engine, waiting_s=0.3) as running:
        expected = uninterrupted(running, wave)
        real = Engine._call

        def slow(self: Engine, *arguments: Any) -> Any:
            time.sleep(0.05)
            return real(self, *arguments)

        monkeypatch.setattr(Engine, "_call", slow)
        first = Talk(running.url)
        session = first.config(endpoint=RULES)["session"]
        first.audio(wave[:64_000], 64_000)
        (live,) = running.application.hall.lives.values()
        assert eventually(lambda: live.received >= 64_000)
        drop(first)
        with Talk(running.url) as second:
            ready = second.config(resume=session)
            assert ready["received"] == 64_000
            second.audio(wave[32_000:], 64_000)
            second.say(type="close")
            events = second.rest()
        assert settled(events) == settled(expected)
        assert running.empty()


def test_a_second_connection_takes_the_stream_over(running: Running) -> None:
    wave = babble(3, seed=3)
    with Talk(running.url) as first, Talk(running.url) as second:
        session = first.config()["session"]
        first.audio(wave[:20_000])
        ready = second.config(resume=session)
        first.rest()
        assert first.closed == (1008, "another connection has this session now")
        second.audio(wave[ready["received"] // 2 :])
        second.say(type="close")
        assert texts(second.rest()) == [running.text(heard(wave))]
    assert running.empty()


def test_five_connections_after_one_another_leave_one_stream(running: Running) -> None:
    wave = babble(3, seed=4)
    first = Talk(running.url)
    session = first.config()["session"]
    drop(first)
    places = []
    for part in range(5):
        client, _ = raw.knock(running.port)
        client.sendall(raw.message(type="config", resume=session))
        found = b""
        while not (told := raw.events(found)):
            found += client.recv(4096)
        at = told[0]["received"]
        client.sendall(raw.frame(pcm(wave)[at : 16_000 * (part + 1)]))
        assert eventually(lambda part=part: running.application.hall.lives[session].received == 16_000 * (part + 1))
        places.append(running.places)
        if part % 2:
            client.close()
    assert places == [1] * 5
    with Talk(running.url) as talk:
        at = talk.config(resume=session)["received"]
        talk.audio(wave[at // 2 :])
        talk.say(type="close")
        assert texts(talk.rest()) == [running.text(heard(wave))]
    assert running.empty()


def test_a_full_server_takes_back_a_client_and_no_other(engine: Engine) -> None:
    wave = babble(3, seed=6)
    with serving(engine, streams=2, resume_s=20) as running, Talk(running.url) as other:
        other.config()
        first = Talk(running.url)
        session = first.config(endpoint=RULES)["session"]
        first.audio(wave)
        first.say(type="close")
        live = running.application.hall.lives[session]
        assert eventually(lambda: live.finishing)  # else what was sent may be lost on the way
        drop(first)
        assert eventually(lambda: live.attached is None)
        with Talk(running.url) as stranger:
            stranger.say(type="config")
            assert stranger.rest()[-1]["code"] == "full"
            assert stranger.closed[0] == 1013
        with Talk(running.url) as second:
            second.config(resume=session)
            assert texts(second.rest()) == texts(uninterrupted_at(engine, wave))
        assert running.places <= 2


def uninterrupted_at(engine: Engine, wave: np.ndarray) -> list[dict[str, Any]]:
    with serving(engine) as running:
        return uninterrupted(running, wave)


def test_results_wait_for_a_client_that_broke_off_after_its_last_word(running: Running) -> None:
    wave = babble(2, seed=5)
    first = Talk(running.url)
    session = first.config()["session"]
    first.audio(wave)
    first.say(type="close")
    (live,) = running.application.hall.lives.values()
    assert eventually(lambda: live.finishing)
    drop(first)
    assert eventually(lambda: running.places == 0)
    with Talk(running.url) as second:
        second.config(resume=session)
        assert texts(second.rest()) == [running.text(heard(wave))]
        assert second.closed[0] == 1000
    assert running.empty()


def test_an_id_that_is_unknown_expired_or_of_another_token_is_refused_alike(engine: Engine) -> None:
    with serving(engine, tokens=(TOKEN, OTHER), resume_s=1) as running:

        def refusal(token: str, **resume: Any) -> tuple[str, str]:
            with Talk(running.url, additional_headers={"Authorization": f"Bearer {token}"}) as talk:
                talk.say(type="config", **resume)
                events = talk.rest()
                assert talk.closed[0] == 1008
                return events[-1]["code"], events[-1]["message"]

        first = Talk(running.url, additional_headers={"Authorization": f"Bearer {TOKEN}"})
        session = first.config(endpoint=NO_RULES)["session"]
        drop(first)
        others = refusal(OTHER, resume=session)
        unknown = refusal(TOKEN, resume="x" * 32)
        ahead = refusal(TOKEN, resume=session, after=7)
        assert running.places == 1
        assert running.empty(1 + 2)  # and not at once: the stream was kept for its owner
        expired = refusal(TOKEN, resume=session)
        assert others == unknown == expired
        assert unknown[0] == "unknown_session"
        assert "begin anew" in unknown[1]
        assert ahead[0] == "lost_events"
        assert session not in str([others, unknown, ahead])


def test_an_id_cannot_be_guessed(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    found = set()
    for _ in range(16):
        with Talk(running.url) as talk:
            found.add(talk.config()["session"])
            talk.say(type="close")
            talk.rest()
    assert len(found) == 16
    assert all(re.fullmatch(r"[\w-]{22,}", session) for session in found)  # 6 bits a character: 128 and more
    assert not any(session in caplog.text + str([vars(record) for record in caplog.records]) for session in found)


def test_who_says_good_bye_even_without_a_code_is_not_waited_for(running: Running) -> None:
    """As browsers do it."""
    client, _ = raw.knock(running.port)
    client.sendall(raw.message(type="config") + raw.frame(b"", raw.CLOSE))
    assert raw.rest(client)
    client.close()
    assert running.empty(1)  # and not after the 5 s of those who broke off


class Proxy:
    """A TCP proxy that breaks connections: after so many bytes of the client's."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        self.port, self.cuts, self.connections = port, cuts, 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self.cuts.pop(0) if self.cuts else 1 << 40
        self.connections += 1
        behind_reader, behind = await asyncio.open_connection("127.0.0.1", self.port)

        async def back() -> None:
            with contextlib.suppress(ConnectionError):
                while data := await behind_reader.read(4096):
                    writer.write(data)
                    await writer.drain()
            writer.close()

        answering = asyncio.create_task(back())
        with contextlib.suppress(ConnectionError):
            while left > 0 and (data := await reader.read(min(left, 4096))):
                left -= len(data)
                behind.write(data)
                await behind.drain()
        if left <= 0:
            for end in (behind, writer):
                end.transport.abort()
        else:
            behind.close()
        await asyncio.gather(answering, return_exceptions=True)


@asynccontextmanager
async def proxy(port: int, cuts: list[int]) -> AsyncIterator[tuple[Proxy, str]]:
    made = Proxy(port, cuts)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    try:
        yield made, f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/stream"
    finally:
        server.close()


@pytest.mark.parametrize("cuts", [[60_000], [3000, 20_000, 50_000, 400, 9000]])
def test_the_client_comes_back_by_itself_and_loses_nothing(running: Running, cuts: list[int]) -> None:
    wave = babble(4, seed=6)
    expected = uninterrupted(running, wave)

    async def talk() -> tuple[list[dict[str, Any]], int]:
        async with proxy(running.port, list(cuts)) as (between, url):
            options = {"endpoint": RULES}
            async with AsyncClient(url, options=options) as client:
                for piece in np.array_split(heard(wave), 23):
                    await client.send(piece)
                await client.finish()
                events = [event async for event in client]
            return events, between.connections

    events, connections = asyncio.run(asyncio.wait_for(talk(), 60))
    assert connections == len(cuts) + 1
    assert settled([event for event in events if "seq" in event]) == settled(expected)
    numbers = [event["seq"] for event in events if "seq" in event]
    assert numbers == sorted(set(numbers))
    assert running.empty(8)


def test_a_client_that_may_not_come_back_says_so(running: Running) -> None:
    async def talk() -> None:
        async with proxy(running.port, [30_000]) as (_, url), AsyncClient(url, reconnect=False) as client:
            await client.send(babble(4))
            async for _ in client:
                pass

    with pytest.raises(ServerError) as lost:
        asyncio.run(asyncio.wait_for(talk(), 30))
    assert lost.value.code == "lost"
