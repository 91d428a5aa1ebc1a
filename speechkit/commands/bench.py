"""`speechkit bench`: what each chunk of a stream costs, at every look-ahead of a recogniser."""

import json as json_format
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from speechkit.asr.conformer import Context
from speechkit.asr.model import Recognizer
from speechkit.asr.transcriber import Transcriber
from speechkit.commands.loading import recogniser, use_threads
from speechkit.errors import InputError
from speechkit.nn.masks import check_context
from speechkit.release import build
from speechkit.streaming.chain import Chain
from speechkit.streaming.state import Chunk, size_bytes
from speechkit.text import CharTokenizer

SIZES = {
    "14m": "streaming_conformer_small",
    "32m": "streaming_conformer",
    "114m": "streaming_conformer_large",
}
VOCAB_SIZE = 1024
WARM_UP, FEWEST_CALLS = 3, 20


@dataclass(frozen=True)
class Cost:
    """What the calls of one streaming module cost; times of a call serve the whole batch."""

    part: str  # encoder: features to encoder steps; all: samples to tokens
    context: Context
    audio_ms: float  # of each stream in a call
    calls: int
    cpu_ms: dict[str, float]  # of the process, all threads: best, p50, p95, p99
    wall_ms: dict[str, float]
    real_time_factor: float  # wall seconds per second of audio of all streams
    ratio: float  # median CPU time of a call to the CPU time of the matmul
    state_bytes: int  # of one stream


def untrained(size: str, overrides: Sequence[str] = ()) -> Recognizer:
    """A model of one of the recipes' sizes with random weights; overrides are Hydra's, ``model.encoder.layers=2``."""
    if size not in SIZES:
        raise InputError(f"--size must be one of {', '.join(SIZES)}, got {size!r}")
    words = ["recipe=librispeech_conformer", f"model={SIZES[size]}", f"vocab_size={VOCAB_SIZE}", *overrides]
    with initialize_config_module("speechkit.conf", version_base="1.3"):
        config = compose("train", words)
    model: Recognizer = build(OmegaConf.to_container(config.model, resolve=True))
    return model


def silent(size: str) -> Transcriber:
    """A model of random weights that says nothing: untrained, it would emit at random."""
    model = untrained(size)
    for head in (model.ctc, model.joiner):
        if head is not None:
            head.out.bias.data[-1] = 1e3
    return Transcriber(model, CharTokenizer([" ", "a"]))


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds of CPU (all threads of the process) and of wall time."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return 1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - wall)


def matmul_ms(repeats: int = 30) -> float:
    """Best CPU milliseconds of a 512 x 512 x 512 fp32 matmul: the machine's speed, to compare machines by."""
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    return min(timed(lambda: a @ b)[0] for _ in range(repeats))


def chunk_calls(chain: Chain, inputs: Tensor) -> Callable[[], None]:
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
def measure(part: str, transcriber: Transcriber, context: Context, seconds: float, batch: int) -> Cost:
    """Costs of a part at one context, over so many seconds of audio and `FEWEST_CALLS` at least."""
    model = transcriber.network
    encoder = model.encoder.at(context)
    chain = encoder if part == "encoder" else Chain(model.front, encoder, transcriber.greedy())
    torch.manual_seed(0)
    dim = model.front.n_mels if part == "encoder" else 1
    call = chunk_calls(chain, torch.randn(batch, chain.chunk, dim) * (1.0 if part == "encoder" else 0.1))
    audio_ms = chain.chunk * (model.step_ms / model.encoder.stride if part == "encoder" else 1000 / transcriber.rate)
    machine = matmul_ms()
    times = [timed(call) for _ in range(max(FEWEST_CALLS, round(1000 * seconds / audio_ms)))]
    cpu, wall = ([pair[i] for pair in times] for i in (0, 1))
    machine = min(machine, matmul_ms())
    return Cost(
        part, context, audio_ms, len(times), summary(cpu), summary(wall),
        sum(wall) / (audio_ms * len(times) * batch), summary(cpu)["p50"] / machine, size_bytes(chain.init_state(1)),
    )  # fmt: skip


def summary(values: Sequence[float]) -> dict[str, float]:
    """Best, median and the two high percentiles."""
    ordered = torch.tensor(values, dtype=torch.float64)
    percentiles = {f"p{p}": float(ordered.quantile(p / 100)) for p in (50, 95, 99)}
    return {"best": float(ordered.min()), **percentiles}


def table(costs: Sequence[Cost]) -> Table:
    """Costs for the terminal."""
    shown = Table("context", "chunk", "part", "CPU ms", "wall ms", "RTF", "ratio", "state kB", box=box.SIMPLE)
    for cost in costs:
        times = ("/".join(_short(part[p]) for p in ("p50", "p95", "p99")) for part in (cost.cpu_ms, cost.wall_ms))
        shown.add_row(
            f"{cost.context[0]},{cost.context[1]}", f"{cost.audio_ms:g}", cost.part, *times,
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


def parse_contexts(text: str | None, model: Recognizer) -> list[Context]:
    """``70,13 70,1`` -> contexts; without a text all that the model was trained with."""
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
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure what a chunk of audio costs on this machine: CPU and wall time, real-time factor, state per stream."""
    use_threads(threads)
    found = silent(size) if model is None else recogniser(model)
    millions = sum(p.numel() for p in found.network.parameters()) / 1e6
    costs = [
        measure(part, found, context, seconds, batch)
        for context in parse_contexts(contexts, found.network)
        for part in ("encoder", "all")
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
