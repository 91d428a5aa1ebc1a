"""Impulse responses of rectangular rooms by the image method, vectorised.

Source: Allen and Berkley, "Image method for efficiently simulating small-room acoustics", JASA 65(4), 1979.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SPEED_OF_SOUND = 343.0  # m/s
_OVERSAMPLING = 16  # delays are exact to 1/16 of a sample, hence to 4 microseconds at 16 kHz
_LEAD = 32  # samples before the first arrival, for the ringing of the band limit
_HIGH_PASS_HZ = 40.0  # images of one sign add up to a pressure that no room has


def absorption_for(room_m: Sequence[float], t60_s: float) -> float:
    """The walls' absorption (0 to 1) that lets sound decay by 60 dB in `t60_s` (Eyring's formula).

    Raises:
        ValueError: a room without volume or a time that is not above 0.
    """
    _check_room(room_m)
    if t60_s <= 0:
        raise ValueError(f"t60_s must be above 0, got {t60_s}")
    x, y, z = room_m
    volume, surface = x * y * z, 2 * (x * y + y * z + x * z)
    return 1 - math.exp(-24 * math.log(10) / SPEED_OF_SOUND * volume / (surface * t60_s))


def room_response(
    room_m: Sequence[float],
    source_m: Sequence[float],
    microphone_m: Sequence[float],
    absorption: float,
    seconds: float,
    sample_rate: int = 16000,
) -> NDArray[np.float32]:
    """What a microphone hears of an impulse.

    Args:
        room_m: length, width, height; the walls lie at 0 and at these.
        source_m: position in the room; likewise `microphone_m`.
        absorption: share of the energy that a wall takes, 0 to 1; 1 leaves the direct path.
        seconds: how much of the decay is computed.

    Returns:
        (samples,) float32; a path of d metres and n walls arrives after d / 343 s with (1 - absorption) ** (n / 2) / d.

    Raises:
        ValueError: a position outside the room, an absorption outside 0 to 1.
    """
    _check_room(room_m)
    for name, position in (("source_m", source_m), ("microphone_m", microphone_m)):
        if not all(0 < p < size for p, size in zip(position, room_m, strict=True)):
            raise ValueError(f"{name} must lie within the room of {list(room_m)} m, got {list(position)}")
    if not 0 <= absorption <= 1:
        raise ValueError(f"absorption must be from 0 to 1, got {absorption}")
    samples = math.ceil(seconds * sample_rate)
    distance, gain = _images(room_m, source_m, microphone_m, math.sqrt(1 - absorption), SPEED_OF_SOUND * seconds)
    fine = np.rint(distance * (sample_rate * _OVERSAMPLING / SPEED_OF_SOUND)).astype(np.int64) + _LEAD * _OVERSAMPLING
    impulses = np.bincount(fine, gain / distance, (samples + _LEAD) * _OVERSAMPLING).astype(np.float64)
    return _band_limited(impulses, samples + 2 * _LEAD, sample_rate)[_LEAD : _LEAD + samples]


def _check_room(room_m: Sequence[float]) -> None:
    if len(room_m) != 3 or min(room_m) <= 0:
        raise ValueError(f"room_m must be three lengths above 0, got {list(room_m)}")


def _images(
    room_m: Sequence[float],
    source_m: Sequence[float],
    microphone_m: Sequence[float],
    reflection: float,
    farthest: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(paths,) metres and (paths,) reflection gains of all images of the source up to a distance."""
    squares, bounces = [], []
    for size, source, microphone in zip(room_m, source_m, microphone_m, strict=True):
        repeats = np.arange(-math.ceil(farthest / (2 * size)) - 1, math.ceil(farthest / (2 * size)) + 2)
        # The unmirrored images meet both walls |n| times, the mirrored ones one of them once less.
        position = np.concatenate([2 * repeats * size + source, 2 * repeats * size - source])
        squares.append((position - microphone) ** 2)
        bounces.append(np.concatenate([2 * np.abs(repeats), np.abs(repeats) + np.abs(repeats - 1)]))
    near = squares[0][:, None] + squares[1][None, :] < farthest**2
    plane = (squares[0][:, None] + squares[1][None, :])[near]
    plane_bounces = (bounces[0][:, None] + bounces[1][None, :])[near]
    square = plane[:, None] + squares[2]
    heard = square < farthest**2
    bounced = (plane_bounces[:, None] + bounces[2])[heard]
    gains = np.power(reflection, np.arange(bounced.max(initial=0) + 1))
    return np.sqrt(square[heard]), gains[bounced]


def _band_limited(impulses: NDArray[np.float64], samples: int, sample_rate: int) -> NDArray[np.float32]:
    """Decimates by the oversampling: keeps the band below the new Nyquist frequency, and above the high pass."""
    size = 1 << (samples - 1).bit_length()
    spectrum = np.fft.rfft(impulses, size * _OVERSAMPLING)[: size // 2 + 1]
    frequency = np.fft.rfftfreq(size, 1 / sample_rate)
    high = frequency**2 / (frequency**2 + _HIGH_PASS_HZ**2)
    edge = np.clip((frequency / sample_rate - 0.45) / 0.05, 0, 1)
    low = 0.5 + 0.5 * np.cos(np.pi * edge)
    return np.fft.irfft(spectrum * high * low, size).astype(np.float32)
