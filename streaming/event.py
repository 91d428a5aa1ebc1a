"""What a session has to say: partial and final texts, where speech begins and ends, what was refused, the end."""

from dataclasses import dataclass

from speechkit.asr.decoding.words import Word


@dataclass(frozen=True)
class Partial:
    """What is known so far of the segment under way. Nothing of `text` is taken back but its last word may grow.

    What has a higher `revision` takes the place of all that was said of the segment before.
    """

    segment: int
    text: str
    stable: str  # the words that are complete
    start_s: float
    end_s: float  # heard so far, in seconds of the stream
    words: tuple[Word, ...] = ()
    revision: int = 0


@dataclass(frozen=True)
class Final:
    """A segment that is over. Its text begins with the last partial's `stable`, unless it was heard a second time."""

    segment: int
    text: str
    words: tuple[Word, ...]
    start_s: float
    end_s: float
    reason: str  # trailing, length, finalize, end
    revision: int = 0


@dataclass(frozen=True)
class Endpoint:
    """A segment ended before the stream did, said of silent ones too."""

    segment: int
    reason: str  # trailing, silence, length, finalize
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
class Refused:
    """A wish that cannot be met; the stream goes on as it was."""

    reason: str


@dataclass(frozen=True)
class Done:
    """The stream ended, and everything that was in it is said."""

    seconds: float
    segments: int


Event = Partial | Final | Endpoint | SpeechStart | SpeechEnd | Refused | Done
