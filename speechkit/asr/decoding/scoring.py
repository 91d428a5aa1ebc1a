"""What a beam search counts besides the model: the scorers' interface, and sums of log-probabilities."""

from collections.abc import Iterable, Sequence
from math import exp, inf, log1p
from typing import Any, Protocol, TypeVar

from speechkit.asr.decoding.hypothesis import Hypothesis, Prefix

StateT = TypeVar("StateT")


class Scorer(Protocol[StateT]):
    """Adds to the score of a token sequence: boosted phrases, a language model. States are immutable."""

    def start(self) -> StateT:
        """State before the first token."""
        ...

    def score(self, state: StateT, token: int) -> tuple[float, StateT]:
        """What the next token adds, in nats, and the state after it."""
        ...

    def finish(self, state: StateT) -> float:
        """What the end adds, in nats."""
        ...


class Scored(Protocol):
    """A path of a search."""

    @property
    def prefix(self) -> Prefix: ...
    @property
    def memory(self) -> tuple[Any, ...]: ...
    @property
    def score(self) -> float: ...


def extended(
    scorers: Sequence[Scorer[Any]], bonus: float, memory: tuple[Any, ...], token: int
) -> tuple[float, tuple[Any, ...]]:
    """What scorers say of one token more: the total bonus and their states."""
    states = []
    for scorer, state in zip(scorers, memory, strict=True):
        gain, following = scorer.score(state, token)
        bonus += gain
        states.append(following)
    return bonus, tuple(states)


def ranked(scorers: Sequence[Scorer[Any]], paths: Iterable[Scored], count: int, final: bool) -> list[Hypothesis]:
    """The best paths as hypotheses; `final` where the stream is over and the scorers add what the end adds."""
    found = []
    for path in paths:
        end = sum(s.finish(m) for s, m in zip(scorers, path.memory, strict=True)) if final else 0.0
        found.append((path.score + end, path.prefix))
    found.sort(key=lambda pair: -pair[0])
    return [prefix.hypothesis(score) for score, prefix in found[:count]]


def log_add(a: float, b: float) -> float:
    """``log(exp(a) + exp(b))``."""
    if a < b:
        a, b = b, a
    return a if b == -inf else a + log1p(exp(b - a))
