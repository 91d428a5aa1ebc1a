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
    device = checked_device(device)
    found = hub.load(name, device)
    if not isinstance(found, Transcriber):
        raise InputError(f"{name} is no model for recognition but a {type(found).__name__}")
    return found


def checked_device(name: str) -> str:
    """The name of a device that is there.

    Raises:
        InputError: there is none.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"there is no kind of device {name!r}: name cpu, cuda, cuda:1 or mps") from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= there.get(device.type, 0):
        found = [kind for kind, count in there.items() if count]
        raise InputError(f"this machine has no device {name}, only {', '.join(found)} (see `speechkit doctor`)")
    return name


def use_threads(count: int) -> None:
    """Sets how many threads PyTorch uses on the CPU.

    Raises:
        InputError: none, or more than can be had.
    """
    if not 1 <= count <= MAX_THREADS:
        raise InputError(f"threads must be from 1 to {MAX_THREADS}, got {count}")
    torch.set_num_threads(count)
