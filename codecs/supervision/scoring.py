"""What a tokenizer's codes are worth: errors of what is recognised from them, and how many of them are used."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import log2

import jiwer
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechkit.codecs.s3 import TokenModel
from speechkit.codecs.supervision.listener import Listener

BATCH_SECONDS = 120.0  # padded audio of a batch


@dataclass(frozen=True)
class Score:
    """Of a split, as one decoder of the listener hears its codes."""

    split: str
    decoder: str
    wer: float
    cer: float
    words: int  # in the references
    seconds: float  # of audio
    codes: int  # that the split became
    utilization: float  # share of all codes that came
    perplexity: float  # of the codes
    codes_per_second: float
    bits_per_second: float
    real_time_factor: float  # of encoding, wall seconds per second of audio

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


@torch.inference_mode()
def score(
    model: TokenModel,
    listener: Listener,
    spelled: Callable[[list[int]], str],
    split: str,
    waves: Sequence[Tensor],
    texts: Sequence[str],
) -> list[Score]:
    """Scores of a split, one for each decoder: the listener has the codes alone, as `encode` gives them.

    Args:
        model: speech to codes, in evaluation mode.
        listener: recognises.
        spelled: tokens to text.
        split: its name.
        waves: (samples,) each.
        texts: normalised.
    """
    said: dict[str, dict[int, str]] = {name: {} for name in listener.decoders}
    counts = torch.zeros(model.size, dtype=torch.int64)
    spent = 0.0
    for rows in _batches([len(wave) for wave in waves], BATCH_SECONDS * model.rate):
        lengths = torch.tensor([len(waves[row]) for row in rows], device=waves[rows[0]].device)
        begin = time.monotonic()
        codes, found = model.encode(pad_sequence([waves[row] for row in rows], batch_first=True), lengths)
        spent += time.monotonic() - begin
        for row, count in zip(codes.cpu(), found.tolist(), strict=True):
            counts += torch.bincount(row[:count], minlength=model.size)
        heard = listener(model.quantizer.decode(codes), found)
        for name, texts_of in said.items():
            texts_of |= dict(zip(rows, map(spelled, listener.decode(name, heard, found)), strict=True))
    seconds = sum(map(len, waves)) / model.rate
    share = counts.double() / counts.sum().clamp(min=1)
    rate = model.codes_per_second
    return [
        Score(
            split, name, words=sum(len(text.split()) for text in texts), seconds=seconds, codes=int(counts.sum()),
            wer=float(jiwer.wer(list(texts), heard_as := [found[row] for row in range(len(waves))])),
            cer=float(jiwer.cer(list(texts), heard_as)),
            utilization=float((counts > 0).double().mean()), perplexity=float(torch.special.entr(share).sum().exp()),
            codes_per_second=rate, bits_per_second=rate * log2(model.size), real_time_factor=spent / max(seconds, 1e-9),
        )
        for name, found in said.items()
    ]  # fmt: skip


def _batches(lengths: Sequence[int], size: float) -> Iterator[list[int]]:
    """Indices, the longest first, as many at a time as fit into `size` when padded."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        count = max(1, int(size / max(lengths[order[0]], 1)))
        yield order[:count]
        order = order[count:]
