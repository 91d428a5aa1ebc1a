"""How many streams the server holds in real time, and how long words take, beside what the load itself costs.

python benchmarks/server_load.py FOLDER_OR_MANIFEST --streams 1 8 16 32 [--serve batch=1 workers=2 model=FOLDER]

A word's time is from its end in the audio, by forced alignment of the reference text (`speechkit.asr.latency`), to the
first event that has it whole as it stays. Words that are not recognised have none.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jiwer
import numpy as np
import torch

import speechkit
from speechkit.asr.latency import Aligner, divided
from speechkit.data import manifest
from speechkit.streaming.client import AsyncClient, ServerError
from speechkit.text import normalize

RATE = 16_000
PIECE_S = 0.08
LATE_S = 1.0  # that the last event may come after the last audio, for a stream to count as held in real time


@dataclass
class Spoken:
    """A recording, or several behind one another."""

    wave: np.ndarray
    words: list[str]
    ends_s: list[float]  # of the words

    @classmethod
    def joined(cls, parts: "Sequence[Spoken]") -> "Spoken":
        """One after the other."""
        whole = cls(np.concatenate([part.wave for part in parts]), [], [])
        begin = 0.0
        for part in parts:
            whole.words += part.words
            whole.ends_s += [begin + end for end in part.ends_s]
            begin += len(part.wave) / RATE
        return whole


@dataclass
class Heard:
    """What one stream saw."""

    words: list[tuple[str, float]] = field(default_factory=list)  # and when each was first there as it stays
    latencies_s: list[float] = field(default_factory=list)
    behind_s: float = 0.0  # from the last audio to the last event
    failure: str | None = None


async def speak(url: str, spoken: Spoken, latency_ms: float, delay: float) -> Heard:
    """One stream at real time; begins after `delay` seconds."""
    await asyncio.sleep(delay)
    heard, loop = Heard(), asyncio.get_running_loop()
    options = {"latency_ms": latency_ms, "endpoint": {"longest_s": 20.0}}
    try:
        async with AsyncClient(url, RATE, options=options, reconnect=False) as client:
            begin = loop.time()
            sender = asyncio.create_task(_send(client, spoken.wave, begin))
            segment: list[tuple[str, float]] = []
            async for event in client:
                if event["type"] not in ("partial", "final"):
                    continue
                now = loop.time() - begin
                said = [word["word"] for word in event["words"]]
                segment = [
                    old if old is not None and old[0] == word else (word, now)
                    for word, old in itertools.zip_longest(said, segment[: len(said)])
                ]
                if event["type"] == "final":
                    heard.words += segment
                    segment = []
            heard.behind_s = loop.time() - await sender
    except (ServerError, OSError) as error:
        heard.failure = str(error)
    heard.latencies_s = _latencies(spoken, heard.words)
    return heard


def _latencies(spoken: Spoken, heard: Sequence[tuple[str, float]]) -> list[float]:
    """Of the words that were recognised."""
    if not heard:
        return []
    text = " ".join(word for word, _ in heard)
    found = []
    for part in jiwer.process_words(" ".join(spoken.words), text).alignments[0]:
        if part.type == "equal":
            pairs = zip(
                spoken.ends_s[part.ref_start_idx : part.ref_end_idx],
                heard[part.hyp_start_idx : part.hyp_end_idx],
                strict=True,
            )
            found += [moment - end for end, (_, moment) in pairs]
    return found


async def _send(client: AsyncClient, wave: np.ndarray, begin: float) -> float:
    loop, size = asyncio.get_running_loop(), round(PIECE_S * RATE)
    for start in range(0, len(wave), size):
        await asyncio.sleep(max(0.0, begin + (start + size) / RATE - loop.time()))
        await client.send(wave[start : start + size])
    await client.finish()
    return loop.time()


async def load(url: str, spoken: Sequence[Spoken], streams: int, latency_ms: float) -> list[Heard]:
    """So many streams at once, begun over a second; each hears recordings in an order of its own."""
    rng = random.Random(0)
    joined = [Spoken.joined(rng.sample(list(spoken), len(spoken))) for _ in range(min(streams, 16))]
    work = [speak(url, joined[i % len(joined)], latency_ms, rng.random()) for i in range(streams)]
    return list(await asyncio.gather(*work))


class Served:
    """A server in a process of its own."""

    def __init__(self, options: Sequence[str], streams: int) -> None:
        command = [
            sys.executable,
            "-m",
            "speechkit.serve",
            "port=0",
            "log=error",
            f"limits.streams={streams}",
            *options,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        found = re.search(r"(ws://\S+)", self.process.stdout.readline())
        if found is None:
            raise SystemExit("the server did not start")
        self.url = found[1]

    def cpu_s(self) -> float:
        """Of the server and its workers, so far."""
        return sum(_cpu_s(pid) for pid in _family(self.process.pid))

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait(20)


def _family(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += _family(int(child))
    return found


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(served: Served, spoken: Sequence[Spoken], streams: int, latency_ms: float) -> dict[str, object]:
    """One row of the table."""
    before, own, begin = served.cpu_s(), time.process_time(), time.monotonic()
    heard = asyncio.run(load(served.url, spoken, streams, latency_ms))
    wall = time.monotonic() - begin
    latencies = [1000 * value for stream in heard for value in stream.latencies_s]
    p50, p95, p99 = (np.percentile(latencies, q) for q in (50, 95, 99)) if latencies else (np.nan,) * 3
    return {
        "streams": streams,
        "held": sum(stream.failure is None and stream.behind_s <= LATE_S for stream in heard),
        "failed": sum(stream.failure is not None for stream in heard),
        "words": len(latencies),
        "p50_ms": round(float(p50)),
        "p95_ms": round(float(p95)),
        "p99_ms": round(float(p99)),
        "behind_s": round(max(stream.behind_s for stream in heard), 2),
        "server_cores": round((served.cpu_s() - before) / wall, 2),
        "load_cores": round((time.process_time() - own) / wall, 2),
    }


def recordings(data: str, model: str | None, seconds: float) -> list[Spoken]:
    """The first recordings that together have so many seconds, their words aligned."""
    torch.set_num_threads(1)
    aligner = Aligner(speechkit.load(model) if model else speechkit.load())  # type: ignore[arg-type]
    found: list[Spoken] = []
    with tempfile.TemporaryDirectory() as cache:
        for item in manifest.find(data, None, Path(cache)):
            wave = item.wave(RATE)
            text = normalize(item.text)
            ends = aligner.word_ends(torch.from_numpy(wave), text)
            if ends is not None:
                found.append(Spoken(wave, divided(text, aligner.transcriber.tokenizer), ends))
            if sum(len(part.wave) for part in found) >= seconds * RATE:
                break
    if not found:
        raise SystemExit(f"no recording of {data} could be aligned with its text")
    return found


def main() -> None:
    """Runs it and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder or manifest of recordings with their texts")
    parser.add_argument("--aligner", help="model with a CTC head by which words are aligned; else the default one")
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 8, 16, 32, 64, 128])
    parser.add_argument("--latency-ms", type=float, default=80)
    parser.add_argument("--seconds", type=float, default=30, help="of audio in a stream")
    parser.add_argument("--serve", nargs="*", default=[], help="options of the server")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    spoken = recordings(chosen.data, chosen.aligner, chosen.seconds)
    served, rows = Served(chosen.serve, max(chosen.streams)), []
    try:
        measure(served, spoken[:1], 1, chosen.latency_ms)  # what is made at the first call
        for streams in chosen.streams:
            rows.append(measure(served, spoken, streams, chosen.latency_ms))
            print(" ".join(f"{name}={value}" for name, value in rows[-1].items()), flush=True)
            if rows[-1]["held"] != streams:
                break
    finally:
        served.stop()
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
