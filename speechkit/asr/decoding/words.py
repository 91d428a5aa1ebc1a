"""Words with times and confidences from emitted tokens."""

from dataclasses import dataclass
from math import exp, floor, inf, isnan

from speechkit.asr.decoding.hypothesis import Hypothesis
from speechkit.text import WORD_START, Tokenizer

TAIL_MS = 240.0


@dataclass(frozen=True)
class Word:
    """A word; times from the start of the stream."""

    text: str
    start_s: float
    end_s: float
    confidence: float  # geometric mean of the probabilities of its tokens, in [0, 1]; 0 where the model gave none (NaN)


def words(
    hypothesis: Hypothesis,
    tokenizer: Tokenizer,
    step_ms: float,
    tail_ms: float = TAIL_MS,
    seconds: float | None = None,
) -> list[Word]:
    """The words of a hypothesis.

    A decoder knows when it emitted a token, not how long the sound lasted: a word starts with the step of its first
    token, and ends `tail_ms` after the step of its last one, earlier where the next word starts. Neither lies beyond
    the end of the audio (of `seconds`), which the last step may do. Times are whole milliseconds.
    """
    groups = token_groups(hypothesis.tokens, tokenizer.pieces)
    last = inf if seconds is None else floor(1000 * seconds + 1e-6) / 1000
    starts = [min(last, hypothesis.steps[group[0]] * step_ms / 1000) for group in groups] + [last]
    found = []
    for group, start, following in zip(groups, starts, starts[1:], strict=False):
        end = (hypothesis.steps[group[-1]] + 1) * step_ms / 1000 + tail_ms / 1000
        text = " ".join(tokenizer.decode([hypothesis.tokens[i] for i in group]).split())  # " ⁇ " of <unk>
        if text:
            confidence = _confidence([hypothesis.log_probs[i] for i in group])
            found.append(Word(text, round(start, 3), round(min(end, following), 3), confidence))
    return found


def _confidence(log_probs: list[float]) -> float:
    """Geometric mean of probabilities; rounding may bring one over 1."""
    mean = sum(log_probs) / len(log_probs)
    return 0.0 if isnan(mean) else exp(min(0.0, mean))


def token_groups(tokens: list[int], pieces: list[str]) -> list[list[int]]:
    """Positions of the tokens of each word; spaces and word starts without letters belong to the word after them."""
    groups: list[list[int]] = []
    open_word = False
    for position, token in enumerate(tokens):
        piece = pieces[token]
        if piece == " ":
            open_word = False
            continue
        if piece.startswith(WORD_START) or not open_word:
            groups.append([])
            open_word = True
        groups[-1].append(position)
    return [group for group in groups if any(pieces[tokens[i]] != WORD_START for i in group)]
