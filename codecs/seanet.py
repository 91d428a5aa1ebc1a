"""SEANet's encoder with an LSTM (Tagliasacchi et al. 2020; Defossez et al. 2022), whole or chunk by chunk."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from speechkit.nn.lstm import graph_lstm
from speechkit.nn.masks import complete, valid_mask
from speechkit.nn.window import Window, WindowState, full
from speechkit.streaming.chain import Chain
from speechkit.streaming.state import Chunk


class Convolution(nn.Module):
    """A padded convolution, behind an activation or not.

    Args:
        window: where its windows lie.
        activate: whether ELU comes first.
    """

    def __init__(self, in_dim: int, out_dim: int, kernel: int, window: Window, activate: bool = False) -> None:
        super().__init__()
        self.window, self.activate = window, activate
        self.chunk, self.first = window.chunk, window.first
        self.stride, self.lookahead = window.stride, window.lookahead
        self.conv = nn.Conv1d(in_dim, out_dim, kernel, window.stride)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, dim, time) and (batch,) -> (batch, dim', ceil(time / stride)), zero after each row's end."""
        counts = self.window.counts(lengths)
        y = self.conv(self.window.whole(F.elu(x) if self.activate else x, lengths))
        return _ended(y[..., : (x.shape[-1] + self.stride - 1) // self.stride], counts), counts

    def init_state(self, batch: int) -> WindowState:
        """State of `batch` streams that have not begun."""
        return self.window.init_state(self.conv.weight, batch, self.conv.in_channels)

    def step(self, x: Chunk, state: WindowState) -> tuple[Chunk, WindowState]:
        """(batch, k * stride, dim) -> (batch, k, dim')."""
        seen, count, last, new = self.window.step(x, state)
        y = self.conv(F.elu(seen) if self.activate else seen)
        return Chunk(_ended(y, count).transpose(1, 2), count, last), new


class ResidualUnit(nn.Module):
    """``x -> W x + conv1(ELU(conv3(ELU(x))))``, half as wide inside."""

    def __init__(self, dim: int, kernel: int, window: Window, compress: int = 2) -> None:
        super().__init__()
        self.window = window
        self.chunk = self.first = self.stride = 1
        self.lookahead = window.lookahead
        self.narrow = nn.Conv1d(dim, dim // compress, kernel)
        self.widen = nn.Conv1d(dim // compress, dim, 1)
        self.shortcut = nn.Conv1d(dim, dim, 1)

    def _unit(self, own: Tensor, activated: Tensor) -> Tensor:
        """Both convolutions of one tap as the products that they are, added up in place."""
        inner = F.elu(self.narrow(activated)[..., : own.shape[-1]])
        narrow, wide = (layer.weight[..., 0].expand(own.shape[0], -1, -1) for layer in (self.widen, self.shortcut))
        assert self.widen.bias is not None
        assert self.shortcut.bias is not None
        y = torch.bmm(wide, own)
        y.baddbmm_(narrow.to(y), inner.to(y))  # autocast leaves what happens in place alone
        return y.add_((self.widen.bias + self.shortcut.bias)[:, None])

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, dim, time) and (batch,) -> the same shapes."""
        return _ended(self._unit(x, self.window.whole(F.elu(x), lengths)), lengths), lengths

    def init_state(self, batch: int) -> WindowState:
        """State of `batch` streams that have not begun."""
        return self.window.init_state(self.widen.weight, batch, self.shortcut.in_channels)

    def step(self, x: Chunk, state: WindowState) -> tuple[Chunk, WindowState]:
        """(batch, time, dim) -> (batch, time, dim)."""
        seen, count, last, new = self.window.step(x, state)
        own = seen[..., self.window.left : self.window.left + x.values.shape[1]]
        return Chunk(_ended(self._unit(own, F.elu(seen)), count).transpose(1, 2), count, last), new


def _ended(x: Tensor, lengths: Tensor) -> Tensor:
    """(batch, dim, time), zero after each row's end."""
    return x if complete(lengths, x.shape[-1]) else x * valid_mask(lengths, x.shape[-1])[:, None]


class LstmState(NamedTuple):
    """Of every layer."""

    hidden: Tensor  # (batch, layers, dim)
    cell: Tensor  # (batch, layers, dim)


class SkipLstm(nn.Module):
    """A unidirectional LSTM whose input is added to its output."""

    chunk = first = stride = 1
    lookahead = 0

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, layers, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, dim, time) and (batch,) -> the same shapes."""
        steps = x.transpose(1, 2)
        y = graph_lstm(self.lstm, steps) if torch.compiler.is_exporting() else self.lstm(steps)[0]
        return _ended((y + steps).transpose(1, 2), lengths), lengths

    def init_state(self, batch: int) -> LstmState:
        """State of `batch` streams that have not begun."""
        zeros = self._weights()[0][0].new_zeros(batch, self.lstm.num_layers, self.lstm.hidden_size)
        return LstmState(zeros, zeros.clone())

    def _weights(self) -> list[list[Tensor]]:
        found: list[list[Tensor]] = self.lstm.all_weights  # type: ignore[assignment]
        return found

    def step(self, x: Chunk, state: LstmState) -> tuple[Chunk, LstmState]:
        """(batch, time, dim) -> (batch, time, dim)."""
        if full(x):
            h, c = (part.transpose(0, 1).contiguous() for part in state)
            y, (h, c) = self.lstm(x.values, (h, c))
            return x._replace(values=y + x.values), LstmState(h.transpose(0, 1), c.transpose(0, 1))
        mask = valid_mask(x.lengths, x.values.shape[1])[..., None]
        y, hidden, cell = x.values, [], []
        for layer, weights in enumerate(self._weights()):
            y, h, c = _layer(y, mask, state.hidden[:, layer], state.cell[:, layer], weights)
            hidden.append(h)
            cell.append(c)
        new = LstmState(torch.stack(hidden, dim=1), torch.stack(cell, dim=1))
        return Chunk((y + x.values) * mask, x.lengths, x.last), new


def _layer(x: Tensor, mask: Tensor, h: Tensor, c: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """One layer over a few entries, rows that have none left standing still; written out, for graphs lack such rows."""
    w_in, w_hidden, b_in, b_hidden = weights
    driven, outputs = F.linear(x, w_in, b_in), []
    for t in range(x.shape[1]):
        gates = driven[:, t] + F.linear(h, w_hidden, b_hidden)
        i, f, g, o = gates.chunk(4, dim=-1)
        new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        here = mask[:, t]
        c, h = torch.where(here, new_c, c), torch.where(here, o.sigmoid() * new_c.tanh(), h)
        outputs.append(h)
    return torch.stack(outputs, dim=1), h, c


class SeanetEncoder(nn.Module):
    """Samples to latents, one for every product of the strides.

    Args:
        dim: of the latents.
        filters: channels before the first stride; each stride doubles them.
        strides: in the order in which they come.
        kernel: of the first and last convolution.
        residual_kernel: of the residual units.
        compress: how much narrower they are inside.
        lstm_layers: behind the strides.
        causal: whether all padding lies before the sequence (zeros); else as published, reflected at both ends.
    """

    def __init__(
        self,
        dim: int = 512,
        filters: int = 32,
        strides: Sequence[int] = (2, 4, 5, 8),
        kernel: int = 7,
        residual_kernel: int = 3,
        compress: int = 2,
        lstm_layers: int = 2,
        causal: bool = False,
    ) -> None:
        super().__init__()

        def window(kernel: int, stride: int = 1) -> Window:
            return Window(kernel, stride, causal=causal, mode="zeros" if causal else "reflect")

        width = filters
        self.first = Convolution(1, width, kernel, window(kernel))
        self.units, self.downs = nn.ModuleList(), nn.ModuleList()
        for stride in strides:
            self.units.append(ResidualUnit(width, residual_kernel, window(residual_kernel), compress))
            self.downs.append(Convolution(width, 2 * width, 2 * stride, window(2 * stride, stride), activate=True))
            width *= 2
        self.lstm = SkipLstm(width, lstm_layers)
        self.last = Convolution(width, dim, kernel, window(kernel), activate=True)
        self.dim, self.causal = dim, causal

    @property
    def hop(self) -> int:
        """Samples of a latent."""
        return self.streaming().stride

    def parts(self) -> list[Any]:
        """Everything in its order."""
        pairs = [part for pair in zip(self.units, self.downs, strict=True) for part in pair]
        return [self.first, *pairs, self.lstm, self.last]

    def streaming(self, chunks: int = 1) -> Chain:
        """Samples (batch, time, 1) to latents (batch, latents, dim), so many latents a call."""
        return Chain(*self.parts(), chunks=chunks)

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples), (batch,) -> (batch, ceil(samples / hop), dim), and how many latents each row has.

        A row's latents are those that it has alone, whatever is behind its end.
        """
        x = _ended(wave[:, None], lengths)
        for part in self.parts():
            x, lengths = part(x, lengths)
        return x.transpose(1, 2), lengths


def normalize_weights(module: nn.Module) -> None:
    """Splits the weights of all convolutions into length and direction (Salimans and Kingma 2016), for training."""
    for part in module.modules():
        if isinstance(part, nn.Conv1d | nn.Conv2d):
            parametrizations.weight_norm(part)
