"""`speechkit bench`: what each chunk of a stream costs, at every look-ahead of a recogniser."""

import json as json_format
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from speechkit.asr.acoustic import Context
from speechkit.asr.model import Recognizer
from speechkit.asr.transcriber import Transcriber
from speechkit.commands.loading import recogniser, use_threads
from speechkit.commands.run_times import run_times
from speechkit.commands.untrained import silent
from speechkit.errors import InputError
from speechkit.nn.masks import check_context
from speechkit.onnx.recognizer import OnnxRecognizer
from speechkit.streaming.chain import Chain
from speechkit.streaming.state import Chunk, Streaming, size_bytes

SIZES = {
    "14m": "streaming_conformer_small",
    "32m": "streaming_conformer",
    "114m": "streaming_conformer_large",
}
RECIPE = "librispeech_conformer"
WARM_UP, FEWEST_CALLS = 3, 20


@dataclass(frozen=True)
class Cost:
    """What the calls of one streaming module cost; times of a call serve the whole batch."""

    part: str  # encoder: features to encoder steps; all: samples to tokens
    runtime: str  # torch, onnx, int8
    context: Context
    audio_ms: float  # of each stream in a call
    calls: int
    cpu_ms: dict[str, float]  # of the process, all threads: best, p50, p95, p99
    wall_ms: dict[str, float]
    real_time_factor: float  # wall seconds per second of audio of all streams
    ratio: float  # median CPU time of a call to the CPU time of the matmul
    state_bytes: int  # of one stream


def of_size(size: str, overrides: Sequence[str] = ()) -> list[str]:
    """The words that make the recipe's model one of the published sizes.

    Raises:
        InputError: there is no such size.
    """
    if size not in SIZES:
        raise InputError(f"--size must be one of {', '.join(SIZES)}, got {size!r}")
    return [f"model={SIZES[size]}", *overrides]


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds of CPU (all threads of the process) and of wall time."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return 1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - wall)


def matmul_ms(repeats: int = 30) -> float:
    """Best CPU milliseconds of a 512 x 512 x 512 fp32 matmul: the machine's speed, to compare machines by."""
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    return min(timed(lambda: a @ b)[0] for _ in range(repeats))


def chunk_calls(chain: Streaming[Any], inputs: Tensor) -> Callable[[], None]:
    """A function that runs the next chunk of streams that are under way; (batch, chunk, dim) is given every time."""
    batch = len(inputs)
    no = torch.zeros(batch, dtype=torch.bool)
    full = Chunk(inputs, torch.full((batch,), chain.chunk), no)
    state = chain.step(Chunk(inputs, torch.full((batch,), chain.first), no), chain.init_state(batch))[1]

    def call() -> None:
        nonlocal state
        state = chain.step(full, state)[1]

    for _ in range(WARM_UP):
        call()
    return call


@torch.inference_mode()
def measure(
    part: str, transcribers: Mapping[str, Transcriber], context: Context, seconds: float, batch: int
) -> list[Cost]:
    """Costs of a part at one context in each run time, over so many seconds of audio and `FEWEST_CALLS` at least.

    The run times take turns, call by call: what else the machine does meets them alike.
    """
    torch.manual_seed(0)
    machine, calls, sizes, audio_ms = matmul_ms(), {}, {}, 0.0
    for name, transcriber in transcribers.items():
        chain, dim, input_ms = _part(part, transcriber, context)
        inputs = torch.randn(batch, chain.chunk, dim) * (1.0 if part == "encoder" else 0.1)
        calls[name], sizes[name] = chunk_calls(chain, inputs), size_bytes(chain.init_state(1))
        audio_ms = chain.chunk * input_ms
    count = max(FEWEST_CALLS, round(1000 * seconds / audio_ms))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(count):
        for name, call in calls.items():
            times[name].append(timed(call))
    machine = min(machine, matmul_ms())
    costs = []
    for name, pairs in times.items():
        cpu, wall = ([pair[i] for pair in pairs] for i in (0, 1))
        costs.append(Cost(
            part, name, context, audio_ms, count, summary(cpu), summary(wall),
            sum(wall) / (audio_ms * count * batch), summary(cpu)["p50"] / machine, sizes[name],
        ))  # fmt: skip
    return costs


def _part(part: str, transcriber: Transcriber, context: Context) -> tuple[Streaming[Any], int, float]:
    """A part as a streaming module, the width of its inputs and the milliseconds from one to the next."""
    model = transcriber.model
    if part == "all":
        return Chain(model.streaming(context), transcriber.greedy(context=context)), 1, 1000 / transcriber.rate
    if isinstance(model, OnnxRecognizer):
        stream = model.stream(context)
        return stream, stream.interface.dim, model.step_ms / stream.stride
    encoder = transcriber.network.encoder
    return encoder.at(context), encoder.subsampling.n_mels, model.step_ms / encoder.stride


