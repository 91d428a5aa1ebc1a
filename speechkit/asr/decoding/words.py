"""Words with times and confidences from emitted tokens."""

from dataclasses import dataclass
from math import exp, floor, inf, isnan

from speechkit.asr.decoding.hypothesis import Hypothesis
from speechkit.text import Tokenizer


@dataclass(frozen=True)
class Timing:
    """What steps are in time: a token begins `lead_ms` before its step, and lasts at most `tail_ms` after it."""

    step_ms: float
    lead_ms: float = 0.0
    tail_ms: float = 240.0


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
    timing: Timing,
    seconds: float | None = None,
) -> list[Word]:
    """The words of a hypothesis.

    A decoder knows when it emitted a token, not how long the sound lasted: a word starts with its first token, and ends
    `Timing.tail_ms` after the step of its last one, earlier where the next word starts. Neither lies beyond the end of
    the audio (of `seconds`), which the last step may do. Times are whole milliseconds.
    """
    groups = tokenizer.groups(hypothesis.tokens)
    step_s, lead_s, tail_s = (ms / 1000 for ms in (timing.step_ms, timing.lead_ms, timing.tail_ms))
    last = inf if seconds is None else floor(1000 * seconds + 1e-6) / 1000
    starts = [min(last, max(0.0, hypothesis.steps[group[0]] * step_s - lead_s)) for group in groups] + [last]
    found = []
    for group, start, following in zip(groups, starts, starts[1:], strict=False):
        end = (hypothesis.steps[group[-1]] + 1) * step_s - lead_s + tail_s
        text = " ".join(tokenizer.decode([hypothesis.tokens[i] for i in group]).split())  # " ⁇ " of <unk>
        if text:
            confidence = _confidence([hypothesis.log_probs[i] for i in group])
            found.append(Word(text, round(start, 3), round(min(end, following), 3), confidence))
    return found


def _confidence(log_probs: list[float]) -> float:
    """Geometric mean of probabilities; rounding may bring one over 1."""
    mean = sum(log_probs) / len(log_probs)
    return 0.0 if isnan(mean) else exp(min(0.0, mean))
