"""Words with times and confidences from emitted tokens."""

from dataclasses import dataclass
from math import exp

from speechkit.asr.decoding.hypothesis import Hypothesis
from speechkit.text import WORD_START, Tokenizer

TAIL_MS = 240.0


@dataclass(frozen=True)
class Word:
    """A word; times from the start of the stream."""

    text: str
    start_s: float
    end_s: float
    confidence: float  # geometric mean of the probabilities of its tokens, in (0, 1]


def words(
    hypothesis: Hypothesis,
    tokenizer: Tokenizer,
    step_ms: float,
    tail_ms: float = TAIL_MS,
    seconds: float | None = None,
) -> list[Word]:
    """The words of a hypothesis.

    A decoder knows when it emitted a token, not how long the sound lasted: a word starts with the step of its first
    token, and ends `tail_ms` after the step of its last one, earlier where the next word starts or the audio (of
    `seconds`) ends.
    """
    groups = token_groups(hypothesis.tokens, tokenizer.pieces)
    starts = [hypothesis.steps[group[0]] * step_ms / 1000 for group in groups] + [float("inf")]
    found = []
    for group, start, following in zip(groups, starts, starts[1:], strict=False):
        end = (hypothesis.steps[group[-1]] + 1) * step_ms / 1000 + tail_ms / 1000
        end = max(start, min(end, following, float("inf") if seconds is None else seconds))
        text = " ".join(tokenizer.decode([hypothesis.tokens[i] for i in group]).split())  # " ⁇ " of <unk>
        mean = sum(hypothesis.log_probs[i] for i in group) / len(group)
        if text:
            found.append(Word(text, round(start, 3), round(end, 3), min(1.0, exp(mean))))
    return found


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