def summary(values: Sequence[float]) -> dict[str, float]:
    """Best, median and the two high percentiles."""
    ordered = torch.tensor(values, dtype=torch.float64)
    percentiles = {f"p{p}": float(ordered.quantile(p / 100)) for p in (50, 95, 99)}
    return {"best": float(ordered.min()), **percentiles}


def table(costs: Sequence[Cost]) -> Table:
    """Costs for the terminal."""
    columns = "context", "chunk", "part", "run time", "CPU ms", "wall ms", "RTF", "ratio", "state kB"
    shown = Table(*columns, box=box.SIMPLE)
    for cost in costs:
        times = ("/".join(_short(part[p]) for p in ("p50", "p95", "p99")) for part in (cost.cpu_ms, cost.wall_ms))
        shown.add_row(
            ",".join(map(str, cost.context)), f"{cost.audio_ms:g}", cost.part, cost.runtime, *times,
            f"{cost.real_time_factor:.3f}", f"{cost.ratio:.1f}", f"{cost.state_bytes / 1000:.0f}",
        )  # fmt: skip
    return shown


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {
        "cpu": name or platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": load,
        "torch": torch.__version__, "threads": torch.get_num_threads(),
    }  # fmt: skip


def parse_contexts(text: str | None, model: Any) -> list[Context]:
    """``70,13 70,1`` -> contexts; without a text all that the model was trained with."""
    if not isinstance(model, Recognizer):
        if text is not None:
            raise InputError("--contexts are a Conformer's: of other models all that can stream are measured")
        chosen = [context for context in model.contexts if model.streams(context)]
        if not chosen:
            raise InputError("this model was trained with full context: it has no chunks to measure")
        return chosen
    if text is None:
        chosen = [context for context in model.contexts if min(context) >= 0]
    else:
        try:
            chosen = [(int(left), int(right)) for left, right in (word.split(",") for word in text.split())]
        except ValueError:
            raise InputError(f"--contexts takes pairs such as '70,13 70,1', got {text!r}") from None
        if not chosen or min(map(min, chosen)) < 0:
            raise InputError(f"--contexts takes limited pairs such as '70,13 70,1', got {text!r}")
    if not chosen or not model.encoder.causal:
        raise InputError("this model was trained with full context: it has no chunks to measure")
    try:
        for context in chosen:
            check_context(context, model.encoder.style)
    except ValueError as error:
        raise InputError(str(error)) from None
    return chosen


def bench(
    model: Annotated[str | None, typer.Option(help="Release folder, .nemo file or hub id.")] = None,
    size: Annotated[str, typer.Option(help="Without --model: random weights of 14m, 32m or 114m.")] = "32m",
    contexts: Annotated[str | None, typer.Option(help="Pairs such as '70,13 70,1'; default: all.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.", min=1)] = 1,
    seconds: Annotated[float, typer.Option(help="Audio per measurement.", min=0, max=86400)] = 10.0,
    batch: Annotated[int, typer.Option(help="Streams in a call.", min=1, max=4096)] = 1,
    runtimes: Annotated[str, typer.Option(help="Of torch, onnx and int8, side by side.")] = "torch",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure what a chunk of audio costs on this machine: CPU and wall time, real-time factor, state per stream."""
    use_threads(threads)
    found = silent(RECIPE, of_size(size)) if model is None else recogniser(model)
    millions = sum(p.numel() for p in found.trained.parameters()) / 1e6
    chosen = parse_contexts(contexts, found.model)
    parts = ("encoder", "all") if isinstance(found.model, Recognizer) else ("all",)
    with run_times(found, runtimes.split(), chosen) as transcribers:
        costs = [
            cost
            for context in chosen
            for part in parts
            for cost in measure(part, transcribers, context, seconds, batch)
        ]
    about = {"model": model or f"{size}, random weights", "parameters_m": round(millions, 2), "batch": batch}
    about |= machine() | {"matmul_ms": round(matmul_ms(), 3)}
    if json:
        print(json_format.dumps({**about, "costs": [asdict(cost) for cost in costs]}, indent=1))
        return
    console = Console(width=max(100, Console().width))  # a line that wraps says more than one that is cut
    console.print(", ".join(f"{key} {value}" for key, value in about.items()), highlight=False)
    console.print(table(costs))
    console.print(
        "chunk: ms of audio a call. encoder: features to encoder steps; all: samples to tokens. ms: p50/p95/p99.\n"
        "ratio: CPU time to that of a 512 x 512 x 512 fp32 matmul. RTF: wall time to the time of all streams' audio."
    )
