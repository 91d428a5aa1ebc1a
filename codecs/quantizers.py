"""Quantisers: vectors to whole numbers and back, and what training needs of them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.codecs.codebook import Codebook
from speechkit.errors import InputError


class Quantized(NamedTuple):
    """What quantisation gives."""

    values: Tensor  # (batch, time, dim), with the gradient of the input
    codes: Tensor  # (batch, time) int64; (batch, time, layers) of a residual quantiser
    loss: Tensor  # commitment, a scalar; 0 where there is none


class VectorQuantizer(nn.Module):
    """The nearest row of a codebook that follows what it is given (van den Oord et al. 2017, appendix A.1).

    Args:
        codebook: learned by moving averages.
        normalize: whether inputs are divided by their length first (CosyVoice's first tokenizer).
    """

    def __init__(self, codebook: Codebook, normalize: bool = False) -> None:
        super().__init__()
        self.codebook, self.normalize = codebook, normalize

    @property
    def size(self) -> int:
        """Codes that there are."""
        return self.codebook.size

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
    """Quantisers of which each is given what the ones before it left (Zeghidour et al. 2021, algorithm 1)."""

    def __init__(self, layers: Sequence[VectorQuantizer]) -> None:
        super().__init__()
        if not layers:
            raise ValueError("a residual quantiser needs at least one layer")
        self.layers = nn.ModuleList(layers)

    @property
    def _quantizers(self) -> list[VectorQuantizer]:
        return [layer for layer in self.layers if isinstance(layer, VectorQuantizer)]

    def encode(self, x: Tensor) -> Tensor:
        """(batch, time, dim) -> (batch, time, layers) int64."""
        codes = []
        for layer in self._quantizers:
            codes.append(layer.encode(x))
            x = x - layer.decode(codes[-1])
        return torch.stack(codes, dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """(batch, time, layers or fewer) -> (batch, time, dim)."""
        return sum(
            (layer.decode(part) for layer, part in zip(self._quantizers, codes.unbind(-1), strict=False)),
            start=self._quantizers[0].codebook.embed.new_zeros(()),
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """As `VectorQuantizer.forward`; the loss is the mean of the layers'."""
        found, rest = [], x
        for layer in self._quantizers:
            found.append(layer(rest, mask))
            rest = rest - found[-1].values.detach()
        total = sum((part.values.detach() for part in found), start=torch.zeros_like(x))
        loss = torch.stack([part.loss for part in found]).mean()
        return Quantized(x + (total - x).detach(), torch.stack([part.codes for part in found], dim=-1), loss)


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

    def __init__(self, dim: int, levels: Sequence[int], bound: float = 0.999, restore: bool = True) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"every level must be at least 2, got {list(levels)}")
        self.levels, self.bound = tuple(levels), bound
        self.project_down = nn.Linear(dim, len(self.levels))
        self.project_up = nn.Linear(len(self.levels), dim) if restore else None
        sizes = torch.tensor(self.levels)
        self.register_buffer(
            "place", torch.cumprod(torch.cat([torch.ones(1, dtype=torch.int64), sizes[:-1]]), 0), False
        )
        self.place: Tensor

    @property
    def size(self) -> int:
        """Codes that there are."""
        return int(torch.tensor(self.levels).prod())

    def bounded(self, x: Tensor) -> Tensor:
        """(batch, time, dim) -> (batch, time, digits): what is rounded, in single precision."""
        with torch.autocast(x.device.type, enabled=False):
            h = self.project_down(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)
            levels = torch.tensor(self.levels, dtype=h.dtype, device=h.device)
            even = (levels.remainder(2) == 0).to(h) / 2
            bound = torch.tensor(self.bound, dtype=torch.float32).to(h)
            half = (levels - 1) / 2 * torch.where(even > 0, 2 - bound, bound)
            return torch.tanh(h + torch.atanh(even / half)) * half - even

    def encode(self, x: Tensor) -> Tensor:
        """(batch, time, dim) -> (batch, time) int64."""
        return self.code(self.bounded(x).round())

    def code(self, rounded: Tensor) -> Tensor:
        """(batch, time, digits) whole numbers around 0 -> (batch, time) int64."""
        low = torch.tensor([level // 2 for level in self.levels], device=rounded.device)
        return ((rounded.long() + low) * self.place).sum(-1)

    def digits(self, codes: Tensor) -> Tensor:
        """(batch, time) -> (batch, time, digits) whole numbers around 0."""
        levels = torch.tensor(self.levels, device=codes.device)
        return codes[..., None].div(self.place, rounding_mode="floor") % levels - levels.div(2, rounding_mode="floor")

    def decode(self, codes: Tensor) -> Tensor:
        """(batch, time) -> (batch, time, dim).

        Raises:
            InputError: the quantiser has no way back.
        """
        if self.project_up is None:
            raise InputError("this tokenizer was published without a way back from its tokens")
        return self.project_up(self.digits(codes).to(self.project_up.weight))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """(batch, time, dim) -> the same, through whole numbers; the gradient passes as if nothing were rounded."""
        if self.project_up is None:
            raise InputError("this tokenizer was published without a way back from its tokens")
        bounded = self.bounded(x)
        rounded = bounded + (bounded.round() - bounded).detach()
        return Quantized(self.project_up(rounded.to(x)), self.code(bounded.detach().round()), x.new_zeros(()))


class Usage(nn.Module):
    """How often each code came: which share of them is used at all, and their perplexity."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(size, dtype=torch.int64), persistent=False)
        self.counts: Tensor

    def reset(self) -> None:
        """Begins anew."""
        self.counts.zero_()

    def update(self, codes: Tensor) -> None:
        """Counts codes of any shape."""
        self.counts += torch.bincount(codes.flatten(), minlength=len(self.counts))

    def compute(self) -> tuple[float, float]:
        """The share of the codes that came, and their perplexity; over all processes."""
        counts = self.counts.clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        share = counts.double() / counts.sum().clamp(min=1)
        perplexity = torch.special.entr(share).sum().exp()
        return float((counts > 0).double().mean()), float(perplexity)
