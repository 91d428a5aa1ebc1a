"""A codebook that follows its inputs by moving averages, on any number of processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.errors import InputError

DEAD_CODE = ("fixed", "reference")
ROWS = 16_384  # inputs whose distances are held at a time


class Codebook(nn.Module):
    """Rows that are the mean of the inputs that were nearest to them (van den Oord et al. 2017, appendix A.1).

    Args:
        size: rows.
        dim: of a row.
        decay: of the averages, a step.
        epsilon: added to every count, so that no row is divided by nothing.
        kmeans: iterations on the first batch of a training from scratch; 0: rows begin as they are drawn.
        threshold: share of the rows' mean use; a row that is used less takes the place of a random input.
        dead_code: ``reference`` forgets that place at once, as the published training does.
    """

    def __init__(
        self,
        size: int,
        dim: int,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        kmeans: int = 10,
        threshold: float = 0.1,
        dead_code: str = "fixed",
    ) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise InputError(f"a codebook needs at least one row of one number, got {size} rows of {dim}")
        if kmeans < 0:
            raise ValueError(f"kmeans must be a number of iterations, got {kmeans}")
        if not 0 <= threshold <= 1 or epsilon <= 0:
            raise ValueError(f"threshold must be from 0 to 1 and epsilon over 0, got {threshold} and {epsilon}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be from 0 to under 1, got {decay}")
        if dead_code not in DEAD_CODE:
            raise ValueError(f"dead_code must be one of {', '.join(DEAD_CODE)}, got {dead_code!r}")
        self.size, self.decay, self.epsilon = size, decay, epsilon
        self.kmeans, self.threshold, self.dead_code = kmeans, threshold, dead_code
        embed = torch.empty(size, dim).uniform_(-(dim**-0.5), dim**-0.5)
        self._begun = False
        self.register_buffer("inited", torch.zeros(1))
        self.register_buffer("cluster_size", torch.full((size,), float(not kmeans)))  # what `embed_avg` is of
        self.register_buffer("embed", embed)
        self.register_buffer("embed_avg", embed.clone())
        self.inited: Tensor
        self.cluster_size: Tensor
        self.embed: Tensor
        self.embed_avg: Tensor

    @property
    def begun(self) -> bool:
        """Whether the first batch has been there; known without waiting for the device once it is so."""
        if not self._begun:
            self._begun = bool(self.inited)
        return self._begun

    def _load_from_state_dict(self, *args: Any) -> None:
        self._begun = False  # what is loaded may not have
        super()._load_from_state_dict(*args)

    def nearest(self, x: Tensor) -> Tensor:
        """(rows, dim) -> (rows,) int64, by squared Euclidean distance; memory is bounded but in graphs."""
        if not torch.compiler.is_exporting() and len(x) > ROWS:
            return torch.cat([self.nearest(part) for part in x.split(ROWS)])
        embed = self.embed.to(x)
        scores = x @ embed.t() - embed.square().sum(-1) / 2
        return scores.argmax(-1)

    @torch.no_grad()
    def begin(self, x: Tensor) -> None:
        """Takes the means of the first batch, (rows, dim), where there are `kmeans`; later ones change nothing."""
        if self.begun:
            return
        if self.kmeans:
            gathered = _gathered(x.float())
            means, counts = k_means(gathered, _drawn(gathered, self.size), self.kmeans)
            self.embed.copy_(_same(means))
            self.cluster_size.copy_(_same(counts))
            self.embed_avg.copy_(self.embed * self.cluster_size[:, None])  # published without counts: rows then shrink
        self.inited.fill_(1)

    @torch.no_grad()
    def learn(self, x: Tensor, codes: Tensor) -> None:
        """Moves the rows towards their inputs: (rows, dim) and (rows,)."""
        x = x.float()
        counts = torch.zeros_like(self.cluster_size).index_add_(0, codes, x.new_ones(len(codes)))
        sums = torch.zeros_like(self.embed).index_add_(0, codes, x)
        if _several():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        least = self.threshold * self.cluster_size.mean()
        dead = self.cluster_size < least
        waiting_costs_more = x.is_cuda and not _several()  # than drawing for nothing
        if self.dead_code == "fixed" and (waiting_costs_more or bool(dead.any())):
            found = _same(_drawn(_gathered(x), self.size))
            self.embed_avg.copy_(torch.where(dead[:, None], found * least, self.embed_avg))
            self.cluster_size.copy_(torch.where(dead, least, self.cluster_size))
        self.cluster_size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.embed_avg.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        total = self.cluster_size.sum()
        smooth = (self.cluster_size + self.epsilon) / (total + self.size * self.epsilon) * total
        self.embed.copy_(self.embed_avg / smooth[:, None])


def k_means(x: Tensor, means: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm, in bounded memory.

    Args:
        x: (rows, dim).
        means: (size, dim) to begin with.
        iterations: how many.

    Returns:
        (size, dim) means, where those without inputs stay as they were, and (size,) how many inputs each has.
    """
    counts = torch.zeros(len(means), dtype=x.dtype, device=x.device)
    for _ in range(iterations):
        nearest = torch.cat([torch.cdist(part, means).argmin(-1) for part in x.split(ROWS)])
        counts = torch.bincount(nearest, minlength=len(means)).to(x)
        sums = torch.zeros_like(means).index_add_(0, nearest, x)
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], means)
    return means, counts


def _drawn(x: Tensor, count: int) -> Tensor:
    """Random rows; each once where there are enough."""
    if len(x) >= count:
        return x[torch.randperm(len(x), device=x.device)[:count]]
    return x[torch.randint(len(x), (count,), device=x.device)]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _same(x: Tensor) -> Tensor:
    """The first process's, on all of them."""
    if _several():
        x = x.contiguous()
        dist.broadcast(x, 0)
    return x


def _gathered(x: Tensor) -> Tensor:
    """The rows of all processes, which may have different numbers of them."""
    if not _several():
        return x
    count = torch.tensor([len(x)], device=x.device)
    counts = [torch.zeros_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    most = int(torch.stack(counts).max())
    rows = [x.new_zeros(most, x.shape[1]) for _ in counts]
    dist.all_gather(rows, F.pad(x, (0, 0, 0, most - len(x))))
    return torch.cat([part[: int(n)] for part, n in zip(rows, counts, strict=True)])
