"""`speechkit export`: a model as ONNX graphs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from speechkit.errors import InputError
from speechkit.startup import starting


class Precision(StrEnum):
    """Of the graphs."""

    fp32 = "fp32"
    int8 = "int8"
    fp16 = "fp16"


class Layout(StrEnum):
    """Of the export."""

    speechkit = "speechkit"
    nemo = "nemo"


def export(
    model: Annotated[
        str | None, typer.Argument(help="Release folder, file of others or hub id; else the default.")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder of the export.")] = ...,  # type: ignore[assignment]
    precision: Annotated[list[Precision], typer.Option(help="Several give a folder each.")] = [Precision.fp32],  # noqa: B006
    latency_ms: Annotated[list[float] | None, typer.Option(help="Look-aheads of a recogniser; else all.")] = None,
    features: Annotated[
        bool, typer.Option("--features", help="A recogniser's graphs take log-mel features, not samples.")
    ] = False,
    layout: Annotated[Layout, typer.Option(help="nemo: for sherpa-onnx, a folder a look-ahead.")] = Layout.speechkit,
    check: Annotated[
        list[str] | None, typer.Option(help="Folder or manifest on which the export is compared with the model.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Its first utterances alone.")] = None,
) -> None:
    """Write a recogniser or a codec as ONNX graphs, and check them.

    Chunk by chunk the graphs must give what the model gives. With --check a recogniser must make no more word errors,
    in eight bits at most 0.5 % more, and a codec's sound be no further from the recordings. Where a check fails nothing
    is written.
    """
    with starting():
        from speechkit import hub
        from speechkit.commands.loading import recogniser
        from speechkit.data.module import SpeechDataModule
        from speechkit.export import run
        from speechkit.onnx.release import export_nemo
    if layout is Layout.nemo:
        transcriber = recogniser(model)
        if check or features:
            raise InputError("--layout nemo takes features always, and has no recordings to be checked on")
        contexts = None if latency_ms is None else [transcriber.context(ms) for ms in latency_ms]
        for name, place in export_nemo(transcriber, Path(output), [item.value for item in precision], contexts).items():
            print(f"{name}: {place}")
        return
    found = hub.load(model)
    data = SpeechDataModule(train=[], valid=[], test=check or [], rate=found.rate)
    run(found, Path(output), [item.value for item in precision], latency_ms, features, data, limit)
