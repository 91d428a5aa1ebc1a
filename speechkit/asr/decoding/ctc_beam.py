"""CTC prefix beam search, chunk by chunk, with phrases and language models."""

from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechkit.asr.ctc import CtcHead
from speechkit.asr.decoding.hypothesis import EMPTY, Hypothesis, Prefix, after
from speechkit.asr.decoding.scoring import Scorer, extended, log_add, ranked


class CtcBeamState(NamedTuple):
    """The hypotheses of one stream, best first, and the steps taken."""

    paths: "tuple[_Path, ...]"
    steps: int


class _Path(NamedTuple):
    """A token sequence with the log-probability of its alignments and what the scorers added."""

    prefix: Prefix
    blank: float  # alignments that end in a blank
    label: float  # alignments that end in the last token
    bonus: float
    memory: tuple[Any, ...]  # the scorers' states

    @property
    def score(self) -> float:
        return log_add(self.blank, self.label) + self.bonus


class CtcBeam:
    """Sums over alignments per token sequence (Graves and Jaitly 2014; Hannun et al. 2014), one stream at a time.

    Args:
        head: gives log-probabilities of encoder steps.
        beam: sequences kept after each step.
        candidates: new tokens tried at each step, the most probable ones.
        threshold: tokens and sequences that are so many nats behind the best are dropped.
        scorers: what else counts, such as `PhraseBooster` and `NgramScorer`.
    """

    def __init__(
        self,
        head: CtcHead,
        beam: int = 8,
        candidates: int = 24,
        threshold: float = 14.0,
        scorers: Sequence[Scorer[Any]] = (),
    ) -> None:
        if beam < 1:
            raise ValueError(f"a beam should be at least 1, got {beam}")
        self.head, self.beam, self.candidates, self.threshold = head, beam, candidates, threshold
        self.scorers = tuple(scorers)

    def init_state(self) -> CtcBeamState:
        """A stream that has not begun."""
        return CtcBeamState((_Path(EMPTY, 0.0, -inf, 0.0, tuple(s.start() for s in self.scorers)),), 0)

    @torch.no_grad()
    def hear(self, encoder: Tensor, state: CtcBeamState) -> CtcBeamState:
        """(steps, encoder_dim), any number of steps, and the state after them."""
        paths, steps = state
        for log_probs in self.head(encoder[None])[0].double().cpu().numpy():
            paths = self._advance(log_probs, paths, steps)
            steps += 1
        return CtcBeamState(paths, steps)

    def nbest(self, state: CtcBeamState, count: int = 1, final: bool = True) -> list[Hypothesis]:
        """The best hypotheses so far; `final` where the stream is over, so that open phrases lose their bonus."""
        return ranked(self.scorers, state.paths, count, final)

    def __call__(self, encoder: Tensor, count: int = 1) -> list[Hypothesis]:
        """(steps, encoder_dim) of a whole utterance -> its best hypotheses, best first."""
        return self.nbest(self.hear(encoder, self.init_state()), count)

    def _advance(self, log_probs: np.ndarray, paths: tuple[_Path, ...], step: int) -> tuple[_Path, ...]:
        """One step: every sequence stays (blank or repeat) or grows by a token; equal sequences are added up."""
        blank = len(log_probs) - 1
        found: dict[int, _Path] = {}
        for path in paths:
            label = path.label + float(log_probs[path.prefix.token]) if path.prefix.rest is not None else -inf
            stay = log_add(path.blank, path.label) + float(log_probs[blank])
            found[path.prefix.key] = path._replace(blank=stay, label=label)
        for token in self._tokens(log_probs, blank):
            log_prob = float(log_probs[token])
            for path in paths:
                again = token == path.prefix.token
                gain = (path.blank if again else log_add(path.blank, path.label)) + log_prob
                if gain > -inf:
                    self._grow(found, path, token, step, log_prob, gain)
        best = sorted(found.values(), key=lambda path: -path.score)[: self.beam]
        limit = best[0].score - self.threshold
        return tuple(path for path in best if path.score >= limit)

    def _grow(self, found: dict[int, _Path], path: _Path, token: int, step: int, log_prob: float, gain: float) -> None:
        key = after(path.prefix.key, token)
        known = found.get(key)
        if known is None:
            bonus, memory = extended(self.scorers, path.bonus, path.memory, token)
            found[key] = _Path(path.prefix.then(token, step, log_prob), -inf, gain, bonus, memory)
            return
        prefix = known.prefix
        if gain > log_add(known.blank, known.label):  # what is emitted here outweighs what was emitted before
            prefix = path.prefix.then(token, step, log_prob)
        found[key] = known._replace(prefix=prefix, label=log_add(known.label, gain))

    def _tokens(self, log_probs: np.ndarray, blank: int) -> list[int]:
        """The tokens worth trying."""
        count = min(self.candidates, blank)
        best = np.argpartition(-log_probs[:blank], count - 1)[:count]
        return [int(i) for i in best[log_probs[best] >= log_probs.max() - self.threshold]]
