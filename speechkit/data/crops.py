"""Crops of recordings, all of one length and each at a level of its own: what codecs are trained on."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from speechkit import audio
from speechkit.data.manifest import find
from speechkit.data.noise import Wave
from speechkit.data.utterance import MAX_BAD, Usable, Utterance, probed
from speechkit.errors import InputError

SILENCE = 1e-4  # peak, -80 dB, of what is not made louder


class Crop:
    """A transform of the dataset: sets the peak of the whole wave, then cuts a piece out of it.

    A wave that is too short is repeated, as in Vocos' training (Siuzdak 2023), where SoX sets the peak.

    Args:
        samples: of the piece.
        peak_db: (low, high), drawn uniformly; full scale is 0.
        anywhere: whether the piece lies anywhere; else it is the first.

    Raises:
        ValueError: no samples, or a range that is none.
    """

    def __init__(self, samples: int, peak_db: Sequence[float] = (-6.0, -1.0), anywhere: bool = True) -> None:
        if samples < 1:
            raise ValueError(f"a crop must have at least one sample, got {samples}")
        if len(peak_db) != 2 or not peak_db[0] <= peak_db[1] <= 0:
            raise ValueError(f"peak_db must be (low, high), not over 0, got {tuple(peak_db)}")
        self.samples, self.peak_db, self.anywhere = samples, (float(peak_db[0]), float(peak_db[1])), anywhere

    def __call__(self, wave: Wave, rng: np.random.Generator) -> Wave:
        """(any samples,) -> (samples,) float32.

        Raises:
            InputError: there is nothing to repeat.
        """
        if not len(wave):
            raise InputError("a recording without samples has no crop")
        peak, wanted = float(np.abs(wave).max()), 10 ** (rng.uniform(*self.peak_db) / 20)
        room = len(wave) - self.samples
        start = int(rng.integers(room + 1)) if self.anywhere and room > 0 else 0
        piece = np.resize(wave, self.samples) if room < 0 else wave[start : start + self.samples]
        return piece * np.float32(wanted / peak if peak > SILENCE else 1.0)


def recordings(name: str, root: Path | None, cache_dir: Path, max_bad: float = MAX_BAD) -> Usable:
    """What a user names in `data.train`, as `manifest.find`; any folder with audio files will do: no text is needed.

    Raises:
        InputError: there is nothing of that name, or too much of it cannot be used.
    """
    path = Path(name).expanduser()
    written = root is not None and (root / "manifests" / f"{name}.jsonl").is_file()
    folder = path if root is None else root / path
    if written or not folder.is_dir() or any(folder.glob("cuts.*.jsonl*")):
        return find(name, root, cache_dir, max_bad)
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in audio.SUFFIXES)
    if not files:
        raise InputError(f"there is no audio ({', '.join(audio.SUFFIXES)}) in {folder}")
    found = [Utterance(str(file.relative_to(folder).with_suffix("")), str(file), "", 0.0, 0) for file in files]
    return probed(found).within(max_bad, str(folder))


def divided(utterances: Iterable[Utterance], longest_s: float) -> list[Utterance]:
    """Long recordings in equal parts, so that a crop does not cost the decoding of an hour.

    Args:
        utterances: of any length.
        longest_s: seconds of a part, at most.

    Returns:
        The utterances, those that are longer replaced by their parts.
    """
    found = []
    for utterance in utterances:
        count = math.ceil(utterance.seconds / longest_s)
        if count <= 1:
            found.append(utterance)
            continue
        seconds = math.floor(1000 * utterance.seconds / count) / 1000  # rounded up, the last would pass the end
        for i in range(count):
            start = (utterance.start or 0.0) + i * seconds
            found.append(dataclasses.replace(utterance, id=f"{utterance.id}-{i}", start=start, seconds=seconds))
    return found
