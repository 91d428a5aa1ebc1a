"""Depthwise-striding convolutional subsampling by 8, causal (streams) or centred."""

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.nn.linear import Linear
from speechkit.nn.masks import valid_mask
from speechkit.streaming.state import Chunk, queue_pop, queue_push


class SubsamplingState(NamedTuple):
    """Frames that wait for their group of eight, and the last input of every strided convolution."""

    pending: Tensor  # (batch, 7, n_mels)
    waiting: Tensor  # (batch,) int64 valid entries of `pending`
    frames: Tensor  # (batch,) int64 frames taken
    steps: Tensor  # (batch,) int64 steps given
    left: tuple[Tensor, ...]  # (batch, channels, 1, bands) a layer


class Subsampling(nn.Module):
    """Three 3x3 convolutions of stride 2 over time and frequency, the later two depthwise separable.

    Causal: each pads two frames (and bands) before and one after, so step ``k`` sees the frames ``8 k - 14 ... 8 k``
    and n frames give ``floor(n / 2) + 1`` at each layer. A stream's groups are therefore the frames 0; 1-8; 9-16; ...
    """

    chunk = stride = 8
    first = 1
    lookahead = 0

    def __init__(self, n_mels: int, dim: int, channels: int = 256, causal: bool = True) -> None:
        super().__init__()
        self.n_mels, self.channels = n_mels, channels
        self.padding = (2, 1) if causal else (1, 1)
        self.strided = nn.ModuleList(
            nn.Conv2d(channels if i else 1, channels, 3, stride=2, groups=channels if i else 1) for i in range(3)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(2))
        bands = n_mels
        for _ in range(3):
            bands = (bands + sum(self.padding) - 3) // 2 + 1
        self.out = Linear(channels * bands, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Keeps the signal's variance through the stack (He et al. 2015), without biases.

        The framework's defaults shrink what varies in time to an eighth of what the biases add: training then stays
        for thousands of steps where the encoder gives the same output whatever it hears.
        """
        for convolution in self.modules():
            if not isinstance(convolution, nn.Conv2d):
                continue
            rectified = convolution.groups == 1
            gain = math.sqrt(2.0) if rectified else 1.0
            nn.init.normal_(convolution.weight, std=gain / math.sqrt(convolution.weight[0].numel()))
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
        nn.init.normal_(self.out.weight, std=1 / math.sqrt(self.out.in_features))
        nn.init.zeros_(self.out.bias)

    def lengths(self, frames: Tensor) -> list[Tensor]:
        """Valid entries after each layer of utterances of so many frames; nothing comes of nothing."""
        counts = [frames]
        for _ in range(3):
            counts.append(
                torch.where(frames > 0, (counts[-1] + sum(self.padding) - 3).div(2, rounding_mode="floor") + 1, 0)
            )
        return counts

    def _layer(self, i: int, x: Tensor) -> Tensor:
        x = F.pad(x, self.padding)
        if i == 0:
            return F.relu(self._first(x))
        return F.relu(self.pointwise[i - 1](self.strided[i](x)))

    def _first(self, x: Tensor) -> Tensor:
        """The first convolution: a CPU does it, its gradient and what follows faster as a product of its windows.

        Fourteen seconds of speech, 32 channels, one thread: 11 against 16 ms for the stack, 26 against 38 in training.
        """
        convolution = cast(nn.Conv2d, self.strided[0])
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return convolution(x)
        windows = x[:, 0].unfold(1, 3, 2).unfold(2, 3, 2).flatten(3)
        return F.linear(windows, convolution.weight.flatten(1), convolution.bias).permute(0, 3, 1, 2)

    def _flatten(self, x: Tensor) -> Tensor:
        return self.out(x.transpose(1, 2).flatten(2))

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, n_mels) -> (batch, steps, dim) and the steps of each row."""
        counts = self.lengths(lengths)
        x = features[:, None] * valid_mask(lengths, features.shape[1])[:, None, :, None]
        for i in range(3):
            x = self._layer(i, F.pad(x, (0, 0, *self.padding)))
            x = x * valid_mask(counts[i + 1], x.shape[2])[:, None, :, None]
        return self._flatten(x), counts[-1]

    def init_state(self, batch: int) -> SubsamplingState:
        """State of `batch` streams that have not begun."""
        if self.padding != (2, 1):
            raise ValueError("this subsampling is not causal: it cannot stream")
        weight, bands = self.out.weight, self.n_mels
        count = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        left = []
        for i in range(3):
            left.append(weight.new_zeros(batch, self.channels if i else 1, 1, bands))
            bands = bands // 2 + 1
        pending = weight.new_zeros(batch, self.chunk - 1, self.n_mels)
        return SubsamplingState(pending, count, count.clone(), count.clone(), tuple(left))

    def step(self, x: Chunk, state: SubsamplingState) -> tuple[Chunk, SubsamplingState]:
        """(batch, 8 k, n_mels) -> (batch, k, dim); each row may bring any number of frames."""
        room = x.values.shape[1]
        queue = queue_push(state.pending, state.waiting, x)
        waiting = state.waiting + x.lengths
        # A stream begins 7 frames into its first group of 8: what lies before is padding in every layer.
        shift = torch.where(state.frames == 0, self.chunk - self.first, 0)
        whole = (waiting + shift).div(8, rounding_mode="floor") * 8 - shift
        taken = torch.where(x.last, waiting, whole).clamp(min=0).minimum(room - shift)
        frames, waiting = state.frames + taken, waiting - taken
        last = x.last & (waiting == 0)
        groups = (taken + shift + 7).div(8, rounding_mode="floor") * (taken > 0)
        steps = torch.where(last, self.lengths(frames)[-1], state.steps + groups)
        given = steps - state.steps
        y, left = self._convolve(queue_pop(queue, -shift, room), state, taken, shift, last)
        y = self._flatten(y) * valid_mask(given, y.shape[2])[..., None]
        pending = queue_pop(queue, taken, self.chunk - 1)
        return Chunk(y, given, last), SubsamplingState(pending, waiting, frames, steps, left)

    def _convolve(
        self, x: Tensor, state: SubsamplingState, taken: Tensor, shift: Tensor, last: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(batch, 8 k, n_mels) from position ``frames - shift`` on -> (batch, channels, k, bands) and left contexts."""
        position, y, left = state.frames - shift, x[:, None], []
        ends = self.lengths(state.frames + taken)
        used = taken + shift * (taken > 0)
        for i in range(3):
            here = position[:, None] + torch.arange(y.shape[2], device=x.device)
            end = torch.where(last | (i == 0), ends[i], here[:, -1] + 1)
            y = y * ((here >= 0) & (here < end[:, None]))[:, None, :, None]
            y = torch.cat([state.left[i], y], dim=2)
            index = used.div(2**i, rounding_mode="floor")[:, None, None, None]
            left.append(y.gather(2, index.expand(-1, y.shape[1], 1, y.shape[3])))
            # Windows begin one input before the chunk: the first output sits on half the chunk's second position.
            y = self._layer(i, y)
            position = (position + 1).div(2, rounding_mode="floor")
        return y, tuple(left)
