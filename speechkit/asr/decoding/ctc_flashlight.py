"""CTC prefix beam search in C++ (flashlight-text) for whole utterances: wide beams, n-gram models of pieces."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechkit.asr.ctc import CtcHead
from speechkit.asr.decoding.hypothesis import Hypothesis
from speechkit.asr.decoding.lm import load_kenlm
from speechkit.asr.decoding.scoring import Scorer, extended
from speechkit.errors import InputError
from speechkit.text import Tokenizer


class FlashlightBeam:
    """Lexicon-free decoding over the tokenizer's pieces; `CtcBeam` is the search that also runs chunk by chunk.

    Args:
        head: gives log-probabilities of encoder steps.
        tokenizer: whose pieces the language model's entries are.
        lm: n-gram model of pieces, ARPA or KenLM binary, evaluated in C++.
        lm_weight: of the language model against the recogniser.
        beam: hypotheses kept after each step.
        candidates: tokens tried at each step.
        threshold: hypotheses that are so many nats behind the best are dropped.
        scorers: phrases and models of words; they run in Python, and take the place of `lm`.
    """

    def __init__(
        self,
        head: CtcHead,
        tokenizer: Tokenizer,
        lm: str | Path | None = None,
        lm_weight: float = 0.5,
        beam: int = 32,
        candidates: int = 24,
        threshold: float = 20.0,
        scorers: Sequence[Scorer[Any]] = (),
    ) -> None:
        if lm is not None and scorers:
            raise InputError(
                "give either lm or scorers (an NgramScorer with unit='piece' can be one of them), not both"
            )
        self.head, self.beam, self.candidates, self.threshold = head, beam, min(candidates, head.blank + 1), threshold
        self.scorers = tuple(scorers)
        self._weight = 1.0 if lm is None else lm_weight * float(np.log(10))
        self._lm = None if lm is None else load_kenlm(lm, tokenizer.pieces)[0]

    @torch.no_grad()
    def __call__(self, encoder: Tensor, count: int = 1) -> list[Hypothesis]:
        """(steps, encoder_dim) of a whole utterance -> its best hypotheses, best first."""
        library = _flashlight()
        options = library.LexiconFreeDecoderOptions(
            beam_size=self.beam, beam_size_token=self.candidates, beam_threshold=self.threshold, lm_weight=self._weight,
            sil_score=0.0, log_add=True, criterion_type=library.CriterionType.CTC,
        )  # fmt: skip
        lm = self._lm if self._lm is not None else _scorer_lm(library, self.scorers)
        decoder = library.LexiconFreeDecoder(options, lm, -1, self.head.blank, [])
        log_probs = np.ascontiguousarray(self.head(encoder[None])[0].float().cpu().numpy())
        found: dict[tuple[int, ...], Hypothesis] = {}
        for result in decoder.decode(log_probs.ctypes.data, *log_probs.shape):
            hypothesis = _collapsed(result.tokens[1:-1], log_probs, float(result.score))
            found.setdefault(tuple(hypothesis.tokens), hypothesis)
        return list(found.values())[:count]


def _collapsed(path: list[int], log_probs: np.ndarray, score: float) -> Hypothesis:
    """A label per step as tokens with the first step of each."""
    blank = log_probs.shape[1] - 1
    runs = [next(group) for _, group in groupby(enumerate(path), key=lambda pair: pair[1])]
    shown = [(label, step) for step, label in runs if label != blank]
    return Hypothesis(
        [label for label, _ in shown],
        [step for _, step in shown],
        [float(log_probs[step, label]) for label, step in shown],
        score,
    )


def _flashlight() -> Any:
    try:
        from flashlight.lib.text import decoder
    except ImportError as error:
        raise InputError(f"this search needs flashlight-text: pip install 'speechkit[decode]' ({error})") from error
    return decoder


def _scorer_lm(library: Any, scorers: Sequence[Scorer[Any]]) -> Any:
    """Scorers as a flashlight language model; it lives as long as one utterance, and so does its table of states."""
    if not scorers:
        return library.ZeroLM()

    class ScorerLM(library.LM):
        def __init__(self) -> None:
            super().__init__()
            self.memories: dict[Any, tuple[Any, ...]] = {}

        def start(self, start_with_nothing: bool) -> Any:
            state = library.LMState()
            self.memories[state] = tuple(scorer.start() for scorer in scorers)
            return state

        def score(self, state: Any, token: int) -> tuple[Any, float]:
            following = state.child(token)
            gain, memory = extended(scorers, 0.0, self.memories[state], token)
            self.memories[following] = memory
            return following, gain

        def finish(self, state: Any) -> tuple[Any, float]:
            memory = self.memories[state]
            return state, sum(s.finish(m) for s, m in zip(scorers, memory, strict=True))

    return ScorerLM()
