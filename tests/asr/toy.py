"""Recognisers that say what they hear: encoder steps are the logits themselves."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.asr.ctc import CtcHead
from speechkit.asr.decoding.ctc_beam import CtcBeam
from speechkit.asr.decoding.greedy import CtcGreedy, RnntGreedy
from speechkit.asr.decoding.hypothesis import Hypothesis
from speechkit.asr.decoding.rnnt_beam import RnntBeam
from speechkit.asr.joiner import Joiner
from speechkit.asr.predictor import Predictor, PredictorState
from speechkit.text import CharTokenizer

TOKENIZER = CharTokenizer(" abcdefghijklmnopqrstuvwxyz")
VOCAB = TOKENIZER.vocab_size


def spoken(*steps: str | dict[str, float]) -> Tensor:
    """Logits (steps, vocab_size + 1) from a text, letter by letter, or from the logits of some letters of a step."""
    rows = []
    for step in steps:
        for heard in step if isinstance(step, str) else [step]:
            row = torch.zeros(VOCAB + 1)
            row[VOCAB] = 4.5
            for letter, logit in ({heard: 9.0} if isinstance(heard, str) else heard).items():
                row[VOCAB if letter == "_" else TOKENIZER.pieces.index(letter)] = logit
            rows.append(row)
    return torch.stack(rows)


def ctc() -> CtcHead:
    """Gives the logits of `spoken` back."""
    head = CtcHead(VOCAB + 1, VOCAB)
    head.out.weight.data = torch.eye(VOCAB + 1)
    head.out.bias.data.zero_()
    return head


class LastToken(Predictor):
    """Remembers the last token alone."""

    def step(self, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        """(batch,) -> one-hot (batch, vocab_size + 1), zero at the start."""
        return F.one_hot(tokens, VOCAB + 1) * (tokens != VOCAB)[:, None] * 1.0, state


def transducer() -> tuple[Predictor, Joiner]:
    """Gives the logits of `spoken` back, but for the last token, which was said already."""
    predictor, joiner = LastToken(VOCAB, 1).eval(), Joiner(VOCAB + 1, VOCAB + 1, VOCAB + 1, VOCAB).eval()
    for layer in (joiner.encoder, joiner.predictor, joiner.out):
        layer.weight.data = torch.eye(VOCAB + 1)
        layer.bias.data.zero_()
    joiner.predictor.weight.data *= -9
    return predictor, joiner


def transcribe(decoder: str, encoder: Tensor, scorers: Any = ()) -> str:
    """Text of one of the four decoders; each step gives one letter at most."""
    scorers = list(scorers)
    if decoder.endswith("beam"):
        search = CtcBeam(ctc(), scorers=scorers) if decoder == "ctc beam" else None
        search = search or RnntBeam(*transducer(), expansions=1, gamma=6.0, scorers=scorers)  # type: ignore[assignment]
        return TOKENIZER.decode(search(encoder)[0].tokens)  # type: ignore[misc]
    booster = scorers[0] if scorers else None
    greedy = CtcGreedy(ctc(), booster) if decoder == "ctc" else RnntGreedy(*transducer(), 1, booster)
    emitted = greedy(encoder[None], torch.tensor([len(encoder)]))
    found = Hypothesis([], [], [], 0.0).extended(emitted.values[0, : int(emitted.lengths[0])])
    return TOKENIZER.decode(found.tokens)
