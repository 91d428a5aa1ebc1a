"""Batches of utterances of similar duration, by total seconds, sharded over processes."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from speechkit.errors import InputError

BLUR = 0.05


class DurationBuckets(Sampler[list[tuple[int, int]]]):
    """A batch sampler: utterances of about one duration, as many as fill `batch_seconds` when padded.

    Utterances are put in order of their durations, each blurred anew in every epoch, and cut into batches whose sizes
    are fixed beforehand, so that even the largest blur does not overfill one. The order depends on (seed, epoch) alone.
    Every utterance comes once in an epoch, every rank has the same number of batches, and that number is the same
    in every epoch, so that a loop that was interrupted in mid-epoch can go on from its own count of batches.
    It yields lists of (epoch, index).

    Args:
        seconds: duration of each utterance.
        batch_seconds: padded audio in one batch; a longer utterance is a batch of its own.
        seed: of the order.
        shuffle: False gives the same batches in every epoch, the longest first (evaluation).
        min_seconds: shorter utterances are left out, see `left_out`.
        max_seconds: longer utterances are left out, see `left_out`.
        blur: how much a duration is blurred either way, as a fraction: more mixes more and pads more.
        rank: of this process.
        world_size: processes that share the epoch.

    Raises:
        InputError: nothing is left, or a limit or rank that makes no sense.
    """

    def __init__(
        self,
        seconds: Sequence[float],
        batch_seconds: float,
        seed: int = 0,
        shuffle: bool = True,
        min_seconds: float = 0.0,
        max_seconds: float = float("inf"),
        blur: float = BLUR,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        durations = np.asarray(seconds, np.float64)
        if batch_seconds <= 0 or not 0 <= blur < 1 or not 0 <= rank < world_size:
            raise InputError(
                f"Batches need a positive batch_seconds, a blur from 0 to below 1 and rank < world_size, "
                f"got {batch_seconds} s, {blur}, rank {rank} of {world_size}."
            )
        self.seed, self.shuffle, self.rank, self.world_size = seed, shuffle, rank, world_size
        self.epoch, self.start = 0, 0
        kept = np.flatnonzero((durations >= min_seconds) & (durations <= max_seconds))
        self.left_out = len(durations) - len(kept)
        if len(kept) == 0:
            raise InputError(
                f"None of {len(durations)} utterances is between {min_seconds:g} and {max_seconds:g} s long."
            )
        self._blur = blur if shuffle else 0.0
        self._order = kept[np.argsort(-durations[kept], kind="stable")]
        self._durations = durations[self._order]
        self._sizes = self._batch_sizes(batch_seconds)

    def __len__(self) -> int:
        """Batches of one rank in a whole epoch, wherever the next iteration starts."""
        return len(self._sizes) // self.world_size

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the order of the iterations that begin after this, and how many batches of it they leave out."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, start = self.epoch, self.start
        batches = self._batches(epoch)[self.rank :: self.world_size][start:]
        return iter([[(epoch, int(index)) for index in batch] for batch in batches])

    def _batch_sizes(self, batch_seconds: float) -> list[int]:
        """Utterances in each batch, from the longest on, the number of batches being a multiple of `world_size`."""
        # What is i-th after blurring is at most this much longer than what was i-th before.
        longest = np.maximum(self._durations, 1e-3) * (1 + self._blur) / (1 - self._blur)
        sizes: list[int] = []
        first = 0
        while first < len(longest):
            sizes.append(min(max(1, int(batch_seconds / longest[first])), len(longest) - first))
            first += sizes[-1]
        while len(sizes) % self.world_size:
            largest = int(np.argmax(sizes))
            half = sizes[largest] // 2  # 0 where there are fewer utterances than processes: some come twice then
            sizes[largest : largest + 1] = [sizes[largest] - half, max(1, half)]
        return sizes

    def _batches(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng((self.seed, epoch))
        blurred = self._durations * rng.uniform(1 - self._blur, 1 + self._blur, len(self._durations))
        order = self._order[np.argsort(-blurred, kind="stable")]
        order = np.resize(order, sum(self._sizes))
        batches = np.split(order, np.cumsum(self._sizes)[:-1])
        if self.shuffle:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches
