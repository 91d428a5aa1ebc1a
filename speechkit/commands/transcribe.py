"""`speechkit transcribe`: recordings, folders of them and pipes to text."""

import functools
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from speechkit.errors import InputError

if TYPE_CHECKING:  # torch takes seconds to import, which `--help` need not wait for
    from pathlib import Path

    import numpy as np

    from speechkit.asr.transcriber import Transcriber, Transcript
    from speechkit.commands.formats import Decode, Format
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
    recordings, refused, targets = _check(files, output, format, stream, beam, nbest)
    from speechkit.commands.sources import phrases

    options: dict[str, Any] = {
        "latency_ms": latency_ms, "decoder": decoder and decoder.value,
        "hotwords": phrases(hotwords), "hotword_weight": hotword_weight,
    }  # fmt: skip
    transcriber = _load(model, device, threads)
    _check_options(transcriber, options, stream)
    if not stream:
        options |= {"beam": beam, "nbest": nbest}
    if lm:
        options["scorers"] = [_language_model(transcriber, lm, lm_weight, lm_bonus, lm_unit.value, lm_words)]
    for sentence in refused:
        _complain(sentence)
    several, decode = len(recordings) > 1, transcriber.tokenizer.decode
    shape = functools.partial(_format, kind=format.value, several=several, words=words, nbest=nbest, decode=decode)
    failed = _run(transcriber, recordings, targets, raw_rate, stream, options, shape)
    if refused or failed:
        raise typer.Exit(2)


def _check(
    files: list[str], output: str | None, format: Kind, stream: bool, beam: int, nbest: int
) -> "tuple[list[Recording], list[str], dict[Recording, Path]]":
    """The recordings, a sentence for each folder without any, and the recordings' files in the output folder."""
    if stream and beam > 1:
        raise InputError("--stream prints words for good, so it decodes greedily: leave out --beam, --nbest and --lm")
    subtitles = format in (Kind.srt, Kind.vtt)
    if nbest > 1 and subtitles:
        raise InputError(f"--nbest gives several texts, of which a {format.value} file can show one: use text or json")
    from speechkit.commands import sources

    recordings, refused = sources.expand(files)
    targets = sources.targets(recordings, output, format.value) if output else {}
    if subtitles and len(recordings) > 1 and not output:
        raise InputError(f"{len(recordings)} recordings need a {format.value} file each: name a folder with --output")
    return recordings, refused, targets


def _load(model: str | None, device: str, threads: int | None) -> "Transcriber":
    import torch

    from speechkit.commands.loading import recogniser

    if threads:
        torch.set_num_threads(threads)
    return recogniser(model, device)


def _check_options(transcriber: "Transcriber", options: dict[str, Any], stream: bool) -> None:
    """What the model cannot do is said once, not for every recording."""
    if stream:
        transcriber.stream(**options)
    else:
        transcriber.context(options["latency_ms"])
        transcriber.greedy(options["decoder"], transcriber.booster(options["hotwords"], options["hotword_weight"]))


def _run(
    transcriber: "Transcriber",
    recordings: "list[Recording]",
    targets: "dict[Recording, Path]",
    raw_rate: int | None,
    stream: bool,
    options: dict[str, Any],
    shape: "Callable[[TextIO, Recording], Format]",
) -> int:
    """Transcribes the recordings; how many of them could not be used."""
    from speechkit.commands.sources import write

    failed = 0
    for recording in recordings:
        target = targets.get(recording)
        with nullcontext(sys.stdout) if target is None else io.StringIO() as file:
            try:
                sink = shape(file, recording)
                _transcribe(transcriber, recording, raw_rate, stream, options, sink, target is None)
                if target is not None:
                    write(target, file.getvalue())  # type: ignore[union-attr]
            except InputError as error:
                _complain(str(error))
                failed += 1
    return failed


def _language_model(
    transcriber: "Transcriber", path: str, weight: float, bonus: float, unit: str, words: str | None
) -> Any:
    from speechkit.asr.decoding.lm import NgramScorer
    from speechkit.commands.sources import lines

    return NgramScorer(path, transcriber.tokenizer, weight, bonus, unit, lines(words) if words else None)


def _format(
    file: TextIO, recording: "Recording", kind: str, several: bool, words: bool, nbest: int, decode: "Decode"
) -> "Format":
    from speechkit.commands.formats import make

    return make(kind, file, recording.name, several and file is sys.stdout, words, nbest, decode)


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
