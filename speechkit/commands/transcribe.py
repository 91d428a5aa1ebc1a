"""`speechkit transcribe`: recordings, folders of them and pipes to text."""

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speechkit.errors import InputError
from speechkit.startup import starting

if TYPE_CHECKING:  # torch takes seconds to import, which `--help` need not wait for
    from pathlib import Path

    from speechkit.asr.transcriber import Transcriber
    from speechkit.commands.sources import Recording

BEAM = 8  # where --lm or --nbest asks for a search and --beam says nothing


class Decoder(StrEnum):
    """How tokens are found."""

    rnnt = "rnnt"
    ctc = "ctc"
    nar = "nar"


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
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the CPU; without it one for --stream, else torch's choice.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")] = "cpu",
) -> None:
    """Write down what is said.

    Recordings may have any length, rate and number of channels. Exit code 2 where one of them could not be used.
    """
    with starting():
        from speechkit.commands import sources
    beam = beam or (max(BEAM, nbest) if lm or nbest > 1 else 1)
    recordings, refused, targets = _check(files, output, format, stream, beam, nbest)
    options: dict[str, Any] = {
        "latency_ms": latency_ms, "decoder": decoder and decoder.value,
        "hotwords": sources.phrases(hotwords), "hotword_weight": hotword_weight,
    }  # fmt: skip
    with starting():
        from speechkit.commands.loading import recogniser, use_threads
        from speechkit.commands.transcribing import Transcribing, complain, print_any_name
    if threads or stream:  # a chunk is too little work to share: two threads take more than twice the CPU time
        use_threads(threads or 1)
    transcriber = recogniser(model, device)
    _check_options(transcriber, options, stream, beam)
    if not stream:
        options |= {"beam": beam, "nbest": nbest}
    if lm:
        options["scorers"] = [_language_model(transcriber, lm, lm_weight, lm_bonus, lm_unit.value, lm_words)]
    for sentence in refused:
        complain(sentence)
    print_any_name()
    run = Transcribing(transcriber, options, stream, raw_rate, format.value, words, nbest, len(recordings) > 1)
    if run.all(recordings, targets) or refused:
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
    if not output and sys.stdout is None:
        raise InputError("standard output is closed: name a folder for the texts with --output")
    from speechkit.commands import sources

    recordings, refused = sources.expand(files)
    targets = sources.targets(recordings, output, format.value) if output else {}
    if subtitles and len(recordings) > 1 and not output:
        raise InputError(f"{len(recordings)} recordings need a {format.value} file each: name a folder with --output")
    return recordings, refused, targets


def _check_options(transcriber: "Transcriber", options: dict[str, Any], stream: bool, beam: int) -> None:
    """What the model cannot do is said once, not for every recording."""
    if stream:
        transcriber.stream(**options)
    else:
        transcriber.context(options["latency_ms"])
        booster = transcriber.booster(options["hotwords"], options["hotword_weight"])
        transcriber.search(options["decoder"], beam, booster)


def _language_model(
    transcriber: "Transcriber", path: str, weight: float, bonus: float, unit: str, words: str | None
) -> Any:
    from speechkit.asr.decoding.lm import NgramScorer
    from speechkit.commands.sources import expanded, lines

    return NgramScorer(expanded(path), transcriber.tokenizer, weight, bonus, unit, lines(words) if words else None)
