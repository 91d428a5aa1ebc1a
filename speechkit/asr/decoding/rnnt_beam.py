"""Transducer beam search by adaptive expansion, chunk by chunk, with phrases and language models."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speechkit.asr.decoding.hypothesis import EMPTY, Hypothesis, Prefix
from speechkit.asr.decoding.scoring import Scorer, extended, log_add, ranked
from speechkit.asr.joiner import Joiner
from speechkit.asr.predictor import Predictor, PredictorState
from speechkit.streaming.state import split, stack


class RnntBeamState(NamedTuple):
    """The hypotheses of one stream, best first, and the steps taken."""

    paths: "tuple[_Path, ...]"
    steps: int


class _Path(NamedTuple):
    """A token sequence with its log-probability, what the scorers added, and the predictor after its tokens."""

    prefix: Prefix
    log_prob: float
    bonus: float
    memory: tuple[Any, ...]  # the scorers' states
    out: Tensor  # (1, dim) projected output of the predictor
    state: PredictorState  # of one row

    @property
    def score(self) -> float:
        return self.log_prob + self.bonus


class RnntBeam:
    """Modified adaptive expansion search (Kim et al. 2020), one stream at a time.

    At each step the sequences grow in rounds, all of them in one call of predictor and joiner; only tokens close to
    the best symbol are tried. Sequences that meet in different rounds are added up, which takes the place of the
    paper's prefix search.

    Args:
        predictor, joiner: the transducer.
        beam: sequences kept after each step.
        expansions: tokens that a sequence may grow by at one step.
        spread: tokens tried for each sequence beyond `beam`.
        gamma: tokens that are so many nats behind the best symbol (the blank included) are not tried.
        scorers: what else counts, such as `PhraseBooster` and `NgramScorer`.
    """

    def __init__(
        self,
        predictor: Predictor,
        joiner: Joiner,
        beam: int = 4,
        expansions: int = 3,
        spread: int = 4,
        gamma: float = 2.3,
        scorers: Sequence[Scorer[Any]] = (),
    ) -> None:
        if beam < 1 or expansions < 1:
            raise ValueError(f"a beam and its expansions should be at least 1, got {beam} and {expansions}")
        self.predictor, self.joiner, self.blank = predictor, joiner, predictor.blank
        self.beam, self.expansions, self.spread, self.gamma = beam, expansions, spread, gamma
        self.scorers = tuple(scorers)

    @torch.no_grad()
    def init_state(self) -> RnntBeamState:
        """A stream that has not begun."""
        state = self.predictor.init_state(1)
        out, state = self.predictor.step(torch.full((1,), self.blank, device=state.hidden.device), state)
        memory = tuple(scorer.start() for scorer in self.scorers)
        return RnntBeamState((_Path(EMPTY, 0.0, 0.0, memory, self.joiner.project_predictor(out), state),), 0)

    @torch.no_grad()
    def hear(self, encoder: Tensor, state: RnntBeamState) -> RnntBeamState:
        """(steps, encoder_dim), any number of steps, and the state after them."""
        paths, steps = state
        for frame in self.joiner.project_encoder(encoder):
            paths = self._advance(frame, paths, steps)
            steps += 1
        return RnntBeamState(paths, steps)

    def nbest(self, state: RnntBeamState, count: int = 1, final: bool = True) -> list[Hypothesis]:
        """The best hypotheses so far; `final` where the stream is over, so that open phrases lose their bonus."""
        return ranked(self.scorers, state.paths, count, final)

    def __call__(self, encoder: Tensor, count: int = 1) -> list[Hypothesis]:
        """(steps, encoder_dim) of a whole utterance -> its best hypotheses, best first."""
        return self.nbest(self.hear(encoder, self.init_state()), count)

    def _advance(self, frame: Tensor, paths: Sequence[_Path], step: int) -> tuple[_Path, ...]:
        """One step: rounds of expansions; every sequence of every round may end the step with the blank."""
        done: dict[int, _Path] = {}
        for expansion in range(self.expansions + 1):
            outs = torch.cat([path.out for path in paths])
            log_probs = torch.log_softmax(self.joiner.join(frame, outs), -1, dtype=torch.double)
            for path, blank in zip(paths, log_probs[:, self.blank].tolist(), strict=True):
                _add(done, path._replace(log_prob=path.log_prob + blank))
            if expansion == self.expansions:
                break
            grown = self._grown(paths, log_probs, step)
            if len(done) >= self.beam:  # the blank only costs: what is behind all of these cannot come back
                worst = _best(done.values(), self.beam)[-1].score
                grown = [item for item in grown if item[1].score >= worst]
            if not grown:
                break
            paths = self._predicted(grown)
        return tuple(_best(done.values(), self.beam))

    def _grown(self, paths: Sequence[_Path], log_probs: Tensor, step: int) -> list[tuple[int, _Path]]:
        """The best sequences with one token more, each with the position of the one it came from."""
        count = min(self.beam + self.spread, self.blank)
        best, tokens = log_probs[:, : self.blank].topk(count)
        limits = (log_probs.amax(-1) - self.gamma).tolist()
        grown = []
        for i, (path, limit) in enumerate(zip(paths, limits, strict=True)):
            for log_prob, token in zip(best[i].tolist(), tokens[i].tolist(), strict=True):
                bonus, memory = extended(self.scorers, path.bonus, path.memory, token)
                if log_prob + max(0.0, bonus - path.bonus) < limit:
                    continue
                prefix = path.prefix.then(token, step, log_prob)
                grown.append((i, path._replace(
                    prefix=prefix, log_prob=path.log_prob + log_prob, bonus=bonus, memory=memory
                )))  # fmt: skip
        grown.sort(key=lambda item: -item[1].score)
        return grown[: self.beam]

    def _predicted(self, grown: Sequence[tuple[int, _Path]]) -> list[_Path]:
        """The grown sequences with the predictor moved by their last tokens."""
        paths = [path for _, path in grown]
        tokens = torch.tensor([path.prefix.token for path in paths], device=paths[0].out.device)
        out, state = self.predictor.step(tokens, stack([path.state for path in paths]))
        outs, states = self.joiner.project_predictor(out).split(1), split(state)
        return [path._replace(out=o, state=s) for path, o, s in zip(paths, outs, states, strict=True)]


def _add(done: dict[int, _Path], path: _Path) -> None:
    """Adds a sequence; where it is known the probabilities add up, and the times are those of the likelier one."""
    known = done.get(path.prefix.key)
    if known is None:
        done[path.prefix.key] = path
    else:
        likelier = path if path.log_prob > known.log_prob else known
        done[path.prefix.key] = likelier._replace(log_prob=log_add(path.log_prob, known.log_prob))


def _best(paths: Iterable[_Path], count: int) -> list[_Path]:
    return sorted(paths, key=lambda path: -path.score)[:count]
