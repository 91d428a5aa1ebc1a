"""UTMOS (Saeki et al. 2022): how natural listeners would find speech, by a model that the user has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor, nn

from speechkit.errors import InputError

RATE = 16_000
SHORTEST = RATE // 10  # samples of what is scored
REPOSITORY, ENTRY = "tarepan/SpeechMOS:v1.2.0", "utmos22_strong"  # of torch.hub


class Utmos:
    """Scores waves.

    Args:
        model: waves (batch, samples) and their rate, 16,000 Hz, to scores (batch,).
        device: where the model is.
    """

    def __init__(self, model: Callable[[Tensor, int], Any], device: str = "cpu") -> None:
        self.model, self.device = model, device

    @torch.inference_mode()
    def __call__(self, wave: np.ndarray, rate: int) -> float | None:
        """(samples,) at `rate`, Hz -> 1 to 5; None of less than a tenth of a second, or where the model gives NaN.

        Raises:
            InputError: the model gives no score.
        """
        heard = soxr.resample(wave, rate, RATE)
        if len(heard) < SHORTEST:
            return None
        try:
            score = float(self.model(torch.from_numpy(heard)[None].to(self.device), RATE))
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise InputError(
                f"the UTMOS model does not turn waves (batch, samples) and their rate into scores: {reason[0]}"
            ) from error
        return score if np.isfinite(score) else None


def load(name: str, device: str = "cpu") -> Utmos:
    """A TorchScript file, a folder with torch.hub's hubconf.py, or `utmos22_strong`, which torch.hub fetches once.

    Raises:
        InputError: there is no such model, or it gives no scores.
    """
    path = Path(name).expanduser()
    try:
        if path.is_file():
            model = torch.jit.load(path, map_location=device)
        elif path.is_dir():
            model = torch.hub.load(str(path), ENTRY, source="local")
        elif name == ENTRY:
            model = torch.hub.load(REPOSITORY, ENTRY, trust_repo=True)
        else:
            raise InputError(f"there is no file or folder {name}: utmos is a TorchScript file, a folder or {ENTRY}")
    except InputError:
        raise
    except Exception as error:  # whatever a folder's code raises, and the network
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise InputError(f"{name} gives no UTMOS model: {reason[0]}") from error
    found = Utmos(model.to(device).eval() if isinstance(model, nn.Module) else model, device)
    found(np.zeros(RATE, np.float32), RATE)  # what cannot score is said before hours of scoring
    return found
