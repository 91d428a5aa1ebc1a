"""What every streaming module must keep: the master property and its companions, on random cuts in double precision.

A new module adds one `Case` to `test_contract.py`; nothing here knows any module.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speechkit.streaming.state import Chunk, Streaming, leaves, names, put, select, size_bytes, split, stack
from speechkit.streaming.stream import Stream, run


@dataclass(frozen=True)
class Case:
    """A module, its `forward` under the same grid, and what its input looks like."""

    module: Streaming[Any]
    forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (batch, time, dim), lengths -> outputs, lengths
    dim: int
    longest: int  # inputs of the longest sequence that is tried
    multiples: tuple[int, ...] = (1,)  # of `chunk` that a call may take
    dense: bool = True  # an output for every `stride` inputs; decoders give what they find
    tolerance: float = 1e-9  # double precision's rounding
    codes: int | None = None  # inputs are whole numbers under this one

    def draw(self, count: int) -> Tensor:
        """(count, dim) random inputs."""
        if self.codes is not None:
            return torch.randint(self.codes, (count, self.dim)).double()
        return torch.randn(count, self.dim, dtype=torch.double)

    def inputs(self, count: int) -> list[Tensor]:
        """Nothing, one input, what ends on the grid, one more, the longest, and `count` of random length; shuffled."""
        grid = self.module.first + self.module.chunk
        lengths = [0, 1, grid, grid + 1, self.longest] + [random.randint(2, self.longest) for _ in range(count)]
        random.shuffle(lengths)
        return [self.draw(n) for n in lengths]

    def expected(self, x: Tensor) -> Tensor:
        """What `forward` gives for one sequence."""
        if not len(x):
            x, lengths = x.new_zeros(1, 1, self.dim), torch.tensor([0])
        else:
            x, lengths = x[None], torch.tensor([len(x)])
        with torch.no_grad():
            y, count = self.forward(x, lengths)
        return y[0, : int(count[0])]

    def close(self, actual: Tensor, expected: Tensor) -> None:
        """Equal to the module's rounding."""
        torch.testing.assert_close(actual, expected, atol=self.tolerance, rtol=self.tolerance)


@torch.no_grad()
def any_cut_equals_the_whole(case: Case, tries: int = 5) -> None:
    """The master property: pieces of any size, none and one input at a time included."""
    for x in [*case.inputs(0), *case.inputs(tries)]:
        stream, outputs, start = Stream(case.module), [], 0
        largest = random.choice([1, 3, case.module.chunk, 4 * case.module.chunk])
        if random.random() < 0.5:
            outputs += stream.push(x[:0])
        while start < len(x):
            size = random.randint(1, largest)
            outputs += stream.push(x[start : start + size])
            start += size
        outputs += stream.flush()
        expected = case.expected(x)
        case.close(torch.cat([*outputs, expected[:0]]), expected)


@torch.no_grad()
def rows_in_any_phase_are_independent(case: Case, rows: int = 4) -> None:
    """Rows that begin, rest, bring what they like, end and are used again at different times."""
    for multiple in case.multiples:
        room = multiple * case.module.chunk
        waiting, done = case.inputs(2 * rows), 0
        streams = len(waiting)
        state = case.module.init_state(rows)
        sizes = [leaf.shape for leaf in leaves(state)]
        current: list[Tensor | None] = [None] * rows
        taken = [0] * rows
        outputs: list[list[Tensor]] = [[] for _ in range(rows)]
        shape: tuple[int, ...] | None = None
        for _ in range(10_000):
            if not waiting and all(x is None for x in current):
                break
            for row in range(rows):
                if current[row] is None and waiting and random.random() < 0.5:
                    current[row], taken[row], outputs[row] = waiting.pop(), 0, []
                    state = put(state, [row], case.module.init_state(1))
            chunk = _random_chunk(case, current, taken, room)
            y, new = case.module.step(chunk, state)
            assert [leaf.shape for leaf in leaves(new)] == sizes, "the state changed its shape"
            assert shape in (None, y.values.shape), "the output changed its room"
            shape = y.values.shape
            assert not (y.last & ~chunk.last).any(), "a row ended that was not told to"
            _idle_rows_rest(chunk, y, state, new)
            state = new
            for row in range(rows):
                x, count = current[row], int(y.lengths[row])
                assert not y.values[row, count:].any(), "what follows a row's valid outputs must be zero"
                if x is None:
                    continue
                taken[row] += int(chunk.lengths[row])
                outputs[row].append(y.values[row, :count])
                if y.last[row]:
                    case.close(torch.cat(outputs[row]), case.expected(x))
                    current[row], done = None, done + 1
        assert done == streams, "a stream did not end"


