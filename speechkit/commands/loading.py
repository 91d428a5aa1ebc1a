"""Recognisers by name, on devices that are there."""

from pathlib import Path

import torch

from speechkit import hub
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError

MAX_THREADS = 1024  # some thousands end the process without a word


def recogniser(name: str | Path | None, device: str = "cpu") -> Transcriber:
    """The model of a release folder, a .nemo file or a hub id; without a name the packaged one.

    Raises:
        InputError: there is no such device, the model cannot be used, or it is no recogniser.
    """
    found = hub.load(name, device)
    if not isinstance(found, Transcriber):
        raise InputError(f"{name} is no model for recognition but a {type(found).__name__}")
    return found


def use_threads(count: int) -> None:
    """Sets how many threads PyTorch uses on the CPU.

    Raises:
        InputError: none, or more than can be had.
    """
    if not 1 <= count <= MAX_THREADS:
        raise InputError(f"threads must be from 1 to {MAX_THREADS}, got {count}")
    torch.set_num_threads(count)
