"""Waves as programs give them to a codec, checked before one of them can spoil a stream."""

from collections.abc import Sequence

import torch
from torch import Tensor

from speechkit.errors import InputError

SHAPES = {1: "(samples,)", 2: "(batch, samples)"}  # by the number of dimensions
FULL_SCALE = 32_768  # of samples of 16 bits


def checked(wave: Tensor, dims: Sequence[int]) -> Tensor:
    """A wave of so many dimensions -> float32; int16 is scaled to [-1, 1).

    Raises:
        InputError: another number of dimensions, numbers that are neither float nor int16, NaN or Inf.
    """
    if wave.dim() not in dims:
        raise InputError(f"a wave must be {' or '.join(SHAPES[dim] for dim in dims)}, got {tuple(wave.shape)}")
    if not wave.is_floating_point() and wave.dtype != torch.int16:
        raise InputError(f"a wave must hold float or int16 samples, got {wave.dtype}")
    samples = wave.float() if wave.is_floating_point() else wave.float() / FULL_SCALE
    if not bool(samples.isfinite().all()):
        raise InputError("the wave contains NaN or Inf")
    return samples


def check_lengths(lengths: Tensor, wave: Tensor) -> None:
    """Raises InputError where these are no whole numbers of valid samples, one for each row of (batch, samples)."""
    if lengths.shape != (len(wave),) or lengths.is_floating_point():
        raise InputError(f"lengths must be {len(wave)} whole numbers, got {tuple(lengths.shape)} of {lengths.dtype}")
    if not all(0 <= length <= wave.shape[1] for length in lengths.tolist()):
        raise InputError(f"lengths must be from 0 to {wave.shape[1]} samples, got {lengths.tolist()}")
