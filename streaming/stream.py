"""The host side of streams: pieces of any size in, whatever is ready out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from speechkit.errors import InputError
from speechkit.streaming.state import Chunk, Streaming, put, select


class Stream:
    """One stream of a module: buffers pieces of any size to the module's grid."""

    def __init__(self, module: Streaming[Any], state: Any = None) -> None:
        self.module = module
        self.state = module.init_state(1) if state is None else state
        self._wanted = module.first if state is None else module.chunk
        self._buffer: Tensor | None = None
        self._ended = False

    def push(self, values: Tensor) -> list[Tensor]:
        """(time, dim) inputs -> what became ready, (time', dim') for each call that was made.

        Raises:
            InputError: the inputs have another shape, or the stream has ended.
        """
        if self._ended:
            raise InputError("the stream has ended: begin another one")
        if values.dim() != 2:
            raise InputError(f"a stream takes (time, dim), got {tuple(values.shape)}")
        self._buffer = values if self._buffer is None else torch.cat([self._buffer, values])
        outputs = []
        while len(self._buffer) >= self._wanted:
            outputs.append(self._step(self._buffer[: self._wanted], last=False)[0])
            self._buffer, self._wanted = self._buffer[self._wanted :], self.module.chunk
        return outputs

    def flush(self) -> list[Tensor]:
        """Ends the stream: what was held back. A stream that was given nothing gives nothing."""
        outputs: list[Tensor] = []
        done, self._ended = self._ended or self._buffer is None, True
        while not done and self._buffer is not None:
            output, done = self._step(self._buffer, last=True)
            outputs.append(output)
            self._buffer = self._buffer[:0]
        return outputs

    def _step(self, piece: Tensor, last: bool) -> tuple[Tensor, bool]:
        values = piece.new_zeros(1, self.module.chunk, piece.shape[1])
        values[0, : len(piece)] = piece
        lengths = torch.tensor([len(piece)], device=piece.device)
        y, self.state = self.module.step(Chunk(values, lengths, torch.tensor([last], device=piece.device)), self.state)
        return y.values[0, : int(y.lengths[0])], bool(y.last[0])


def run(module: Streaming[Any], sequences: Sequence[Tensor], batch: int = 8, chunks: int = 1) -> list[Tensor]:
    """Streams whole sequences (time, dim) through `batch` rows that are refilled as they end: (time', dim') each.

    With `chunks`, a call takes so many times the module's chunk, if the module can.
    """
    room = chunks * module.chunk
    first = module.first + room - module.chunk
    waiting = list(range(len(sequences)))[::-1]
    outputs: list[list[Tensor]] = [[] for _ in sequences]
    rows = [waiting.pop() for _ in range(min(batch, len(sequences)))]
    taken = dict.fromkeys(range(len(sequences)), 0)
    state = module.init_state(len(rows)) if rows else None
    while rows:
        x = _next_chunk([sequences[i] for i in rows], [taken[i] for i in rows], first, room)
        for i, count in zip(rows, x.lengths.tolist(), strict=True):
            taken[i] += count
        y, state = module.step(x, state)
        kept: list[int] = []
        for row, (i, count, done) in enumerate(zip(rows, y.lengths.tolist(), y.last.tolist(), strict=True)):
            outputs[i].append(y.values[row, :count])
            if done and waiting:
                rows[row] = waiting.pop()
                state = put(state, [row], module.init_state(1))
            elif done:
                continue
            kept.append(row)
        if len(kept) < len(rows):
            rows, state = [rows[row] for row in kept], select(state, kept)
    return [torch.cat(pieces) for pieces in outputs]


def _next_chunk(sequences: list[Tensor], taken: list[int], first: int, room: int) -> Chunk:
    """The next inputs of every row: `first` of a stream that begins, then as many as there is room for."""
    values = sequences[0].new_zeros(len(sequences), room, sequences[0].shape[1])
    lengths, last = [], []
    for row, (sequence, start) in enumerate(zip(sequences, taken, strict=True)):
        piece = sequence[start : start + (room if start else first)]
        values[row, : len(piece)] = piece
        lengths.append(len(piece))
        last.append(start + len(piece) >= len(sequence))
    device = values.device
    return Chunk(values, torch.tensor(lengths, device=device), torch.tensor(last, device=device))
