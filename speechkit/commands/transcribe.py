"""`speechkit transcribe`: recordings, folders of them and pipes to text."""

import io
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from speechkit.errors import InputError

if TYPE_CHECKING:  # torch takes seconds to import, which `--help` need not wait for
    import numpy as np

    from speechkit.asr.transcriber import Transcriber, Transcript
    from speechkit.commands.formats import Format
    from speechkit.commands.sources import Recording

BLOCK_S = 0.1  # seconds of sound that a stream is given at a time
BEAM = 8  # where --lm or --nbest asks for a search and --beam says nothing


class Decoder(StrEnum):
    """Heads."""

    rnnt = "rnnt"
    ctc = "ctc"


class Kind(StrEnum):
    """Output formats."""

    text = "text"
    json = "json"
    srt = "srt"
    vtt = "vtt"


class Unit(StrEnum):
    """Entries of a language model."""

    word = "word"
    piece = "piece"


def transcribe(
    files: Annotated[list[str], typer.Argument(help="Audio files, folders of them, or - for WAV on standard input.")],
    model: Annotated[
        str | None, typer.Option(help="Release folder, .nemo file or hub id; without it the packaged model.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Chunk by chunk, printing words as they are known.")] = False,
    latency_ms: Annotated[
        float | None, typer.Option(min=0, help="How far the model may look ahead; without it the model's first choice.")
    ] = None,
    words: Annotated[bool, typer.Option("--words", help="Words with start, end and confidence.")] = False,
    hotwords: Annotated[
        str | None, typer.Option(help="Phrases to favour, 'phrase[:factor], ...', or a file with one a line.")
    ] = None,
    hotword_weight: Annotated[float, typer.Option(min=0, help="Nats that a phrase's token gains.")] = 2.0,
    decoder: Annotated[Decoder | None, typer.Option(help="Head; without it the first that the model has.")] = None,
    beam: Annotated[int | None, typer.Option(min=1, help="Hypotheses of a beam search; 1 is greedy.")] = None,
    nbest: Annotated[int, typer.Option(min=1, help="How many hypotheses to give.")] = 1,
    lm: Annotated[str | None, typer.Option(help="N-gram language model, ARPA or KenLM binary.")] = None,
    lm_weight: Annotated[float, typer.Option(help="Of the language model against the recogniser.")] = 0.5,
    lm_bonus: Annotated[float, typer.Option(help="Nats added for each of its entries.")] = 0.5,
    lm_unit: Annotated[Unit, typer.Option(help="What its entries are.")] = Unit.word,
    lm_words: Annotated[str | None, typer.Option(help="Its vocabulary, a word a line: for a KenLM binary.")] = None,
    format: Annotated[Kind, typer.Option(help="Output.")] = Kind.text,
    output: Annotated[str | None, typer.Option(help="Folder for a file per recording; without it standard output.")] = (
        None
    ),
    raw_rate: Annotated[
        int | None, typer.Option(help="The input has no header: mono 16-bit little-endian samples at this rate, Hz.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the CPU; without it torch's choice.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")] = "cpu",
) -> None:
    """Write down what is said.

    Recordings may have any length, rate and number of channels. Exit code 2 where one of them could not be used.
    """
    beam = beam or (max(BEAM, nbest) if lm or nbest > 1 else 1)
    if stream and beam > 1:
        raise InputError("--stream prints words for good, so it decodes greedily: leave out --beam, --nbest and --lm")
    if nbest > 1 and format in (Kind.srt, Kind.vtt):
        raise InputError(f"--nbest gives several texts, of which a {format.value} file can show one: use text or json")
    from speechkit.commands import sources

    recordings, refused = sources.expand(files)
    targets = sources.targets(recordings, output, format.value) if output else {}
    if format in (Kind.srt, Kind.vtt) and len(recordings) > 1 and not output:
        raise InputError(f"{len(recordings)} recordings need a {format.value} file each: name a folder with --output")
    phrases = sources.phrases(hotwords)
    transcriber = _load(model, device, threads)
    options: dict[str, Any] = {
        "latency_ms": latency_ms, "decoder": decoder and decoder.value,
        "hotwords": phrases, "hotword_weight": hotword_weight,
    }  # fmt: skip
    if stream:
        transcriber.stream(**options)  # what cannot be is said once, not for every recording
    else:
        transcriber.context(latency_ms)
        transcriber.greedy(options["decoder"], transcriber.booster(phrases, hotword_weight))
        options |= {"beam": beam, "nbest": nbest}
        if lm:
            options["scorers"] = [_language_model(transcriber, lm, lm_weight, lm_bonus, lm_unit.value, lm_words)]
    for sentence in refused:
        _complain(sentence)
    failed = len(refused)
    for recording in recordings:
        target = targets.get(recording)
        with nullcontext(sys.stdout) if target is None else io.StringIO() as file:
            try:
                sink = _format(file, format.value, recording, len(recordings) > 1, words, nbest, transcriber)
                _transcribe(transcriber, recording, raw_rate, stream, options, sink, target is None)
                if target is not None:
                    sources.write(target, file.getvalue())  # type: ignore[union-attr]
            except InputError as error:
                _complain(str(error))
                failed += 1
    if failed:
        raise typer.Exit(2)


