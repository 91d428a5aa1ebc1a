"""Two replicas under Ray Serve: streams spread over both, each staying where it began."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechkit.streaming.client import AsyncClient
from tests.asr.tiny import babble, release
from tests.server.serving import heard, make_engine

ray = pytest.importorskip("ray", reason="Ray comes with the extra ray, which is not in `all`")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from ray import serve

    from speechkit.cluster import app

    folder = release(tmp_path_factory.mktemp("cluster") / "tiny")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"port": port, "host": "127.0.0.1"})
    try:
        serve.run(app({"model": str(folder), "replicas": "2", "streams": "8"}))
        yield f"ws://127.0.0.1:{port}/v1/stream"
    finally:
        serve.shutdown()
        ray.shutdown()


async def whole(url: str, wave: np.ndarray) -> list[dict[str, Any]]:
    options = {"endpoint": {"trailing_s": None, "silence_s": None}}
    async with AsyncClient(url, options=options) as client:
        for piece in np.array_split(wave, 20):
            await client.send(piece)
            await asyncio.sleep(0.02)
        await client.finish()
        return [client.ready, *[event async for event in client]]


def test_streams_on_two_replicas(url: str) -> None:
    waves = [heard(babble(3, seed=seed)) for seed in range(6)]

    async def all_at_once() -> list[list[dict[str, Any]]]:
        return await asyncio.gather(*(whole(url, wave) for wave in waves))

    found = asyncio.run(all_at_once())
    engine = make_engine()
    assert len({events[0]["server"] for events in found}) == 2
    for wave, (_, *events) in zip(waves, found, strict=True):
        assert [event["seq"] for event in events] == sorted({event["seq"] for event in events})
        assert [e["text"] for e in events if e["type"] == "final"] == [engine.transcriber.transcribe(wave).text]


def test_options_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    from speechkit.cluster import app
    from speechkit.errors import InputError

    with pytest.raises(InputError, match="there is no option speed"):
        app({"speed": "3"})
    with pytest.raises(InputError, match="must be numbers"):
        app({"replicas": "many"})
