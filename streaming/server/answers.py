"""What is said of a file: OpenAI's formats of a transcription."""

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from speechkit.asr.captions import cues, srt, vtt
from speechkit.asr.decoding.words import Word
from speechkit.streaming.event import Final
from speechkit.text import join_words

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")


def answer(finals: list[Final], seconds: float, shape: str, with_words: bool) -> Response:
    """The answer to a file of some seconds in one of `FORMATS`; words in ``verbose_json`` alone."""
    text = join_words(final.text for final in finals)
    words: list[Word] = [word for final in finals for word in final.words]
    match shape:
        case "text":
            return PlainTextResponse(text + "\n")
        case "srt":
            shown = "".join(srt(number, cue) for number, cue in enumerate(cues(words), 1))
            return PlainTextResponse(shown, media_type="application/x-subrip")
        case "vtt":
            return PlainTextResponse("WEBVTT\n\n" + "".join(vtt(cue) for cue in cues(words)), media_type="text/vtt")
        case "verbose_json":
            return JSONResponse(_verbose(finals, seconds, words if with_words else None, text))
    return JSONResponse({"text": text})


def _verbose(finals: list[Final], seconds: float, words: list[Word] | None, text: str) -> Mapping[str, Any]:
    told: dict[str, Any] = {
        "task": "transcribe",
        "language": "",
        "duration": seconds,
        "text": text,
        "segments": [_segment(final) for final in finals],
    }
    if words is not None:
        told["words"] = [{"word": word.text, "start": word.start_s, "end": word.end_s} for word in words]
    return told


def _segment(final: Final) -> Mapping[str, Any]:
    """Whisper's: what only Whisper has is as of a segment that is sure to be speech."""
    data = final.text.encode()
    return {
        "id": final.segment, "start": final.start_s, "end": final.end_s, "text": final.text, "seek": 0, "tokens": [],
        "temperature": 0.0, "no_speech_prob": 0.0, "compression_ratio": len(data) / len(zlib.compress(data)),
        "avg_logprob": sum(math.log(max(word.confidence, 1e-9)) for word in final.words) / max(1, len(final.words)),
    }  # fmt: skip


def server_sent(kind: str, **values: Any) -> str:
    """An event of a stream of them."""
    return f"data: {json.dumps({'type': kind, **values}, ensure_ascii=False)}\n\n"