def _load(model: str | None, device: str, threads: int | None) -> "Transcriber":
    import torch

    from speechkit import hub
    from speechkit.asr.transcriber import Transcriber

    if threads:
        torch.set_num_threads(threads)
    api = hub.load(hub.default() if model is None else model, _device(device))
    if not isinstance(api, Transcriber):
        raise InputError(f"{model} is a {type(api).__name__}, not a model for recognition")
    return api


def _device(name: str) -> str:
    """The name of a device that is there."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"there is no kind of device {name!r}: name cpu, cuda, cuda:1 or mps") from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= there.get(device.type, 0):
        found = [kind for kind, count in there.items() if count]
        raise InputError(f"this machine has no device {name}, only {', '.join(found)} (see `speechkit doctor`)")
    return name


def _language_model(
    transcriber: "Transcriber", path: str, weight: float, bonus: float, unit: str, words: str | None
) -> Any:
    from speechkit.asr.decoding.lm import NgramScorer
    from speechkit.commands.sources import lines

    return NgramScorer(path, transcriber.tokenizer, weight, bonus, unit, lines(words) if words else None)


def _format(
    file: TextIO, kind: str, recording: "Recording", several: bool, words: bool, nbest: int, transcriber: "Transcriber"
) -> "Format":
    from speechkit.commands.formats import make

    return make(kind, file, recording.name, several and file is sys.stdout, words, nbest, transcriber.tokenizer.decode)


def _transcribe(
    transcriber: "Transcriber",
    recording: "Recording",
    raw_rate: int | None,
    stream: bool,
    options: dict[str, Any],
    sink: "Format",
    printed: bool,
) -> None:
    """One recording; what was said before something fails is given first."""
    from speechkit.commands.progress import progress

    shown = sys.stderr.isatty() and not (stream and printed and sys.stdout.isatty())
    told = 0
    try:
        with progress(recording.path, shown) as passed:
            blocks = passed(recording.blocks(transcriber.rate, BLOCK_S if stream else 1.0, raw_rate), transcriber.rate)
            if stream:
                told, result = _live(transcriber, blocks, options, sink)
            else:
                result = transcriber.transcribe(blocks, **options)
        for word in result.words[told:]:
            sink.word(word)
        sink.end(result)
    finally:
        sink.close()
    if not transcriber.latencies_ms and _windowed(result.seconds):
        print(f"{recording.name}: this model needs full context: heard in windows, cut at pauses", file=sys.stderr)


def _live(
    transcriber: "Transcriber", blocks: "Iterator[np.ndarray]", options: dict[str, Any], sink: "Format"
) -> "tuple[int, Transcript]":
    """Gives words as they are known; how many it gave, and the transcript."""
    live, told = transcriber.stream(**options), 0
    for block in blocks:
        live.push(block)
        for word in live.settled[told:]:
            sink.word(word)
        told = len(live.settled)
        sink.partial(live.open)
    return told, live.finish()


def _windowed(seconds: float) -> bool:
    from speechkit.asr.transcriber import WINDOW_SECONDS

    return seconds > WINDOW_SECONDS


def _complain(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr)
