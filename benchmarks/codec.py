"""What codecs cost, of the published sizes (random weights) or those named: 10 s of audio.

python benchmarks/codec.py [MODEL ...] [--rounds 5]                   one thread, CPU time in products of 1024 x 1024
python benchmarks/codec.py [MODEL ...] --device cuda --batch 32       wall time, as a multiple of real time
python benchmarks/codec.py --write FOLDER                             writes releases of the published sizes, to export

Codec and matrix product take turns in one process, because the speed of a shared machine changes. MODEL is what
`speechkit codec --model` takes: a release folder or an export of one.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf

from speechkit import hub
from speechkit.builder import build

SECONDS = 10
SIZES = {"frame75": "wavtokenizer", "frame40": "wavtokenizer_40", "s3_v2": "s3"}
APIS = {"s3": "speechkit.codecs.s3.SpeechTokenizer"}


def cpu_s(work: Callable[[], object]) -> float:
    """Of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def config(model: str, *overrides: str) -> dict[str, Any]:
    """Of a published size."""
    with hydra.initialize_config_module("speechkit.conf", version_base="1.3"):
        composed = hydra.compose(overrides=[f"+model={model}", *overrides])
    resolved = OmegaConf.to_container(composed.model, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def networks(models: list[str]) -> Iterator[tuple[str, Any]]:
    """Names, and what encodes and decodes."""
    for name, size in SIZES.items() if not models else ():
        yield name, build(config(size)).eval()
    for path in models:
        loaded = hub.load(path)
        yield Path(path).name, loaded.model


def write(folder: Path) -> None:
    """Releases with random weights."""
    for name, size in SIZES.items():
        described = config(size)
        api = APIS.get(size, "speechkit.codecs.codec.Codec")
        hub.save(folder / name, {"name": name, "model": described, "api": api}, build(described), None, f"# {name}\n")


def works(model: Any, batch: int, device: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is timed."""
    wave = 0.1 * torch.randn(batch, SECONDS * model.rate, device=device)
    lengths = torch.full((batch,), wave.shape[1], device=device)
    yield "encode", lambda: model.encode(wave, lengths)
    if hasattr(model, "decode"):
        codes, counts = model.encode(wave, lengths)
        yield "decode", lambda: model.decode(codes, counts)


def on_cpu(name: str, model: Any, rounds: int) -> None:
    """A line for each direction, in matrix products."""
    square = torch.randn(1024, 1024)
    for what, work in works(model, 1, "cpu"):
        work()
        pairs = [(cpu_s(work), min(cpu_s(lambda: square @ square) for _ in range(3))) for _ in range(rounds)]
        ratios = sorted(spent / product for spent, product in pairs)
        best, product = min(spent for spent, _ in pairs), min(product for _, product in pairs)
        print(
            f"{name} {what}: {ratios[len(ratios) // 2]:.1f} products ({ratios[0]:.1f} to {ratios[-1]:.1f}), "
            f"best {best:.3f} s, product {1000 * product:.1f} ms",
            flush=True,
        )


def on_gpu(name: str, model: Any, rounds: int, batch: int, how: Callable[[], AbstractContextManager[Any]]) -> None:
    """A line for each direction, and where the time goes."""
    for what, work in works(model.cuda(), batch, "cuda"):
        with how():
            for _ in range(3):
                work()
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(rounds):
                work()
            torch.cuda.synchronize()
            spent = (time.perf_counter() - begin) / rounds
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                work()
                torch.cuda.synchronize()
        events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
        whole = sum(event.self_device_time_total for event in events)
        shares = [f"{event.key[:60]} {100 * event.self_device_time_total / whole:.0f} %" for event in events[:4]]
        print(
            f"{name} {what}: {1000 * spent:.1f} ms, {batch * SECONDS / spent:.0f} times real time; {'; '.join(shares)}"
        )


@torch.inference_mode()
def main() -> None:
    """Prints a line for each model and direction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--autocast", action="store_true", help="bfloat16 on the GPU")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if options.write:
        write(options.write)
        return
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    for name, model in networks(options.models):
        if options.device == "cpu":
            on_cpu(name, model, options.rounds)
            continue
        how = (lambda: torch.autocast("cuda", torch.bfloat16)) if options.autocast else nullcontext
        on_gpu(name, model, options.rounds, options.batch, how)


if __name__ == "__main__":
    main()
