"""What all tokens at once cost beside one after another, and integrate-and-fire beside a loop.

python benchmarks/paraformer.py decoders [--device cuda] [--rounds 5]    of the published size, random weights
python benchmarks/paraformer.py fire [--rounds 3]                        forward and backward, 10, 60 and 300 s

What is compared takes turns in one process, because the speed of a shared machine changes. On the CPU the time is the
process's own on one thread, on a GPU it is wall time.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.autoregressive import Autoregressive
from benchmarks.codec import config
from speechkit.asr.cif import Cif
from speechkit.asr.paraformer import Paraformer
from speechkit.asr.sanm_decoder import Sight
from speechkit.builder import build

SECONDS, TOKENS, VOCAB, DIM = 10, 42, 8404, 512
STEP_S = 0.06


def spent(work: Callable[[], object], device: str) -> float:
    """Seconds of one call."""
    if device == "cpu":
        begin = time.process_time()
        work()
        return time.process_time() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def turns(works: dict[str, Callable[[], object]], device: str, rounds: int) -> dict[str, float]:
    """The least seconds of each, taking turns."""
    for work in works.values():
        work()
    found = [{name: spent(work, device) for name, work in works.items()} for _ in range(rounds)]
    return {name: min(round_[name] for round_ in found) for name in works}


@torch.inference_mode()
def decoders(device: str, rounds: int) -> None:
    """A table: decoder alone, and from samples to tokens."""
    torch.manual_seed(0)
    model: Paraformer = build(config("paraformer", f"+vocab_size={VOCAB}")).eval().to(device)
    other = Autoregressive(VOCAB + 1).eval().to(device)
    wave = 0.1 * torch.randn(1, SECONDS * model.rate, device=device)
    lengths = torch.tensor([wave.shape[1]], device=device)
    steps, counts = model.encode(wave, lengths)
    valid = torch.ones(1, steps.shape[1], dtype=torch.bool, device=device)
    weights = torch.full((1, steps.shape[1]), TOKENS / steps.shape[1], device=device)

    def at_once() -> Tensor:
        model.predictor(steps)
        fired = model.predictor.cif(steps, weights, counts, torch.tensor([TOKENS], device=device))
        there = torch.ones(1, TOKENS, dtype=torch.bool, device=device)
        return model.decoder(fired.embeds, Sight(there, steps, valid)).argmax(-1)

    works: dict[str, Callable[[], object]] = {
        "encoder": lambda: model.encode(wave, lengths),
        "all at once": at_once,
        "one by one, greedy": lambda: other.say(steps, TOKENS, 1),
        "one by one, beam 10": lambda: other.say(steps, TOKENS, 10),
    }
    found = turns(works, device, rounds)
    sizes = {"all at once": model.decoder, "one by one, greedy": other, "one by one, beam 10": other}
    print(f"{SECONDS} s, {steps.shape[1]} steps, {TOKENS} tokens; encoder {1000 * found['encoder']:.1f} ms, {device}")
    base = found["all at once"]
    for name, part in sizes.items():
        millions = sum(p.numel() for p in part.parameters()) / 1e6
        end = found["encoder"] + found[name]
        print(
            f"{name:20} {millions:5.1f} M  {1000 * found[name]:8.1f} ms  {found[name] / base:5.1f} x    "
            f"with encoder {1000 * end:8.1f} ms  {end / (found['encoder'] + base):4.2f} x"
        )


def loop(hidden: Tensor, weights: Tensor) -> Tensor:
    """(steps, dim), (steps,) -> (tokens, dim), step by step, as the first implementations did."""
    tokens, weight, embed = [], torch.zeros(()), torch.zeros(hidden.shape[1])
    for h, a in zip(hidden, weights, strict=True):
        if float((weight + a).detach()) >= 1:
            part = 1 - weight
            tokens.append(embed + part * h)
            weight, embed = a - part, (a - part) * h
        else:
            weight, embed = weight + a, embed + a * h
    return torch.stack(tokens)


def fire(rounds: int) -> None:
    """A table: forward and backward of one utterance."""
    cif = Cif(DIM)
    for seconds in (10, 60, 300):
        torch.manual_seed(0)
        count = round(seconds / STEP_S)
        hidden = torch.randn(1, count, DIM, requires_grad=True)
        weights = (0.5 * torch.rand(1, count)).requires_grad_()
        lengths = torch.tensor([count])
        works: dict[str, Callable[[], object]] = {
            "loop": lambda h=hidden, a=weights: loop(h[0], a[0]).sum().backward(),
            "speechkit": lambda h=hidden, a=weights, n=lengths: cif(h, a, n).embeds.sum().backward(),
        }
        found = turns(works, "cpu", rounds if seconds < 300 else 1)
        print(
            f"{seconds:4} s, {count} steps: loop {1000 * found['loop']:9.1f} ms, speechkit "
            f"{1000 * found['speechkit']:7.1f} ms, {found['loop'] / found['speechkit']:6.1f} x"
        )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["decoders", "fire"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "fire":
        fire(given.rounds)
    else:
        decoders(given.device, given.rounds)


if __name__ == "__main__":
    main()
