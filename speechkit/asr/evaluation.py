"""Word error rates of a recogniser: under the masks of each context, and chunk by chunk as in use."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import jiwer
import torch
from torch import Tensor

from speechkit.asr.conformer import Context
from speechkit.asr.transcriber import Transcriber
from speechkit.streaming.chain import Chain
from speechkit.streaming.stream import run


@dataclass(frozen=True)
class Score:
    """One line of a results table."""

    split: str
    decoder: str
    mode: str  # offline or streaming
    latency_ms: float | None  # longest look-ahead, None for full context
    wer: float
    cer: float
    words: int  # in the references
    seconds: float  # of audio
    real_time_factor: float  # wall seconds per second of audio, decoding included

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def offline(
    transcriber: Transcriber, waves: Sequence[Tensor], context: Context, decoder: str, batch_seconds: float = 120.0
) -> list[list[tuple[int, int]]]:
    """(token, step) of every wave (samples,), whole utterances under the masks of a context."""
    greedy, found = transcriber.greedy(decoder), {}
    for batch in _batches(waves, batch_seconds * transcriber.rate):
        lengths = torch.tensor([len(waves[i]) for i in batch])
        wave = torch.nn.utils.rnn.pad_sequence([waves[i] for i in batch], batch_first=True)
        emitted = greedy(*transcriber.model.encode(wave, lengths.to(wave.device), context))
        for row, i in enumerate(batch):
            found[i] = _emissions(emitted.values[row, : int(emitted.lengths[row])])
    return [found[i] for i in range(len(waves))]


def streaming(
    transcriber: Transcriber, waves: Sequence[Tensor], context: Context, decoder: str, batch: int = 16
) -> list[list[tuple[int, int]]]:
    """(token, step) of every wave (samples,), chunk by chunk through explicit state."""
    order = sorted(range(len(waves)), key=lambda i: -len(waves[i]))
    chain = Chain(*transcriber.model.streaming(context).modules, transcriber.greedy(decoder))
    outputs = run(chain, [waves[i][:, None] for i in order], batch)
    found = {i: _emissions(output) for i, output in zip(order, outputs, strict=True)}
    return [found[i] for i in range(len(waves))]


def _emissions(values: Tensor) -> list[tuple[int, int]]:
    return [(int(token), int(step)) for token, step, _ in values.tolist()]


def _batches(waves: Sequence[Tensor], samples: float) -> list[list[int]]:
    """Indices in batches of like length and at most so many padded samples."""
    batches: list[list[int]] = []
    for i in sorted(range(len(waves)), key=lambda i: -len(waves[i])):
        if not batches or (len(batches[-1]) + 1) * len(waves[batches[-1][0]]) > samples:
            batches.append([])
        batches[-1].append(i)
    return batches


@torch.inference_mode()
def score(
    transcriber: Transcriber,
    split: str,
    waves: Sequence[Tensor],
    texts: Sequence[str],
    modes: Sequence[str] = ("offline", "streaming"),
    decoders: Sequence[str] | None = None,
    contexts: Sequence[Context] | None = None,
) -> list[Score]:
    """Scores of a split for every decoder, context and mode; waves (samples,) at the model's rate, texts normalised."""
    scores, model = [], transcriber.model
    seconds = sum(len(wave) for wave in waves) / transcriber.rate
    for decoder in decoders or model.decoders:
        for context in contexts or model.contexts:
            for mode in modes if transcriber.latencies_ms else ("offline",):
                begin = time.monotonic()
                found = (offline if mode == "offline" else streaming)(transcriber, waves, context, decoder)
                spent = time.monotonic() - begin
                said = [transcriber.tokenizer.decode([token for token, _ in row]) for row in found]
                scores.append(
                    Score(
                        split, decoder, mode, model.latency_ms(context) if min(context) >= 0 else None,
                        jiwer.wer(list(texts), said), jiwer.cer(list(texts), said),
                        sum(len(text.split()) for text in texts), seconds, spent / max(seconds, 1e-9),
                    )
                )  # fmt: skip
    return scores
