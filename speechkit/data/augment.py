"""Changes to a waveform while it is loaded: speed, reverberation, noise and gain, drawn from the generator given."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soxr

from speechkit import audio
from speechkit.data.noise import Wave, make_noise, mix, rms
from speechkit.data.rir import absorption_for, room_response
from speechkit.errors import InputError

_HEIGHTS_M = (2.4, 4.0)
_SHORT_SECONDS, _MOST_KEPT = 60.0, 64  # noise files so short stay in memory, so many at most


class NoiseMixer:
    """Adds noise from a folder of recordings, or generated noise where no folder is given.

    Args:
        folder: searched with its subfolders; any rate and number of channels.
        snr_db: (low, high), drawn uniformly.
        kinds: generated noise to choose from (`noise.KINDS`), without a folder.

    Raises:
        InputError: the folder has no audio file; when called, a file that cannot be read.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        snr_db: Sequence[float] = (5.0, 25.0),
        kinds: Sequence[str] = ("white", "pink", "brown", "hum"),
        sample_rate: int = 16000,
    ) -> None:
        self.snr_db, self.kinds, self.sample_rate = _range("snr_db", snr_db), tuple(kinds), sample_rate
        self.files: list[Path] = []
        self._kept: dict[Path, Wave] = {}
        if folder is not None:
            found = Path(folder).rglob("*") if Path(folder).is_dir() else ()
            self.files = sorted(path for path in found if path.suffix.lower() in audio.SUFFIXES)
            if not self.files:
                raise InputError(f"there is no noise (WAV, FLAC, OGG, Opus or MP3 file) in {folder}")

    def __call__(self, wave: Wave, rng: np.random.Generator) -> Wave:
        """(samples,) -> (samples,)."""
        snr_db = rng.uniform(*self.snr_db)
        if self.files:
            noise = self._excerpt(self.files[rng.integers(len(self.files))], len(wave), rng)
        else:
            noise = make_noise(self.kinds[rng.integers(len(self.kinds))], len(wave), rng, self.sample_rate)
        return mix(wave, noise, snr_db)

    def _excerpt(self, path: Path, samples: int, rng: np.random.Generator) -> Wave:
        """Of a long file only what is needed is read, for noise may be hours long; a shorter one is repeated."""
        whole = self._kept.get(path)
        if whole is None:
            seconds, wanted = audio.info(path).seconds, samples / self.sample_rate
            if seconds > max(_SHORT_SECONDS, wanted):
                start = rng.uniform(0, seconds - wanted - 0.001)  # start and length are rounded to the file's samples
                return np.resize(audio.read(path, self.sample_rate, start=max(start, 0), seconds=wanted), samples)
            whole = audio.read(path, self.sample_rate)
            if seconds <= _SHORT_SECONDS and len(self._kept) < _MOST_KEPT:
                self._kept[path] = whole
        skipped = rng.integers(max(len(whole) - samples, 0) + 1)
        return np.resize(whole[skipped:], samples)


