"""What is known of a segment of speech while it is heard: words that are settled, and one that may still grow."""

from collections.abc import Sequence
from dataclasses import replace

from speechkit.asr.decoding.hypothesis import Hypothesis
from speechkit.asr.decoding.words import Timing, Word, words
from speechkit.asr.transcript import Transcript, plain, transcript
from speechkit.text import Tokenizer, join_words


class Segment:
    """Tokens of a greedy decoder, as text and words; what was said is never taken back.

    Times are counted from the beginning of the stream.

    Args:
        tokenizer: of the model.
        timing: of the model's steps.
        start_s: where in the stream the segment begins, in seconds.

    Attributes:
        settled: the words that are complete, because another one has begun after them.
    """

    def __init__(self, tokenizer: Tokenizer, timing: Timing, start_s: float = 0.0) -> None:
        self.tokenizer, self.timing, self.start_s = tokenizer, timing, start_s
        self.settled: list[Word] = []
        self._found = Hypothesis([], [], [], 0.0)  # its lists grow in place: a copy a chunk adds up over hours
        self._begin = 0  # where the tokens of the open word begin

    @property
    def open(self) -> str:
        """The word that may still grow, as far as it is known; empty where there is none."""
        return plain(self.tokenizer.decode(self._found.tokens[self._begin :]))

    @property
    def text(self) -> str:
        """The text so far."""
        return join_words([word.text for word in self.settled] + [self.open] * bool(self.open))

    @property
    def last_s(self) -> float | None:
        """When in the stream the last token was emitted; None where there is none yet."""
        steps = self._found.steps
        return self.start_s + (steps[-1] + 1) * self.timing.step_ms / 1000 if steps else None

    def words(self, heard_s: float) -> list[Word]:
        """The words so far, of so many seconds of the segment; the last may still grow."""
        return self.settled + self._words(self._begin, None, heard_s)

    def transcript(self, heard_s: float) -> Transcript:
        """What was said in the segment, of so many seconds."""
        found = replace(self._found, score=sum(self._found.log_probs))
        said = transcript([found], self.tokenizer, self.timing, heard_s)
        return replace(said, words=[self._shifted(word) for word in said.words])

    def append(self, rows: Sequence[Sequence[float]], heard_s: float) -> None:
        """Takes what a decoder emitted, rows of token, step and log-probability, after so many seconds."""
        for token, step, log_prob in rows:
            self._found.tokens.append(int(token))
            self._found.steps.append(int(step))
            self._found.log_probs.append(log_prob)
        if rows:
            self._settle(heard_s)

    def _words(self, begin: int, end: int | None, heard_s: float) -> list[Word]:
        found = words(self._part(begin, end), self.tokenizer, self.timing, heard_s)
        return [self._shifted(word) for word in found]

    def _shifted(self, word: Word) -> Word:
        """With times from the beginning of the stream."""
        start = self.start_s
        return replace(word, start_s=round(start + word.start_s, 3), end_s=round(start + word.end_s, 3))

    def _settle(self, heard_s: float) -> None:
        """Moves the words before the last one to those that are complete."""
        begin = self._last_word()
        if begin == self._begin:
            return
        complete = self._words(self._begin, begin, heard_s)
        if complete:
            next_s = self.start_s + (self._found.steps[begin] * self.timing.step_ms - self.timing.lead_ms) / 1000
            following = max(complete[-1].start_s, round(next_s, 3))
            complete[-1] = replace(complete[-1], end_s=min(complete[-1].end_s, following))
        self.settled += complete
        self._begin = begin

    def _last_word(self) -> int:
        """Where the last word with letters begins."""
        groups = self.tokenizer.groups(self._found.tokens[self._begin :])
        return self._begin + (groups[-1][0] if groups else 0)

    def _part(self, begin: int, end: int | None) -> Hypothesis:
        found = self._found
        return Hypothesis(found.tokens[begin:end], found.steps[begin:end], found.log_probs[begin:end], 0.0)
