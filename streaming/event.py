"""What a session has to say: partial and final texts, where speech begins and ends, and that all is done."""

from dataclasses import dataclass

from speechkit.asr.decoding.words import Word


@dataclass(frozen=True)
class Partial:
    """What is known so far of the segment under way. Nothing of `text` is taken back but its last word may grow."""

    segment: int
    text: str
    stable: str  # the words that are complete
    start_s: float
    end_s: float  # heard so far, in seconds of the stream


@dataclass(frozen=True)
class Final:
    """A segment that is over. Its text begins with the last partial's `stable`."""

    segment: int
    text: str
    words: tuple[Word, ...]
    start_s: float
    end_s: float
    reason: str  # trailing, length, finalize, end


@dataclass(frozen=True)
class Endpoint:
    """The silence after an utterance was long enough, or there was none in a long time."""

    segment: int
    reason: str  # trailing, silence, length
    at_s: float


@dataclass(frozen=True)
class SpeechStart:
    """Somebody began to speak."""

    at_s: float


@dataclass(frozen=True)
class SpeechEnd:
    """Nobody speaks any more."""

    at_s: float


@dataclass(frozen=True)
class Done:
    """The stream ended, and everything that was in it is said."""

    seconds: float
    segments: int


Event = Partial | Final | Endpoint | SpeechStart | SpeechEnd | Done