def _random_chunk(case: Case, current: list[Tensor | None], taken: list[int], room: int) -> Chunk:
    """Inputs for every row: none, a few or a full call; the last ones with or without the end's mark."""
    values = torch.zeros(len(current), room, case.dim, dtype=torch.double)
    lengths, last = torch.zeros(len(current), dtype=torch.int64), torch.zeros(len(current), dtype=torch.bool)
    for row, x in enumerate(current):
        if x is None or random.random() < 0.25:
            continue
        piece = x[taken[row] : taken[row] + random.choice([room, room, random.randint(0, room)])]
        values[row, : len(piece)] = piece
        lengths[row] = len(piece)
        last[row] = taken[row] + len(piece) == len(x) and random.random() < 0.7
    return Chunk(values, lengths, last)


def _idle_rows_rest(x: Chunk, y: Chunk, old: Any, new: Any) -> None:
    idle = (x.lengths == 0) & ~x.last
    assert not y.lengths[idle].any(), "an idle row gave something"
    for name, a, b in zip(names(old), leaves(old), leaves(new), strict=True):
        assert torch.equal(a[idle], b[idle]), f"an idle row's {name} changed"


@torch.no_grad()
def outputs_come_in_time_and_see_no_further(case: Case) -> None:
    """Nothing depends on input beyond the declared look-ahead, and nothing is held back longer than that."""
    module = case.module
    x = case.draw(case.longest)
    whole, stream, fed, given = case.expected(x), Stream(module), 0, 0
    while fed + module.chunk < len(x):
        size = module.first if fed == 0 else module.chunk
        given += sum(map(len, stream.push(x[fed : fed + size])))
        fed += size
        due = (fed - module.lookahead - 1) // module.stride + 1
        assert not case.dense or given >= min(due, len(whole)), f"{given} outputs after {fed} inputs, {due} were due"
        changed = torch.cat([x[:fed], case.draw(len(x) - fed)])
        case.close(case.expected(changed)[:given], whole[:given])


@torch.no_grad()
def streams_can_be_moved_forked_and_batched(case: Case) -> None:
    """A state is data: saved, split, stacked and selected, it goes on as if nothing had happened."""
    module = case.module
    sequences = [case.draw(case.longest) for _ in range(3)]
    for multiple in case.multiples:
        for actual, x in zip(run(module, sequences, batch=2, chunks=multiple), sequences, strict=True):
            case.close(actual, case.expected(x))
    half = case.longest // 2
    streams = [Stream(module) for _ in sequences]
    before = [stream.push(x[:half]) for stream, x in zip(streams, sequences, strict=True)]
    together = stack([stream.state for stream in streams])
    assert size_bytes(together) == size_bytes(streams[0].state)
    moved = split(select(together, [2, 0, 1]))
    for state, row in zip(moved, (2, 0, 1), strict=True):
        streams[row].state = state
    for stream, early, x in zip(streams, before, sequences, strict=True):
        case.close(torch.cat([*early, *stream.push(x[half:]), *stream.flush()]), case.expected(x))


CHECKS = (
    any_cut_equals_the_whole,
    rows_in_any_phase_are_independent,
    outputs_come_in_time_and_see_no_further,
    streams_can_be_moved_forked_and_batched,
)
