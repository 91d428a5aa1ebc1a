"""Quantisers: vectors to whole numbers and back, and what training needs of them."""

from collections.abc import Sequence
from copy import deepcopy
from math import prod
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.codecs.codebook import Codebook
from speechkit.errors import InputError

MAX_CODEBOOKS, MAX_CODES = 64, 1 << 20  # that a token file can describe
SPREAD = 0.9  # of the deviation of outermost levels that tanh never quite reaches


class Quantized(NamedTuple):
    """What quantisation gives."""

    values: Tensor  # (batch, time, dim), with the gradient of the input
    codes: Tensor  # (batch, time) int64; (batch, time, layers) of a residual quantiser
    loss: Tensor  # a scalar: commitment, or how far numbers are from a good spread


class VectorQuantizer(nn.Module):
    """The nearest row of a codebook that follows what it is given (van den Oord et al. 2017, appendix A.1).

    Args:
        codebook: learned by moving averages.
        normalize: whether inputs are divided by their length first (CosyVoice's first tokenizer).
    """

    codebooks = 1

    def __init__(self, codebook: Codebook, normalize: bool = False) -> None:
        super().__init__()
        self.codebook, self.normalize = codebook, normalize

    @property
    def size(self) -> int:
        """Codes that there are."""
        return self.codebook.size

    @property
    def begun(self) -> bool:
        """Whether the codebook has had its first batch."""
        return self.codebook.begun

    def encode(self, x: Tensor) -> Tensor:
        """(batch, time, dim) -> (batch, time) int64."""
        return self._nearest(self._scaled(x))

    def decode(self, codes: Tensor) -> Tensor:
        """(batch, time) -> (batch, time, dim)."""
        return F.embedding(codes, self.codebook.embed)

    def _nearest(self, x: Tensor) -> Tensor:
        return self.codebook.nearest(x.flatten(0, 1)).view(x.shape[:2])

    def _scaled(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.normalize else x

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """(batch, time, dim), and (batch, time) bool where not all of it is valid, which then teaches nothing.

        In training the codebook moves; the loss is the mean square between inputs and their rows.
        """
        x = self._scaled(x)
        valid = x.flatten(0, 1) if mask is None else x[mask]
        if self.training:
            self.codebook.begin(valid.detach())
        codes = self._nearest(x)
        values = self.decode(codes)
        if self.training:
            self.codebook.learn(valid.detach(), codes.flatten() if mask is None else codes[mask])
        apart = (x - values.detach()).square()
        loss = apart.mean() if mask is None else apart[mask].mean()
        return Quantized(x + (values - x).detach(), codes, loss)


class ResidualQuantizer(nn.Module):
    """Quantisers of which each is given what the ones before it left (Zeghidour et al. 2021, algorithm 1).

    Args:
        codebook: that each of them has, as it is before training.
        codebooks: how many there are.
        dropout: share of a training batch's rows of which the decoder is given the first layers only, a random number
            of them, so that any number of them can be decoded (the same, section III-C).

    Raises:
        ValueError: there are fewer than two or more than 64, or `fewer` is no share.
    """

    def __init__(self, codebook: Codebook, codebooks: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        if not 2 <= codebooks <= MAX_CODEBOOKS:
            raise ValueError(f"a residual quantiser has from 2 to {MAX_CODEBOOKS} codebooks, got {codebooks}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a share from 0 to 1, got {dropout}")
        self.layers = nn.ModuleList(VectorQuantizer(deepcopy(codebook)) for _ in range(codebooks))
        self.codebooks, self.size, self.dropout = codebooks, codebook.size, dropout

    @property
    def begun(self) -> bool:
        """Whether the codebooks have had their first batch."""
        return self._quantizers[0].begun

    @property
    def _quantizers(self) -> list[VectorQuantizer]:
        return [layer for layer in self.layers if isinstance(layer, VectorQuantizer)]

    def encode(self, x: Tensor) -> Tensor:
        """(batch, time, dim) -> (batch, time, codebooks) int64."""
        codes = []
        for layer in self._quantizers:
            codes.append(layer.encode(x))
            x = x - layer.decode(codes[-1])
        return torch.stack(codes, dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """(batch, time, codebooks or fewer) -> (batch, time, dim)."""
        return sum(
            (layer.decode(part) for layer, part in zip(self._quantizers, codes.unbind(-1), strict=False)),
            start=self._quantizers[0].codebook.embed.new_zeros(()),
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """As `VectorQuantizer.forward`; the loss is the mean of the layers', and all of them learn from every row."""
        found, rest, total = [], x, torch.zeros_like(x)
        heard = self._heard(x)
        for i, layer in enumerate(self._quantizers):
            found.append(layer(rest, mask))
            values = found[-1].values.detach()
            rest = rest - values
            total = total + values * (i < heard)
        loss = torch.stack([part.loss for part in found]).mean()
        return Quantized(x + (total - x).detach(), torch.stack([part.codes for part in found], dim=-1), loss)

    def _heard(self, x: Tensor) -> Tensor:
        """(batch, 1, 1): of how many layers the sum is, for each row."""
        shape, codebooks = (x.shape[0], 1, 1), torch.full((), self.codebooks, device=x.device)
        if not (self.training and self.dropout):
            return codebooks.expand(shape)
        some = torch.rand(shape, device=x.device) < self.dropout
        return torch.where(some, torch.randint(1, self.codebooks + 1, shape, device=x.device), codebooks)


class FiniteScalarQuantizer(nn.Module):
    """Each of a few numbers rounded to a level of its own (Mentzer et al. 2023, section 3).

    The code of digits ``d_j`` is the sum of ``d_j`` times the product of the levels before ``j``: the first digit
    counts least. With odd levels the numbers are ``round(tanh(x) * bound * (levels - 1) / 2)``, as in CosyVoice 2.

    Args:
        dim: of inputs and outputs.
        levels: of each number.
        bound: a little under 1, so that no number lies on a border for ever; with even levels as much over it, or
            their outermost would not be reached.
        restore: whether there is a way back to `dim`; the published tokenizers have none.
    """

    codebooks = 1

    def __init__(self, dim: int, levels: Sequence[int], bound: float = 0.999, restore: bool = True) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"every level must be at least 2, got {list(levels)}")
        if prod(levels) > MAX_CODES:
            raise ValueError(f"levels make at most {MAX_CODES} codes, got {prod(levels)}")
        self.levels = tuple(levels)
        self.project_down = nn.Linear(dim, len(self.levels))
        self.project_up = nn.Linear(len(self.levels), dim) if restore else None
        sizes = torch.tensor(self.levels)
        place = torch.cumprod(torch.cat([torch.ones(1, dtype=torch.int64), sizes[:-1]]), 0)
        even = (sizes.remainder(2) == 0) / 2
        half = (sizes - 1) / 2 * torch.where(even > 0, 2 - bound, bound)
        # On the device already, for to bring numbers there is to wait for it.
        for name, values in (("sizes", sizes), ("place", place), ("even", even), ("reach", half)):
            self.register_buffer(name, values, persistent=False)
        self.sizes: Tensor
        self.place: Tensor
        self.even: Tensor
        self.reach: Tensor

    @property
    def size(self) -> int:
        """Codes that there are."""
        return prod(self.levels)

    def bounded(self, x: Tensor) -> Tensor:
        """(batch, time, dim) -> (batch, time, digits): what is rounded, in single precision."""
        with torch.autocast(x.device.type, enabled=False):
            h = self.project_down(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)
            half, even = self.reach.to(h), self.even.to(h)
            return torch.tanh(h + torch.atanh(even / half)) * half - even

    def encode(self, x: Tensor) -> Tensor:
        """(batch, time, dim) -> (batch, time) int64."""
        return self.code(self.bounded(x).round())

    def code(self, rounded: Tensor) -> Tensor:
        """(batch, time, digits) whole numbers around 0 -> (batch, time) int64."""
        return ((rounded.long() + self.sizes // 2) * self.place).sum(-1)

    def digits(self, codes: Tensor) -> Tensor:
        """(batch, time) -> (batch, time, digits) whole numbers around 0."""
        return codes[..., None].div(self.place, rounding_mode="floor") % self.sizes - self.sizes // 2

    def decode(self, codes: Tensor) -> Tensor:
        """(batch, time) -> (batch, time, dim).

        Raises:
            InputError: the quantiser has no way back.
        """
        if self.project_up is None:
            raise InputError("this tokenizer was published without a way back from its tokens")
        return self.project_up(self.digits(codes).to(self.project_up.weight))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """(batch, time, dim), and (batch, time) bool where not all of it is valid -> the same through whole numbers.

        The gradient passes as if nothing were rounded. The loss is of the numbers' spread, see `spread`.
        """
        if self.project_up is None:
            raise InputError("this tokenizer was published without a way back from its tokens")
        bounded = self.bounded(x)
        rounded = bounded + (bounded.round() - bounded).detach()
        valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        return Quantized(
            self.project_up(rounded.to(x)), self.code(bounded.detach().round()), self.spread(bounded, valid)
        )

    def spread(self, bounded: Tensor, valid: Tensor) -> Tensor:
        """How far each number's mean and deviation are from those of evenly used levels: squares, a mean over numbers.

        Numbers that saturate have no gradient: without this, early training leaves few codes in use, for good.
        """
        weight = valid[..., None] / valid.sum().clamp(min=1)
        scaled = (bounded + self.even.to(bounded)) / self.reach.to(bounded)
        mean = (scaled * weight).sum((0, 1))
        deviation = ((scaled - mean).square() * weight).sum((0, 1)).clamp(min=1e-8).sqrt()
        wanted = SPREAD * ((self.sizes + 1) / (3 * (self.sizes - 1))).sqrt().to(bounded)
        return (mean.square() + (deviation - wanted).square()).mean()


class Usage(nn.Module):
    """How often each code came: which share of them is used at all, and their perplexity; means over the codebooks.

    Args:
        size: codes of a codebook.
        codebooks: codebooks.
    """

    def __init__(self, size: int, codebooks: int = 1) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(codebooks, size, dtype=torch.int64), persistent=False)
        self.counts: Tensor

    def reset(self) -> None:
        """Begins anew."""
        self.counts.zero_()

    def update(self, codes: Tensor) -> None:
        """Counts codes of any shape, whose last dimension is that of the codebooks where there are several."""
        codebooks, size = self.counts.shape
        rows = codes.reshape(-1, codebooks) + size * torch.arange(codebooks, device=codes.device)
        self.counts += torch.bincount(rows.flatten(), minlength=codebooks * size).view(codebooks, size)

    def compute(self) -> tuple[float, float]:
        """The share of the codes that came, and their perplexity; over all processes."""
        counts = self.counts.clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        share = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
        perplexity = torch.special.entr(share).sum(1).exp().mean()
        return float((counts > 0).double().mean()), float(perplexity)
