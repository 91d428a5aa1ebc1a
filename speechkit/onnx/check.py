"""Whether an export computes what its model computes: chained chunks, heads, and word errors on recordings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speechkit.asr.conformer import Context
from speechkit.asr.decoding.search import no_decoder
from speechkit.asr.evaluation import score
from speechkit.asr.transcriber import Transcriber
from speechkit.streaming.state import Chunk, Streaming

CHUNKS, ROWS = 20, 3
TOLERANCE = 1e-4  # single precision, on encoder steps and logits
WORSE = 0.5  # percent of the words by which eight bits may be worse


@dataclass(frozen=True)
class Parity:
    """Largest differences between a model and its export, and the largest number that was compared."""

    context: Context | None  # None for a head
    what: str
    difference: float
    size: float


@torch.inference_mode()
def parity(transcriber: Transcriber, exported: Transcriber, chunks: int = CHUNKS) -> list[Parity]:
    """Streams noise through both, rows in different phases, then steps of the model through both's heads."""
    torch.manual_seed(0)
    found, steps = [], torch.zeros(0)
    for context in exported.model.contexts:
        ours, theirs = transcriber.model.streaming(context), exported.model.streaming(context)
        pairs = _chained(ours, theirs, chunks)
        steps = torch.cat([ours for ours, _ in pairs])
        found.append(compared(context, "encoder", pairs))
    steps = steps[: len(steps) // 4 * 4].view(4, -1, steps.shape[-1])
    return found + [compared(None, name, _head(transcriber.model, exported.model, name, steps))
                    for name in exported.model.decoders]  # fmt: skip


def compared(context: Context | None, what: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> Parity:
    """The largest difference of pairs of a model's and an export's outputs."""
    apart = torch.cat([(a - b).abs().flatten() for a, b in pairs])
    return Parity(context, what, float(apart.max()), max(float(a.abs().max()) for a, _ in pairs if a.numel()))


def _chained(ours: Streaming[Any], theirs: Streaming[Any], chunks: int) -> list[tuple[Tensor, Tensor]]:
    """What `chunks` calls give: a row that is always full, one that brings and rests at random, and one that ends."""
    states = [ours.init_state(ROWS), theirs.init_state(ROWS)]
    pairs = []
    for call in range(chunks):
        lengths = torch.tensor([ours.chunk, int(torch.randint(ours.chunk + 1, ())), ours.chunk * (call < chunks // 2)])
        lengths = lengths.clamp(max=ours.first) if call == 0 else lengths
        values = 0.1 * torch.randn(ROWS, ours.chunk, 1)
        x = Chunk(values, lengths, torch.tensor([False, False, call >= chunks // 2]))
        (a, states[0]), (b, states[1]) = ours.step(x, states[0]), theirs.step(x, states[1])
        if not (torch.equal(a.lengths, b.lengths) and torch.equal(a.last, b.last)):
            return [(torch.ones(1), torch.full((1,), torch.inf))]
        pairs += [(a.values[row, :count], b.values[row, :count]) for row, count in enumerate(a.lengths.tolist())]
    return pairs


def _head(ours: Any, theirs: Any, name: str, steps: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Log-probabilities of both models' heads; the transducer's after each of some tokens."""
    if name == "ctc":
        return [(ours.ctc(steps), theirs.ctc(steps))]
    if name != "rnnt":
        raise no_decoder(ours, name)
    pairs = []
    states = [model.predictor.init_state(len(steps)) for model in (ours, theirs)]
    tokens = torch.full((len(steps),), ours.blank)
    for _ in range(5):
        logits = []
        for i, model in enumerate((ours, theirs)):
            out, states[i] = model.predictor.step(tokens, states[i])
            joiner = model.joiner
            logits.append(joiner.join(joiner.project_encoder(steps), joiner.project_predictor(out)[:, None]))
        pairs.append((logits[0], logits[1]))
        tokens = torch.randint(ours.blank, tokens.shape)
    return pairs


@torch.inference_mode()
def word_errors(
    transcribers: Sequence[Transcriber], split: str, waves: Sequence[Tensor], texts: Sequence[str]
) -> list[dict[tuple[str, float | None], float]]:
    """Word error rates in percent, streaming, of each decoder and look-ahead that the last of the models has."""
    contexts = transcribers[-1].model.contexts
    decoders = transcribers[-1].model.decoders
    return [
        {
            (found.decoder, found.latency_ms): 100 * found.wer
            for found in score(transcriber, split, waves, texts, ["streaming"], decoders, contexts)
        }
        for transcriber in transcribers
    ]
