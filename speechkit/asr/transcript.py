"""What was said: text, words with times, and the hypotheses behind them."""

from dataclasses import dataclass, field

from speechkit.asr.decoding.hypothesis import Hypothesis
from speechkit.asr.decoding.words import Timing, Word, words
from speechkit.text import WORD_START, Tokenizer


@dataclass(frozen=True)
class Transcript:
    """What was said."""

    text: str
    words: list[Word]  # with start and end in seconds, and confidence
    seconds: float
    hypotheses: list[Hypothesis] = field(default_factory=list, repr=False)  # best first

    @property
    def confidence(self) -> float:
        """Mean confidence of the words, 0 where there are none."""
        return sum(word.confidence for word in self.words) / len(self.words) if self.words else 0.0


def transcript(found: list[Hypothesis], tokenizer: Tokenizer, timing: Timing, seconds: float) -> Transcript:
    """Hypotheses, best first, of audio of so many seconds."""
    best = found[0]
    spoken = words(best, tokenizer, timing, seconds)
    return Transcript(plain(tokenizer.decode(best.tokens)), spoken, seconds, found)


def plain(text: str) -> str:
    """A text with single spaces: pieces may bring several."""
    return " ".join(text.split())


def joined(parts: list[tuple[int, Hypothesis]], tokenizer: Tokenizer) -> Hypothesis:
    """One hypothesis of parts of a recording, each with the step at which it begins; words do not run across parts."""
    tokens: list[int] = []
    steps: list[float] = []
    log_probs: list[float] = []
    for offset, part in parts:
        if tokens and part.tokens and not tokenizer.pieces[part.tokens[0]].startswith((" ", WORD_START)):
            gap = next(
                (tokenizer.pieces.index(piece) for piece in (" ", WORD_START) if piece in tokenizer.pieces), None
            )
            if gap is not None:
                tokens.append(gap)
                steps.append(offset + part.steps[0])
                log_probs.append(0.0)
        tokens += part.tokens
        steps += [offset + step for step in part.steps]
        log_probs += part.log_probs
    return Hypothesis(tokens, steps, log_probs, sum(part.score for _, part in parts))
