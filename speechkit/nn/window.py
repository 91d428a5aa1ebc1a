"""Windows of a convolution over rows of any length, of whole sequences or chunk by chunk, padded at the true ends."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.nn.masks import complete
from speechkit.streaming.state import Chunk

MODES = ("reflect", "zeros", "replicate")


class WindowState(NamedTuple):
    """The inputs that windows to come still see."""

    left: Tensor  # (batch, dim, span - 1)
    taken: Tensor  # (batch,) int64 inputs so far
    given: Tensor  # (batch,) int64 windows so far


class Window:
    """Where the windows of a strided convolution lie: as many as fill the sequence, ``ceil(inputs / stride)``.

    EnCodec's padding (Defossez et al. 2022, released code): ``span - stride`` in all, the smaller half of it at the
    end, and as much more there as the last window lacks. A reflected sequence that is too short for it is continued
    with zeros first.

    Args:
        kernel: taps.
        stride: inputs between windows.
        dilation: inputs between taps.
        causal: all padding lies before the sequence.
        mode: what is outside: ``reflect``, ``zeros``, or ``replicate`` for the nearest input.
        lookahead: inputs after the first of its own stride that a window sees; None: as many as the padding leaves. Not
            where they are reflected.

    Attributes:
        left: inputs before a window's own that it sees; window ``m`` begins at ``m * stride - left``.
    """

    def __init__(
        self,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        causal: bool = False,
        mode: str = "reflect",
        lookahead: int | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"padding must be one of {', '.join(MODES)}, got {mode!r}")
        self.span, self.stride, self.mode = (kernel - 1) * dilation + 1, stride, mode
        total = self.span - stride
        if total < 0:
            raise ValueError(f"a convolution that skips inputs cannot be padded: kernel {kernel}, stride {stride}")
        if lookahead is not None and (mode == "reflect" or not 0 <= lookahead < self.span):
            raise ValueError(
                f"windows that reflect nothing can see 0 to {self.span - 1} inputs ahead, got {lookahead} and {mode}"
            )
        self.left = total if causal else total - total // 2
        if lookahead is not None:
            self.left = self.span - 1 - lookahead
        self.right = total - self.left
        self.chunk = stride
        self.lookahead = self.span - self.left - 1
        self.first = self.lookahead % stride + 1

    def counts(self, lengths: Tensor) -> Tensor:
        """Windows of sequences of so many inputs."""
        return (lengths + self.stride - 1).div(self.stride, rounding_mode="floor")

    def whole(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(batch, dim, time), zero after each row's end -> (batch, dim, what the windows see, or some inputs more).

        The ``ceil(time / stride)`` windows are the first that a convolution gives.
        """
        time = x.shape[-1]
        if self.mode == "zeros" or self.span == self.stride:
            windows = (time + self.stride - 1) // self.stride
            return F.pad(x, (self.left, (windows - 1) * self.stride + self.span - self.left - time))
        if self.mode == "replicate":
            return self._replicated(F.pad(x, (0, int(not time))), lengths)
        if complete(lengths, time) and time > self.left:
            windows = (time + self.stride - 1) // self.stride
            rest = (windows - 1) * self.stride + self.span - self.left - time
            if rest < time:
                return F.pad(x, (self.left, rest), mode="reflect")
        if torch.compiler.is_exporting():  # a graph is for sequences of any length
            x = F.pad(x, (0, self.left + 1))
        elif time <= self.left:
            x = F.pad(x, (0, self.left + 1 - time))
        mirror = x[..., 1 : self.left + 1].flip(-1)
        spare = self.right + self.stride  # what may lie behind a row's end
        seen = torch.cat([mirror, x, x.new_zeros(*x.shape[:2], spare)], dim=-1)
        behind = lengths[:, None] + torch.arange(spare, device=x.device)
        index = self._inside(behind, lengths)[:, None].expand(-1, x.shape[1], -1)
        values = x.gather(-1, index.clamp(0, x.shape[-1] - 1)) * (index >= 0)
        return seen.scatter_(-1, (behind + self.left)[:, None].expand(-1, x.shape[1], -1), values)

    def _replicated(self, x: Tensor, lengths: Tensor) -> Tensor:
        windows = (x.shape[-1] + self.stride - 1) // self.stride
        seen = torch.arange((windows - 1) * self.stride + self.span, device=x.device) - self.left
        index = self._inside(seen.expand(x.shape[0], -1), lengths)
        return _gathered(x, index) * (index >= 0)[:, None]

    def init_state(self, like: Tensor, batch: int, dim: int) -> WindowState:
        """State of `batch` streams that have not begun, of the type and on the device of a tensor."""
        count = torch.zeros(batch, dtype=torch.int64, device=like.device)
        left = torch.zeros(batch, dim, self.span - 1, dtype=like.dtype, device=like.device)
        return WindowState(left, count, count.clone())

    def step(self, x: Chunk, state: WindowState) -> tuple[Tensor, Tensor, Tensor, WindowState]:
        """One call, (batch, time, dim) with room for a multiple of `stride`.

        Returns:
            What ``room / stride`` windows see (batch, dim, inputs), how many of them are there (batch,), whether the
            stream is over (batch,), and the state.
        """
        room = x.values.shape[1] // self.stride
        buffer = torch.cat([state.left, x.values.transpose(1, 2)], dim=-1)
        if self.mode == "zeros" and self.stride == 1 and not self.lookahead:
            return self._each(buffer, x, state)
        if full(x) and int(state.taken) >= self.span:
            return self._next(buffer, x, state, room)
        before = state.taken - (self.span - 1)  # input that the buffer begins with
        taken = state.taken + x.lengths
        enough = (taken - self.lookahead - 1).div(self.stride, rounding_mode="floor") + 1
        ready = torch.where(x.last, self.counts(taken), enough.clamp(min=0))
        count = (ready - state.given).clamp(0, room)
        span = torch.arange((room - 1) * self.stride + self.span, device=x.lengths.device) - self.left
        lengths = torch.where(x.last, taken, taken + self.span)  # nobody sees the end of a sequence that goes on
        index = self._inside(state.given[:, None] * self.stride + span, lengths)
        seen = _gathered(buffer, index - before[:, None]) * (index >= 0)[:, None]
        given = state.given + count
        return seen, count, x.last & (given >= ready), WindowState(self._left(buffer, x), taken, given)

    def _left(self, buffer: Tensor, x: Chunk) -> Tensor:
        """What windows to come see of a buffer."""
        return _gathered(buffer, x.lengths[:, None] + torch.arange(self.span - 1, device=x.lengths.device))

    def _each(self, buffer: Tensor, x: Chunk, state: WindowState) -> tuple[Tensor, Tensor, Tensor, WindowState]:
        """What `step` gives where every input has its window at once, and there are zeros around all of them."""
        left = buffer[..., x.values.shape[1] :] if full(x) else self._left(buffer, x)
        return buffer, x.lengths, x.last, WindowState(left, state.taken + x.lengths, state.given + x.lengths)

    def _next(
        self, buffer: Tensor, x: Chunk, state: WindowState, room: int
    ) -> tuple[Tensor, Tensor, Tensor, WindowState]:
        """What `step` gives a single stream in its middle, without looking up where everything lies."""
        taken, given = int(state.taken), int(state.given)
        begin = given * self.stride - self.left - (taken - (self.span - 1))
        seen = buffer[..., begin : begin + (room - 1) * self.stride + self.span]
        left = buffer[..., x.values.shape[1] :]
        return (
            seen,
            state.given.new_full((1,), room),
            x.last,
            WindowState(left, state.taken + x.lengths, state.given + room),
        )

    def _inside(self, position: Tensor, lengths: Tensor) -> Tensor:
        """Which input lies at a position (batch, count), -1 where it is zero."""
        length = lengths[:, None]
        if self.mode == "zeros":
            return torch.where((position >= 0) & (position < length), position, -1)
        if self.mode == "replicate":
            return torch.minimum(position.clamp(min=0), length - 1)
        lacking = self.counts(length) * self.stride - length
        end = torch.maximum(length, torch.clamp(self.right + lacking, min=self.left) + 1) - 1
        mirrored = end - (end - position.abs()).abs()
        return torch.where((mirrored >= 0) & (mirrored < length), mirrored, -1)


def full(x: Chunk) -> bool:
    """Whether a call is for one stream that fills it and goes on; never while a graph is made, nor on a GPU."""
    if torch.compiler.is_compiling() or x.values.shape[0] != 1 or x.values.is_cuda:
        return False
    return int(x.lengths) == x.values.shape[1] and not bool(x.last)


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    """(batch, dim, time) and (batch, count) -> (batch, dim, count); what lies outside is anything."""
    return x.gather(-1, index.clamp(0, x.shape[-1] - 1)[:, None].expand(-1, x.shape[1], -1))
