"""The loader: workers decode, the main process counts what could not be read and knows where training is."""

import itertools
import logging
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from speechkit.data.buckets import DurationBuckets
from speechkit.data.collate import Batch, collate
from speechkit.data.dataset import SpeechDataset
from speechkit.data.utterance import MAX_BAD, allowed
from speechkit.errors import InputError

log = logging.getLogger(__name__)
GRACE_S = 60  # that a worker outlives a signal to end, so that the main process can save what it has


def _outlive(_worker: int) -> None:
    """Ctrl-C, and often SIGTERM, reach all processes of a run: a worker that ended first would break off the saving."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))


class SpeechLoader(DataLoader[Batch]):
    """Batches of a dataset in the order of a sampler.

    Args:
        dataset: what to load.
        buckets: which utterances form which batch.
        workers: processes that decode; they live on between epochs. 0 decodes in this process.
        max_bad: fraction of the utterances that may turn out to be unreadable (3 always may be).
        trained: batches trained so far in all epochs, or None outside training. It is asked when the first batch of an
            iteration is asked for: after a resume Lightning opens the iterator before its loops know the place.
    """

    def __init__(
        self,
        dataset: SpeechDataset,
        buckets: DurationBuckets,
        workers: int = 0,
        max_bad: float = MAX_BAD,
        trained: Callable[[], int | None] | None = None,
    ) -> None:
        super().__init__(
            dataset,  # type: ignore[arg-type]  # DataLoader's parameter is what it yields, not what the dataset holds
            batch_sampler=buckets,
            num_workers=workers,
            collate_fn=collate,
            persistent_workers=workers > 0,
            worker_init_fn=_outlive,
            pin_memory=torch.cuda.is_available(),
        )
        self.speech, self.buckets, self.max_bad, self.trained = dataset, buckets, max_bad, trained
        self.bad: dict[str, str] = {}  # id -> reason, of what could not be loaded so far

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        trained = None if self.trained is None else self.trained()
        if trained is None:
            yield from self._rest()
            return
        # Lightning's own number of the epoch jumps after some resumes; the count of batches does not.
        epoch, start = divmod(trained, len(self))
        self.buckets.set_epoch(epoch, start)
        yield from self._rest()
        self.buckets.set_epoch(epoch + 1)  # for a loop whose epochs are not ours (limit_train_batches)
        yield from itertools.islice(self._rest(), start)

    def _rest(self) -> Iterator[Batch]:
        """What is left of the sampler's epoch."""
        for batch in super().__iter__():
            self._report(batch)
            if len(batch.ids):
                yield batch
            elif self.speech.substitute:
                raise InputError(f"No utterance of several batches can be loaded; the last one: {batch.bad[-1].reason}")

    def _report(self, batch: Batch) -> None:
        for bad in batch.bad:
            if bad.id not in self.bad:
                log.warning("skipped: %s: %s", bad.id, bad.reason)
                self.bad[bad.id] = bad.reason
        count = len(self.speech.utterances)
        limit = allowed(count, self.max_bad)
        if len(self.bad) > limit:
            raise InputError(
                f"{len(self.bad)} of {count} utterances could not be loaded, more than the limit of "
                f"{limit}; the last one: {batch.bad[-1].reason}"
            )

    def state_dict(self) -> dict[str, Any]:
        """What the order of batches depends on; the place in it is the training loop's own count."""
        return {"seed": self.buckets.seed, "batches": len(self.buckets)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Say so where the order will not be that of the run that is resumed."""
        changed = [f"{key} {state[key]} -> {new}" for key, new in self.state_dict().items() if state.get(key) != new]
        if changed:
            log.warning(
                "the data differ from those of the checkpoint (%s): batches come in another order", *changed[:1]
            )
