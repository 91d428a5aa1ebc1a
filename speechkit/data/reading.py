"""One text read by a voice: what is drawn for it, how it is spoken, and the room that it is recorded in."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import soxr

from speechkit.data.espeak import Espeak
from speechkit.data.noise import Wave, make_babble, make_noise, mix, rms
from speechkit.errors import InputError

SAMPLE_RATE = 16000
WHISPERS = frozenset({"whisper", "whisperf"})  # no pitch at all: 36 % periodic where the other voices have 50-95 %
FIRST_SPEAKER = 20000  # above every LibriSpeech number
_PUNCTUATION = str.maketrans({"’": "'", "-": " ", "—": " ", **dict.fromkeys('.,;:!?"()', "")})


@dataclass(frozen=True)
class Style:
    """What is drawn for each utterance, uniformly from (low, high).

    Attributes:
        rate: words per minute.
        pitch: espeak-ng's 0 to 100, in the voice's own range; `pitch_range`: how much it moves.
        level_db: RMS of the speech, full scale = 0.
        floor_db: RMS of the room tone that every utterance has, for digital silence is no recording.
        silence_s: before the speech and, drawn again, after it.
        noisy: probability of noise; `kinds`: what noise; `snr_db`: its ratio, one of these.
    """

    rate: tuple[int, int] = (140, 190)
    pitch: tuple[int, int] = (25, 75)
    pitch_range: tuple[int, int] = (30, 70)
    level_db: tuple[float, float] = (-28.0, -20.0)
    floor_db: tuple[float, float] = (-72.0, -60.0)
    silence_s: tuple[float, float] = (0.1, 0.3)
    noisy: float = 0.0
    kinds: tuple[str, ...] = ("white", "pink", "brown", "hum", "babble")
    snr_db: tuple[float, ...] = (5.0, 10.0, 15.0, 20.0)

    def seconds(self, text: str) -> float:
        """Roughly how long a text will be."""
        return len(text) * 9 / (sum(self.rate) / 2) + sum(self.silence_s)


@dataclass(frozen=True)
class Reading:
    """One file to make: a text read by a voice."""

    spoken: str  # with punctuation, which makes pauses
    voice: str
    speaker: int
    chapter: int
    index: int

    @property
    def name(self) -> str:
        return f"{self.speaker}-{self.chapter}-{self.index:04d}"

    @property
    def text(self) -> str:
        """Its transcript."""
        return transcript(self.spoken)


def usable_voices(espeak: Espeak, variants: Iterable[str] | None = None) -> dict[str, int]:
    """Voice -> speaker number, of every accent with the given variants (None: all), less the whispers."""
    numbers = {voice: FIRST_SPEAKER + i for i, voice in enumerate(espeak.voices())}
    wanted = (set(espeak.variants()) if variants is None else set(variants)) - WHISPERS
    return {voice: number for voice, number in numbers.items() if voice.partition("+")[2] in wanted}


def transcript(text: str) -> str:
    """Upper case words as LibriSpeech has them.

    Raises:
        InputError: digits or letters that English words do not have.
    """
    clean = " ".join(text.translate(_PUNCTUATION).upper().split())
    if not re.fullmatch(r"[A-Z' ]*[A-Z][A-Z' ]*", clean):
        raise InputError(f"a text to speak must be English words, numbers spelled out, got {text!r}")
    return clean


def speak(
    espeak: Espeak, reading: Reading, style: Style, rng: np.random.Generator, sample_rate: int = SAMPLE_RATE
) -> Wave:
    """Speech at its level between two silences."""
    rate, pitch, spread = (
        int(rng.integers(low, high + 1)) for low, high in (style.rate, style.pitch, style.pitch_range)
    )
    pcm = espeak.say(reading.spoken.lower(), reading.voice, rate, pitch, spread)
    loud = np.flatnonzero(np.abs(pcm.astype(np.int32)) > 100)
    if len(loud) == 0:
        raise InputError(f"the voice {reading.voice} says nothing for {reading.text!r}")
    speech = pcm[loud[0] : loud[-1] + 1].astype(np.float32) / 32768
    speech = soxr.resample(speech, espeak.sample_rate, sample_rate)
    speech *= np.float32(10 ** (rng.uniform(*style.level_db) / 20) / max(rms(speech), 1e-6))
    before, after = (int(rng.uniform(*style.silence_s) * sample_rate) for _ in range(2))
    return np.pad(speech, (before, after))


def record(
    speech: Wave, others: list[Wave], style: Style, rng: np.random.Generator, sample_rate: int = SAMPLE_RATE
) -> Wave:
    """Adds the room tone and perhaps noise, of which `others` are the babble."""
    tone = np.float32(10 ** (rng.uniform(*style.floor_db) / 20))
    wave = speech + tone * make_noise("white", len(speech), rng)
    if rng.random() < style.noisy:
        kind, snr_db = str(rng.choice(style.kinds)), float(rng.choice(style.snr_db))
        if kind == "babble" and len(others) < 2:
            kind = "pink"
        babble = kind == "babble"
        noise = make_babble(others, len(wave), rng) if babble else make_noise(kind, len(wave), rng, sample_rate)
        wave = mix(wave, noise, snr_db)
    return wave * np.float32(min(1, 0.98 / max(float(np.abs(wave).max()), 1e-6)))
