"""Whether graphs compute what their model computes: streams over chained chunks, and largest differences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speechkit.errors import InputError
from speechkit.streaming.state import Chunk, Streaming

CHUNKS, ROWS = 20, 3
TOLERANCE = 1e-4  # single precision, on what networks give
Draw = Callable[[int], Tensor]  # (ROWS, so many, dim) inputs


@dataclass(frozen=True)
class Parity:
    """Largest differences between a model and its export, and the largest number that was compared."""

    at: tuple[int, int] | None  # the context, where a model has several
    what: str
    difference: float
    size: float


def compared(at: tuple[int, int] | None, what: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> Parity:
    """The largest difference of pairs of a model's and an export's outputs; 0 where they are empty."""
    apart = torch.cat([(a - b).abs().flatten() for a, b in pairs])
    if not apart.numel():  # a model that hears no words in noise
        return Parity(at, what, 0.0, 0.0)
    return Parity(at, what, float(apart.max()), max(float(a.abs().max()) for a, _ in pairs if a.numel()))


def noise(count: int) -> Tensor:
    """(ROWS, count, 1) samples."""
    return 0.1 * torch.randn(ROWS, count, 1)


def chained(
    ours: Streaming[Any], theirs: Streaming[Any], chunks: int = CHUNKS, draw: Draw = noise
) -> list[tuple[Tensor, Tensor]]:
    """What `chunks` calls give: a row that is always full, one that brings and rests at random, and one that ends.

    Returns:
        Pairs (time, dim), valid outputs alone.

    Raises:
        InputError: the one gives more of them than the other.
    """
    states = [ours.init_state(ROWS), theirs.init_state(ROWS)]
    pairs = []
    for call in range(chunks):
        lengths = torch.tensor([ours.chunk, int(torch.randint(ours.chunk + 1, ())), ours.chunk * (call < chunks // 2)])
        lengths = lengths.clamp(max=ours.first) if call == 0 else lengths
        x = Chunk(draw(ours.chunk), lengths, torch.tensor([False, False, call >= chunks // 2]))
        (a, states[0]), (b, states[1]) = ours.step(x, states[0]), theirs.step(x, states[1])
        check_counts(a.lengths, b.lengths)
        check_counts(a.last, b.last)
        pairs += [(a.values[row, :count], b.values[row, :count]) for row, count in enumerate(a.lengths.tolist())]
    return pairs


def check_counts(ours: Tensor, theirs: Tensor) -> None:
    """Raises InputError where the one gives another number of outputs than the other."""
    if not torch.equal(ours, theirs):
        raise InputError("the graphs do not compute what the model does: they give another number of outputs")


def check_parity(
    precision: str, found: Sequence[Parity], say: Callable[[str], None], allowed: Callable[[Parity], float]
) -> None:
    """Says what was found, and raises InputError where a difference is more than allowed."""
    for item in found:
        at = f" {item.at[0]},{item.at[1]}" if item.at else ""
        say(f"{precision} {item.what}{at}: largest difference {item.difference:.1e} of {item.size:.1f}")
    for item in found:
        if not item.difference <= allowed(item):  # nor where it is NaN
            raise InputError(f"the graphs do not compute what the model does: they differ by {item.difference:.1e}")
