"""What a decoder found: tokens with the step and the probability of each."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Hypothesis:
    """Tokens, the encoder step at which each was emitted, the model's log-probability of each, and the total score.

    A step has a fraction where the model times tokens more finely than its encoder's steps.

    The score of a search is the log-probability of the whole sequence plus what scorers added (phrases, language
    models); that of a greedy decoder is the sum over its tokens.
    """

    tokens: list[int]
    steps: list[float]
    log_probs: list[float]
    score: float

    def extended(self, emitted: Tensor) -> "Hypothesis":
        """With what a greedy decoder emitted next: (tokens, 3) of token, step and log-probability."""
        rows = emitted.tolist()
        if not rows:
            return self
        log_probs = [float(row[2]) for row in rows]
        return Hypothesis(
            self.tokens + [int(row[0]) for row in rows],
            self.steps + [row[1] for row in rows],
            self.log_probs + log_probs,
            self.score + sum(log_probs),
        )


class Prefix(NamedTuple):
    """A token sequence as its last token and the rest; sequences share what they have in common."""

    key: int  # tells sequences apart without walking them
    token: int
    step: int
    log_prob: float
    rest: "Prefix | None"

    def then(self, token: int, step: int, log_prob: float) -> "Prefix":
        """One token more."""
        return Prefix(after(self.key, token), token, step, log_prob, self)

    def hypothesis(self, score: float) -> Hypothesis:
        """The whole sequence."""
        chain, prefix = [], self
        while prefix.rest is not None:
            chain.append(prefix)
            prefix = prefix.rest
        chain.reverse()
        return Hypothesis([p.token for p in chain], [p.step for p in chain], [p.log_prob for p in chain], score)


EMPTY = Prefix(1, -1, -1, 0.0, None)


def after(key: int, token: int) -> int:
    """Key of a sequence with one token more: a polynomial hash modulo a 127-bit Mersenne prime."""
    return (key * 0x9E3779B97F4A7C15F39CC0605CEDC835 + token + 1) % ((1 << 127) - 1)
