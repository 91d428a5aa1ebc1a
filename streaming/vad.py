"""Silero VAD (extra: vad): whether somebody speaks, from the sound itself, a window of 32 ms at a time."""

import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechkit.errors import InputError
from speechkit.streaming.onnx import OnnxGraph

RATE, WINDOW, CONTEXT = 16_000, 512, 64  # Hz, samples
BEGIN, END = 0.5, 0.35  # probabilities at which speech begins and ends
HOLD = 7  # windows of silence that end it: words have pauses in them


@functools.cache
def network() -> OnnxGraph:
    """The packaged ONNX model, once for all streams.

    Raises:
        InputError: the extra is not installed.
    """
    found = importlib.util.find_spec("silero_vad")  # importing it would set PyTorch's threads for the whole program
    places = (found.submodule_search_locations if found is not None else None) or []
    files = [path for place in places if (path := Path(place) / "data" / "silero_vad.onnx").is_file()]
    if not files:
        raise InputError("voice activity detection needs the extra vad: pip install 'speechkit[vad]'")
    return OnnxGraph(files[0])


class Vad:
    """Voice activity of one stream at 16 kHz.

    Attributes:
        speaking: whether somebody speaks.
        last_s: up to when somebody spoke, in seconds of the stream; None where nobody did.

    Raises:
        InputError: as `network`.
    """

    def __init__(self) -> None:
        self._network = network()
        self._state: Tensor = torch.zeros(2, 1, 128)
        self._context = np.zeros(CONTEXT, np.float32)
        self._rest = np.zeros(0, np.float32)
        self._heard = 0  # samples
        self._quiet = 0  # windows since the last with speech
        self.speaking = False
        self.last_s: float | None = None

    def push(self, samples: np.ndarray) -> list[tuple[str, float]]:
        """(samples,) float32; returns ``start`` and ``end`` with their seconds, as far as whole windows tell."""
        audio = np.concatenate([self._rest, samples])
        whole = len(audio) - len(audio) % WINDOW
        found = []
        for begin in range(0, whole, WINDOW):
            before = self.speaking
            self._window(audio[begin : begin + WINDOW])
            if self.speaking != before:
                found.append(("start", (self._heard - WINDOW) / RATE) if self.speaking else ("end", self.last_s or 0.0))
        self._rest = audio[whole:]
        return found

    def _window(self, window: np.ndarray) -> None:
        given = torch.from_numpy(np.concatenate([self._context, window])[None])
        out, self._state = self._network(given, self._state, torch.tensor(RATE))
        self._context = window[-CONTEXT:]
        self._heard += WINDOW
        probability = float(out)
        if probability >= (END if self.speaking else BEGIN):
            self.speaking, self._quiet, self.last_s = True, 0, self._heard / RATE
        else:
            self._quiet += 1
            self.speaking = self.speaking and self._quiet < HOLD
