"""Whether a recogniser's export computes what its model does: chained chunks, heads, and word errors on recordings."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from speechkit.asr.decoding.search import no_decoder
from speechkit.asr.evaluation import score
from speechkit.asr.transcriber import Transcriber
from speechkit.onnx.parity import CHUNKS, TOLERANCE, Parity, chained, compared

__all__ = ["TOLERANCE", "WORSE", "Parity", "compared", "parity", "word_errors"]

WORSE = 0.5  # percent of the words by which eight bits may be worse


@torch.inference_mode()
def parity(transcriber: Transcriber, exported: Transcriber, chunks: int = CHUNKS) -> list[Parity]:
    """Streams noise through both, rows in different phases, then steps of the model through both's heads."""
    torch.manual_seed(0)
    found, steps = [], torch.zeros(0)
    for context in exported.model.contexts:
        ours, theirs = transcriber.model.streaming(context), exported.model.streaming(context)
        pairs = chained(ours, theirs, chunks)
        steps = torch.cat([ours for ours, _ in pairs])
        found.append(compared(context, "encoder", pairs))
    steps = steps[: len(steps) // 4 * 4].view(4, -1, steps.shape[-1])
    return found + [compared(None, name, _head(transcriber.model, exported.model, name, steps))
                    for name in exported.model.decoders]  # fmt: skip


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
