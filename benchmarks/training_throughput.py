"""Training throughput on synthetic batches: audio hours per hour, FLOP/s, where a step's time goes, peak memory."""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from speechkit.asr import transducer
from speechkit.asr.model import Recognizer
from speechkit.commands.bench import RECIPE, SIZES, of_size
from speechkit.commands.untrained import VOCAB_SIZE, untrained
from speechkit.nn.specaugment import SpecAugment

STAGES = ("front end", "encoder", "loss", "backward", "optimizer")
FASTEMIT, CTC_WEIGHT, CLIP = 0.005, 0.3, 1.0  # as in the recipes


class Clock:
    """Marks on the device's own time line: CUDA events, or the wall clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        """One stage ends, the next begins."""
        self.marks.append(torch.cuda.Event(enable_timing=True) if self.cuda else time.perf_counter())
        if self.cuda:
            self.marks[-1].record()

    def milliseconds(self) -> list[float]:
        """Between the marks; waits for the device."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        if not self.cuda:
            return [1000 * (after - before) for before, after in pairs]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) for before, after in pairs]


def batches(options: argparse.Namespace, device: torch.device) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Noise in batches of several lengths: (batch, samples), lengths, (batch, tokens), token lengths."""
    torch.manual_seed(0)
    made = []
    for i in range(options.shapes):
        seconds = options.utterance_seconds * (1 - 0.15 * i / options.shapes)
        rows = max(1, int(options.batch_seconds / seconds))
        lengths = (16000 * seconds * (1 - 0.1 * torch.rand(rows))).long()
        lengths[0] = int(16000 * seconds)
        tokens = (lengths / 16000 * options.tokens_per_second).long()
        wave = 0.1 * torch.randn(rows, int(lengths.max()))
        targets = torch.randint(VOCAB_SIZE, (rows, int(tokens.max())))
        made.append((wave.to(device), lengths.to(device), targets.to(device), tokens.to(device)))
    return made


def objective(model: Recognizer, augment: SpecAugment, batch: tuple[Tensor, ...], clock: Clock) -> Tensor:
    """The recipes' loss of a batch, as `RecognitionTask` computes it."""
    wave, lengths, targets, tokens = batch
    features, frames = model.front(wave, lengths)
    features = augment(features, frames)
    clock.mark()
    encoder, steps = model.encoder(features, frames)
    clock.mark()
    losses = model.losses(encoder, steps, targets, tokens, FASTEMIT)
    loss = (1 - CTC_WEIGHT) * losses.transducer.mean() + CTC_WEIGHT * losses.ctc.mean()
    clock.mark()
    return loss


def training(model: Recognizer, options: argparse.Namespace, device: torch.device) -> Iterator[tuple[Clock, float]]:
    """Endless training steps: marks between the stages, and seconds of audio."""
    augment, parameters = SpecAugment().train(), list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    data, precision = batches(options, device), torch.autocast(device.type, torch.bfloat16, options.precision == "bf16")
    audio = [float(lengths.sum()) / 16000 for _, lengths, _, _ in data]
    while True:
        for batch, seconds in zip(data, audio, strict=True):
            clock = Clock(device)
            clock.mark()
            with precision:
                loss = objective(model, augment, batch, clock)
            loss.backward()
            clock.mark()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            optimizer.zero_grad()
            clock.mark()
            yield clock, seconds


def model_flops(model: Recognizer, options: argparse.Namespace, device: torch.device) -> float:
    """FLOPs of a training step, three times the forward pass, in the mean over the batches; without the LSTM's."""
    total, data = 0.0, batches(options, device)
    for batch in data:
        precision = torch.autocast(device.type, torch.bfloat16, options.precision == "bf16")
        with FlopCounterMode(display=False) as counter, precision:
            objective(model, SpecAugment(), batch, Clock(device))
        total += 3 * counter.get_total_flops()
    return total / len(data)


def matmul_tflops(device: torch.device) -> float:
    """What a large bf16 matmul reaches in the same run (a small fp32 one on a CPU)."""
    size, kind = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    a, times = torch.randn(size, size, device=device, dtype=kind), []
    for _ in range(12):
        clock = Clock(device)
        clock.mark()
        a @ a
        clock.mark()
        times += clock.milliseconds()
    return 2 * size**3 / min(times) / 1e9


def compiled(model: Recognizer) -> None:
    """Compiles the encoder's layers and the joint's scores for batches of any shape."""
    for layer in model.encoder.layers:
        layer.compile(dynamic=True)
    transducer._scores = torch.compile(transducer._scores, dynamic=True)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Warms up, measures, and gives all numbers."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = untrained(RECIPE, of_size(options.size, options.override)).to(device).train()
    transducer.MAX_LOGITS = options.max_logits
    flops = model_flops(model, options, device)
    if options.compile:
        compiled(model)
    steps = training(model, options, device)
    for _ in range(max(1, options.warm_up)):
        next(steps)[0].milliseconds()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    measured = [next(steps) for _ in range(options.steps)]
    times = [clock.milliseconds() for clock, _ in measured]  # waits for the device
    wall = time.perf_counter() - begin
    tflops, peak = flops * options.steps / wall / 1e12, matmul_tflops(device)
    if options.profile:
        profile(steps, device)
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu", "torch": torch.__version__, "size": options.size,
        "parameters_m": sum(p.numel() for p in model.parameters()) / 1e6, "batch_seconds": options.batch_seconds,
        "utterance_seconds": options.utterance_seconds, "precision": options.precision, "compile": options.compile,
        "step_ms": 1000 * wall / options.steps,
        "stages_ms": {s: statistics.mean(ms[i] for ms in times) for i, s in enumerate(STAGES)},
        "audio_hours_per_hour": sum(seconds for _, seconds in measured) / wall,
        "model_tflop_per_step": flops / 1e12, "model_tflop_per_s": tflops, "matmul_tflop_per_s": peak,
        "share_of_matmul": tflops / peak, "share_of_peak": tflops / options.peak_tflops,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
    }  # fmt: skip


def profile(steps: Iterator[Any], device: torch.device) -> None:
    """Prints the kernels that take longest."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        for _ in range(3):
            next(steps)
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(recorded.key_averages().table(sort_by=key, row_limit=30, max_name_column_width=60))


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="32m", choices=list(SIZES))
    parser.add_argument("--batch-seconds", type=float, default=480.0, help="padded audio per batch")
    parser.add_argument("--utterance-seconds", type=float, default=16.0, help="of the longest batch")
    parser.add_argument("--tokens-per-second", type=float, default=4.0)
    parser.add_argument("--shapes", type=int, default=4, help="batches of different length, used in turn")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=12)
    parser.add_argument("--max-logits", type=int, default=transducer.MAX_LOGITS, help="in a slice of the joint")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument("--compile", action="store_true", help="torch.compile the layers and the joint's scores")
    parser.add_argument("--profile", action="store_true", help="print the kernels of three more steps")
    parser.add_argument("--peak-tflops", type=float, default=782.0, help="what the device can do")
    parser.add_argument("--json", help="file for the numbers")
    parser.add_argument("--override", nargs="*", default=[], help="of the model, such as model.encoder.layers=2")
    return parser.parse_args(words)


def main() -> None:
    """Prints the numbers, and writes them as JSON where a file is named."""
    options = parse()
    torch.set_float32_matmul_precision("high")
    numbers = run(options)
    print(json.dumps(numbers, indent=1))
    if options.json:
        Path(options.json).write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
