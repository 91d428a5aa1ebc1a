"""Seeded nonsense: what clients that are broken, old, curious or hostile send."""

import json
import string
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.server import raw

CONFIG = {
    "type": "config", "rate": 16_000, "encoding": "s16le", "channels": 1, "latency_ms": 80.0, "hotwords": ["abc"],
    "hotword_weight": 2.0, "endpoint": {"trailing_s": 0.5, "silence_s": 1.0, "longest_s": 5.0}, "partials": True,
    "words": True, "resume": None, "after": 0,
}  # fmt: skip
OWN = (
    CONFIG, {"type": "finalize"}, {"type": "set_latency", "latency_ms": 0}, {"type": "keepalive"}, {"type": "close"},
    {"type": "hotwords", "phrases": {"abc": 1.5}, "weight": 1.0}, {"type": "config", "resume": "x" * 32, "after": 3},
)  # fmt: skip
VOSK = (
    {"config": {"sample_rate": 16_000, "words": True, "phrase_list": ["abc", "[unk]"]}}, {"eof": 1}, {"reset": 1},
)  # fmt: skip
DEEPGRAM = ({"type": "Finalize"}, {"type": "KeepAlive"}, {"type": "CloseStream"})
DETECTION = {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 500}
INPUT = {
    "format": {"type": "audio/pcm", "rate": 24_000}, "transcription": {"model": "m"}, "turn_detection": DETECTION,
}  # fmt: skip
OPENAI = (
    {"type": "session.update", "session": {"type": "transcription", "audio": {"input": INPUT}}, "event_id": "e1"},
    {"type": "transcription_session.update", "session": {"input_audio_format": "pcm16", "turn_detection": None}},
    {"type": "input_audio_buffer.append", "audio": "AAAAAAAA"}, {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear"},
)  # fmt: skip
QUERY = {
    "encoding": ["linear16"], "sample_rate": ["16000"], "channels": ["1"], "interim_results": ["true"],
    "endpointing": ["300"], "utterance_end_ms": ["1000"], "keyterm": ["abc"], "keywords": ["abc:2"],
    "vad_events": ["true"], "latency_ms": ["80"], "model": ["nova"],
}  # fmt: skip
NUMBERS = (0, -1, 1, 2**63, -(2**64), 10**300, 1e-300, 1e308, float("nan"), float("inf"), -float("inf"), 0.1, 99_999)
WORDS = (
    "", "abc", "xyz", "\0", "\ud800", "\U0001f600", "é" * 50, "ﷺ", "a" * 3000, "nan", "1e999", "-1", "true", "s16le",
    "mulaw", "audio/pcm", "Done", "None", "\n", "\\", '"', "مرحبا", "‮abc", "audio/pcmu", "config", "RIFF", "opus",
)  # fmt: skip


def value(rng: np.random.Generator, depth: int = 0) -> Any:
    """Anything that JSON can say, and some that it cannot."""
    match int(rng.integers(0, 9 if depth < 3 else 6)):
        case 0:
            return None
        case 1:
            return bool(rng.integers(0, 2))
        case 2:
            return NUMBERS[rng.integers(len(NUMBERS))]
        case 3:
            return WORDS[rng.integers(len(WORDS))]
        case 4:
            return int(rng.integers(-(10**9), 10**9))
        case 5:
            return "".join(rng.choice(list(string.printable), int(rng.integers(0, 12))))
        case 6 | 7:
            return [value(rng, depth + 1) for _ in range(rng.integers(0, 4))]
        case _:
            return {str(value(rng, 3)): value(rng, depth + 1) for _ in range(rng.integers(0, 4))}


def spoilt(rng: np.random.Generator, message: Any) -> Any:
    """A message of which one value, somewhere, is another."""
    if not isinstance(message, Mapping) or not message or rng.random() < 0.15:
        return value(rng)
    name = list(message)[rng.integers(len(message))]
    if rng.random() < 0.1:
        return {key: item for key, item in message.items() if key != name}
    if rng.random() < 0.05:
        return {**message, WORDS[rng.integers(len(WORDS))]: value(rng)}
    return {**message, name: spoilt(rng, message[name])}


def message(rng: np.random.Generator, valid: Sequence[Mapping[str, Any]]) -> str | bytes:
    """Valid and invalid in about equal parts."""
    told = valid[int(rng.integers(len(valid)))]
    match int(rng.integers(0, 12)):
        case 0:
            return rng.bytes(int(rng.integers(0, 200)))
        case 1 | 2:
            return rng.integers(-3000, 3000, int(rng.integers(0, 400)), np.int16).tobytes()
        case 3:
            return struct.pack("<4f", *(NUMBERS[i] % 1e38 for i in rng.integers(0, len(NUMBERS), 4)))
        case 4:
            return json.dumps(value(rng))
        case 5:
            whole = json.dumps(told)
            return whole[: rng.integers(0, len(whole))]
        case 6:
            depth = int(rng.integers(1, 5000))
            return ("[" * depth, '{"type":' * depth, '{"a":' * depth + "1" + "}" * depth)[rng.integers(3)]
        case 7:
            return "9" * int(rng.integers(1, 6000)) if rng.random() < 0.5 else WORDS[rng.integers(len(WORDS))][:100]
        case 8 | 9:
            return json.dumps(spoilt(rng, told), ensure_ascii=bool(rng.integers(0, 2)))
        case 10:
            return "Done" if rng.random() < 0.1 else json.dumps(told)
        case _:
            return json.dumps(told)


def wav_header(rng: np.random.Generator) -> bytes:
    """Of a WAV file, often a broken one."""
    numbers = [1, 1, 16_000, 32_000, 2, 16]
    if rng.random() < 0.7:
        numbers[rng.integers(6)] = int(rng.integers(0, 60_000))
    body = struct.pack("<HHIIHH", *numbers)
    header = b"RIFF\xff\xff\xff\xffWAVEfmt " + struct.pack("<I", len(body)) + body + b"data\xff\xff\xff\xff"
    if rng.random() < 0.3:
        spot = int(rng.integers(0, len(header)))
        header = header[:spot] + rng.bytes(int(rng.integers(0, 9))) + header[spot:]
    return header


def ogg_page(rng: np.random.Generator) -> bytes:
    """Of an Ogg stream with an Opus header or some packets, often a broken one."""
    head = b"OpusHead\x01\x01\x38\x01\x80\xbb\0\0\0\0\0"
    packets = [head, b"OpusTags"] if rng.random() < 0.5 else [rng.bytes(int(rng.integers(0, 255))) for _ in range(4)]
    lacing = bytes(len(packet) for packet in packets)
    page = b"OggS\0" + bytes([2 * (packets[0] == head)]) + bytes(8) + b"abcd" + bytes(8)
    page += bytes([len(lacing)]) + lacing + b"".join(packets)
    if rng.random() < 0.3:
        spot = int(rng.integers(0, len(page)))
        page = page[:spot] + rng.bytes(int(rng.integers(0, 9))) + page[spot + 1 :]
    return page


def query(rng: np.random.Generator) -> dict[str, list[str]]:
    """Of Deepgram's address."""
    names = [name for name in QUERY if rng.random() < 0.6]
    found = {name: QUERY[name] for name in names}
    if names and rng.random() < 0.6:
        name = names[rng.integers(len(names))]
        found[name] = [str(value(rng, 3)).encode("utf-8", "replace").decode() for _ in range(rng.integers(1, 3))]
    return found


def broken_frame(rng: np.random.Generator) -> bytes:
    """Bytes that are no frame of a websocket's client, or one that is rare."""
    match int(rng.integers(0, 8)):
        case 0:
            return rng.bytes(int(rng.integers(1, 60)))
        case 1:
            return raw.frame(b"\xff\xfe\xc0", raw.TEXT)  # no UTF-8
        case 2:
            return raw.frame(b"x" * int(rng.integers(0, 130)), int(rng.integers(0, 16)))
        case 3:
            return raw.frame("[", last=False) + raw.frame(b"]", 0)
        case 4:
            return raw.frame(b"\xc3", raw.TEXT, last=False) + raw.frame(rng.bytes(1), 0)
        case 5:
            return b"\x82\xff" + rng.bytes(8) + bytes(4)  # of a length beyond all limits
        case 6:
            return raw.frame(rng.bytes(int(rng.integers(0, 6))), raw.CLOSE)
        case _:
            return raw.frame(b"?", raw.PING) + raw.frame(b"!", raw.PONG) + raw.frame(b"", 0)