class Reverb:
    """Puts speech into one of a bank of rooms by one convolution; length, level and timing of the speech stay.

    The rooms depend on the seed alone; a response is computed when it is first drawn.

    Args:
        rooms: how many.
        t60_s: (low, high) reverberation time.
        size_m: (low, high) of length and width; heights are 2.4 to 4 m.
        distance_m: (low, high) from mouth to microphone.
    """

    def __init__(
        self,
        rooms: int = 64,
        t60_s: Sequence[float] = (0.1, 0.6),
        size_m: Sequence[float] = (2.5, 8.0),
        distance_m: Sequence[float] = (0.3, 3.0),
        seed: int = 0,
        sample_rate: int = 16000,
    ) -> None:
        self.t60_s, self.size_m = _range("t60_s", t60_s), _range("size_m", size_m)
        self.distance_m, self.seed, self.sample_rate = _range("distance_m", distance_m), seed, sample_rate
        self._bank: list[Wave | None] = [None] * rooms

    def __call__(self, wave: Wave, rng: np.random.Generator) -> Wave:
        """(samples,) -> (samples,)."""
        response = self.response(int(rng.integers(len(self._bank))))
        size = 1 << (len(wave) + len(response)).bit_length()
        wet = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(response, size), size)[: len(wave)].astype(np.float32)
        return wet * np.float32(rms(wave) / max(rms(wet), 1e-12))

    def response(self, room: int) -> Wave:
        """(samples,) of the room's impulse response, from the direct path on."""
        ready = self._bank[room]
        if ready is None:
            ready = self._bank[room] = self._draw(np.random.default_rng([self.seed, room]))
        return ready

    def _draw(self, rng: np.random.Generator) -> Wave:
        size = np.array([rng.uniform(*self.size_m), rng.uniform(*self.size_m), rng.uniform(*_HEIGHTS_M)])
        t60 = rng.uniform(*self.t60_s)
        microphone = size * rng.uniform(0.2, 0.8, 3)
        direction = rng.standard_normal(3)
        source = microphone + direction / np.linalg.norm(direction) * rng.uniform(*self.distance_m)
        source = np.clip(source, 0.2, size - 0.2)  # a room may be smaller than the distance
        room = size.tolist()
        absorption = absorption_for(room, t60)
        response = room_response(room, source.tolist(), microphone.tolist(), absorption, t60, self.sample_rate)
        return response[int(np.abs(response).argmax()) :].copy()


class Augmenter:
    """Speed, then the room, then its noise, then the gain; each with its own probability.

    Args:
        speeds: factors of tempo and pitch together, by resampling (Ko et al. 2015); each is as likely.
        noise: what adds noise, None for none.
        reverb: what adds a room, None for none.
        gain_db: (low, high), None for none; what would clip is held at full scale.
    """

    def __init__(
        self,
        speeds: Sequence[float] = (0.9, 1.0, 1.1),
        noise: NoiseMixer | None = None,
        reverb: Reverb | None = None,
        gain_db: Sequence[float] | None = (-6.0, 6.0),
        speed_probability: float = 1.0,
        noise_probability: float = 0.5,
        reverb_probability: float = 0.3,
        gain_probability: float = 1.0,
    ) -> None:
        if not speeds or min(speeds) <= 0:
            raise ValueError(f"speeds must be factors above 0, got {list(speeds)}")
        self.speeds, self.noise, self.reverb = tuple(speeds), noise, reverb
        self.gain_db = None if gain_db is None else _range("gain_db", gain_db)
        self.speed_probability, self.noise_probability = speed_probability, noise_probability
        self.reverb_probability, self.gain_probability = reverb_probability, gain_probability

    def __call__(self, wave: Wave, rng: np.random.Generator) -> Wave:
        """(samples,) float32 -> (samples / speed,) float32; the same generator state gives the same result."""
        if len(wave) == 0:
            return wave
        if rng.random() < self.speed_probability:
            wave = change_speed(wave, self.speeds[rng.integers(len(self.speeds))])
        if self.reverb is not None and rng.random() < self.reverb_probability:
            wave = self.reverb(wave, rng)
        if self.noise is not None and rng.random() < self.noise_probability:
            wave = self.noise(wave, rng)
        if self.gain_db is not None and rng.random() < self.gain_probability:
            wave = wave * np.float32(10 ** (rng.uniform(*self.gain_db) / 20))
        return wave / np.float32(max(1.0, float(np.abs(wave).max())))


def change_speed(wave: Wave, speed: float) -> Wave:
    """(samples,) -> (samples / speed,): above 1 is faster and higher."""
    if speed == 1:
        return wave
    return soxr.resample(wave, speed, 1.0, quality="LQ")


def _range(name: str, values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2 or values[0] > values[1]:
        raise ValueError(f"{name} must be [low, high], got {list(values)}")
    return float(values[0]), float(values[1])
