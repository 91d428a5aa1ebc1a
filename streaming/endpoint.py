"""When an utterance is over: rules on the silence that a decoder hears."""

from dataclasses import dataclass

from speechkit.errors import InputError


@dataclass(frozen=True)
class EndpointRules:
    """Seconds after which a segment ends; none where a rule is None.

    Silence is where the decoder emits nothing. A segment after a silence begins `overlap_s` before the silence was long
    enough, for a word may be under way that the decoder has heard but not yet emitted.
    """

    trailing_s: float | None = 1.2  # of silence after text
    silence_s: float | None = 2.4  # of silence without text
    longest_s: float | None = 20.0  # of a segment; it ends at the next pause between words
    overlap_s: float = 0.6
    pause_s: float = 0.24  # the shortest silence that a segment of the longest length ends in
    hard: float = 1.25  # times `longest_s`, a segment ends wherever it is

    def __post_init__(self) -> None:
        for name in ("trailing_s", "silence_s", "longest_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be over 0 seconds, or null, got {value}")
        if not 0 <= self.overlap_s <= 10:
            raise InputError(f"overlap_s must be from 0 to 10 seconds, got {self.overlap_s}")

    def reason(self, decoded_s: float, last_s: float | None) -> str | None:
        """Why a segment ends now: ``silence``, ``trailing``, ``length``; None where it goes on.

        Args:
            decoded_s: of the segment, that the decoder has heard.
            last_s: when in it the last token was emitted; None where there was none.
        """
        silent = decoded_s - (last_s or 0.0)
        if last_s is None:
            return "silence" if self.silence_s is not None and silent >= self.silence_s else None
        if self.trailing_s is not None and silent >= self.trailing_s:
            return "trailing"
        if self.longest_s is not None and decoded_s >= self.longest_s:
            return "length" if silent >= self.pause_s or decoded_s >= self.hard * self.longest_s else None
        return None

    def border_s(self, decoded_s: float, last_s: float | None) -> float:
        """Where in the segment the next one begins, when the silence in this one was long enough."""
        return max(decoded_s - self.overlap_s, (decoded_s + (last_s or 0.0)) / 2)
