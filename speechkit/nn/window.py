"""Windows of a convolution over rows of any length, of whole sequences or chunk by chunk, padded at the true ends."""

from typing import NamedTuple

import torch
from torch import Tensor

from speechkit.streaming.state import Chunk

MODES = ("reflect", "zeros")


class WindowState(NamedTuple):
    """The inputs that windows to come still see."""

    left: Tensor  # (batch, span - 1, dim)
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
        mode: what is outside: ``reflect`` or ``zeros``.

    Attributes:
        left: inputs before a window's own that it sees; window ``m`` begins at ``m * stride - left``.
    """

    def __init__(
        self, kernel: int, stride: int = 1, dilation: int = 1, causal: bool = False, mode: str = "reflect"
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"padding must be one of {', '.join(MODES)}, got {mode!r}")
        self.span, self.stride, self.mode = (kernel - 1) * dilation + 1, stride, mode
        total = self.span - stride
        if total < 0:
            raise ValueError(f"a convolution that skips inputs cannot be padded: kernel {kernel}, stride {stride}")
        self.left = total if causal else total - total // 2
        self.most = max(self.left, total - self.left)  # without what the last window lacks
        self.chunk = stride
        self.lookahead = self.span - self.left - 1
        self.first = self.lookahead % stride + 1

    def counts(self, lengths: Tensor) -> Tensor:
        """Windows of sequences of so many inputs."""
        return (lengths + self.stride - 1).div(self.stride, rounding_mode="floor")

    def whole(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(batch, time, dim) -> (batch, inputs that ``ceil(time / stride)`` windows see, dim)."""
        windows = -(-x.shape[1] // self.stride)
        position = torch.arange((windows - 1) * self.stride + self.span, device=x.device) - self.left
        return _taken(x, self._inside(position.expand(x.shape[0], -1), lengths), torch.zeros_like(lengths))

    def init_state(self, like: Tensor, batch: int, dim: int) -> WindowState:
        """State of `batch` streams that have not begun, of the type and on the device of a tensor."""
        count = torch.zeros(batch, dtype=torch.int64, device=like.device)
        left = torch.zeros(batch, self.span - 1, dim, dtype=like.dtype, device=like.device)
        return WindowState(left, count, count.clone())

    def step(self, x: Chunk, state: WindowState) -> tuple[Tensor, Tensor, Tensor, WindowState]:
        """One call, with room for a multiple of `stride`.

        Returns:
            What ``room / stride`` windows see (batch, inputs, dim), how many of them are there (batch,), whether the
            stream is over (batch,), and the state.
        """
        room = x.values.shape[1] // self.stride
        buffer = torch.cat([state.left, x.values], dim=1)
        before = state.taken - (self.span - 1)  # input that the buffer begins with
        taken = state.taken + x.lengths
        enough = (taken - self.lookahead - 1).div(self.stride, rounding_mode="floor") + 1
        ready = torch.where(x.last, self.counts(taken), enough.clamp(min=0))
        count = (ready - state.given).clamp(0, room)
        span = torch.arange((room - 1) * self.stride + self.span, device=x.lengths.device) - self.left
        position = state.given[:, None] * self.stride + span
        lengths = torch.where(x.last, taken, taken + self.span)  # nobody sees the end of a sequence that goes on
        seen = _taken(buffer, self._inside(position, lengths), before)
        kept = x.lengths[:, None] + torch.arange(self.span - 1, device=x.lengths.device)
        left = buffer.gather(1, kept[..., None].expand(-1, -1, buffer.shape[2]))
        given = state.given + count
        return seen, count, x.last & (given >= ready), WindowState(left, taken, given)

    def _inside(self, position: Tensor, lengths: Tensor) -> Tensor:
        """Which input lies at a position (batch, count), -1 where it is zero."""
        length = lengths[:, None]
        if self.mode == "zeros":
            return torch.where((position >= 0) & (position < length), position, -1)
        lacking = self.counts(length) * self.stride - length
        end = torch.maximum(length, torch.clamp(self.span - self.stride - self.left + lacking, min=self.left) + 1) - 1
        mirrored = end - (end - position.abs()).abs()
        return torch.where((mirrored >= 0) & (mirrored < length), mirrored, -1)


def _taken(x: Tensor, index: Tensor, begin: Tensor) -> Tensor:
    """Entries of each row (batch, time, dim) that begins at a number of its own; zero where the index is -1."""
    at = (index - begin[:, None]).clamp(0, x.shape[1] - 1)
    found = x.gather(1, at[..., None].expand(-1, -1, x.shape[2]))
    return found * (index >= 0)[..., None]
