"""`speechkit codec`: recordings to token files and back, what a token file holds, and what is lost on the way."""

import json as json_format
import sys
from typing import Annotated

import typer

from speechkit.errors import InputError
from speechkit.startup import starting

Model = Annotated[
    str | None,
    typer.Option(
        help="A release folder, a published WavTokenizer .ckpt or S3 .onnx file, or a hub id; else what comes along."
    ),
]
Files = Annotated[list[str], typer.Argument(help="Audio files, folders of them, or - for WAV on standard input.")]
Tokens = Annotated[str, typer.Argument(help="Token file, or - for standard input.")]
RawRate = Annotated[
    int | None, typer.Option(help="The input has no header: mono 16-bit little-endian samples at this rate, Hz.")
]
Books = Annotated[
    int | None,
    typer.Option(min=1, help="Of a codec with several codebooks so many: fewer bits, less like the original."),
]
Threads = Annotated[int, typer.Option(min=1, help="Threads of the CPU.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object in place of a table.")]


def encode(
    files: Files,
    output: Annotated[
        str, typer.Option("--output", "-o", help="Token file (.skc), - for standard output, or a folder for several.")
    ],
    model: Model = None,
    codebooks: Books = None,
    raw_rate: RawRate = None,
    threads: Threads = 1,
) -> None:
    """Turn recordings into token files.

    Speech tokenizers can do that as well, from whose tokens no sound comes back.

    Recordings may have any length, rate and number of channels. Exit code 2 where one of them could not be used.
    """
    with starting():
        from speechkit.commands import coding, token_files
        from speechkit.commands.loading import use_threads
    recordings, targets, refused = token_files.planned(files, output)
    use_threads(threads)
    named = coding.load_coder(model, codebooks)
    failed = [_complain(sentence) for sentence in refused]
    for recording, target in zip(recordings, targets, strict=True):
        try:
            coding.encode(recording, target, named, raw_rate)
        except InputError as error:
            failed.append(_complain(str(error)))
    if failed:
        raise typer.Exit(2)


def decode(
    tokens: Tokens,
    output: Annotated[str, typer.Option("--output", "-o", help="Audio file (.wav), or - for standard output.")],
    model: Model = None,
    threads: Threads = 1,
) -> None:
    """Turn a token file into a recording: WAV of 16 bits, as long as the one that was encoded."""
    with starting():
        from speechkit.commands import coding, token_files
        from speechkit.commands.loading import use_threads
    target = token_files.checked_target(output, ".wav")
    use_threads(threads)
    with token_files.opened(tokens) as reader:
        coding.decode(reader, target, coding.load(model))


def info(
    tokens: Annotated[str | None, typer.Argument(help="Token file, or - for standard input.")] = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """Read a token file from end to end and say what it holds, or what a codec is and how long its streams wait."""
    with starting():
        from speechkit.commands import coding, token_files
    named = coding.load_coder(model) if model is not None or tokens is None else None
    found = coding.described(named) if named else {}
    if tokens is not None:
        with token_files.opened(tokens) as reader:
            if named:
                reader.header.check_model(named.header, reader.name)
            found |= token_files.described(reader)
    if json:
        print(json_format.dumps(found, ensure_ascii=False))
        return
    room = max(map(len, found)) + 2
    for what, value in found.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else "-" if value is None else value
        print(f"{what.replace('_', ' '):{room}}{shown}")


def roundtrip(
    files: Files,
    model: Model = None,
    codebooks: Books = None,
    raw_rate: RawRate = None,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Encode and decode recordings, and compare.

    Bit rate, SI-SDR, STOI, PESQ (where pystoi and pesq are installed), mel distance and real-time factors.
    """
    with starting():
        from speechkit.commands import coding, sources
        from speechkit.commands.loading import use_threads
        from speechkit.commands.roundtrip import Report
    recordings, refused = sources.expand(files)
    use_threads(threads)
    report = Report(coding.load(model, codebooks))
    failed = [_complain(sentence) for sentence in refused]
    for recording in recordings:
        try:
            report.add(recording, raw_rate)
        except InputError as error:
            failed.append(_complain(str(error)))
    if report.trips:
        print(json_format.dumps(report.as_dict(), ensure_ascii=False)) if json else report.print()
    if failed:
        raise typer.Exit(2)


def _complain(sentence: str) -> str:
    """Says what could not be used; the others are."""
    print(f"error: {sentence}", file=sys.stderr)
    return sentence
