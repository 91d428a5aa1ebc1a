"""Tiny recognisers with random weights, and sound that makes them talk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechkit import hub
from speechkit.asr.ancat import AncatEncoder
from speechkit.asr.model import Recognizer
from speechkit.release import build
from speechkit.text import CharTokenizer

SYMBOLS = [" ", *"abcdefgh"]
RATE = 16_000


def configuration(contexts: Sequence[Sequence[int]] = ((4, 1), (4, 0)), **encoder: Any) -> dict[str, Any]:
    """Both heads over the same small encoder."""
    vocab = len(SYMBOLS)
    model = {
        "_target_": "speechkit.asr.model.Recognizer",
        "front": {"_target_": "speechkit.features.LogMel", "n_mels": 16, "mean": -6.0, "deviation": 3.0},
        "encoder": {
            "_target_": "speechkit.asr.conformer.ConformerEncoder", "n_mels": 16, "dim": 8, "layers": 2, "heads": 2,
            "conv_kernel": 3, "subsampling_channels": 4, "contexts": [list(context) for context in contexts], **encoder,
        },
        "ctc": {"_target_": "speechkit.asr.ctc.CtcHead", "encoder_dim": 8, "vocab_size": vocab},
        "predictor": {"_target_": "speechkit.asr.predictor.Predictor", "vocab_size": vocab, "dim": 8},
        "joiner": {
            "_target_": "speechkit.asr.joiner.Joiner", "encoder_dim": 8, "predictor_dim": 8, "dim": 8,
            "vocab_size": vocab,
        },
    }  # fmt: skip
    return {"model": model}


def recognizer(config: dict[str, Any], seed: int = 0) -> Recognizer:
    """Random weights, the heads' biases set such that on `babble` every symbol has its turn."""
    torch.manual_seed(seed)
    model: Recognizer = build(config["model"]).eval()
    wave = torch.from_numpy(babble(8.0, seed=99))
    encoder = model.encode(wave[None], torch.tensor([len(wave)]))[0][0]
    assert model.ctc is not None
    assert model.joiner is not None
    heard = torch.tensor([1.0] + [0.0] * (len(SYMBOLS) - 1) + [2.0])  # spaces and blanks more often than letters
    with torch.no_grad():
        _centre(model.ctc.out, encoder, 3.0)
        _centre(model.joiner.encoder, encoder, 1.0)
        _centre(model.joiner.out, torch.relu(model.joiner.encoder(encoder)), 3.0)
        model.joiner.predictor.bias.zero_()
        model.ctc.out.bias.data += heard
        model.joiner.out.bias.data += heard
    return model


def _centre(layer: torch.nn.Linear, x: torch.Tensor, deviation: float) -> None:
    """Gives every output of a layer zero mean and a deviation over x (steps, dim)."""
    layer.bias.zero_()
    y = layer(x)
    layer.weight *= (deviation / y.std(0).clamp(min=1e-3))[:, None]
    layer.bias.data -= layer(x).mean(0)


@torch.no_grad()
def vary_gates(encoder: AncatEncoder, x: torch.Tensor | None = None) -> None:
    """Makes every layer's gates depend on what is heard: logits of unit deviation over x (1, steps, dim), or noise."""
    if x is None:
        x = torch.randn(1, 200, encoder.dim, dtype=encoder.subsampling.out.weight.dtype)
    for scheduler in encoder.schedulers:
        seen: list[torch.Tensor] = []
        hook = scheduler.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        encoder.contextualize(x, torch.tensor([x.shape[1]]), encoder.adaptive)
        hook.remove()
        scheduler.norm.reset_parameters()  # type: ignore[operator, union-attr]
        out: torch.nn.Linear = scheduler.out  # type: ignore[assignment]
        logits = scheduler(seen[0])[0]
        out.weight /= logits.std(0)[:, None]
        shift = 0.5 if scheduler.mode == "contiguous" else 0.0
        out.bias.add_(shift - scheduler(seen[0])[0].mean(0))


def release(folder: Path, contexts: Sequence[Sequence[int]] = ((4, 1), (4, 0)), **encoder: Any) -> Path:
    """A release folder of such a model."""
    config = configuration(contexts, **encoder)
    return hub.save(folder, config, recognizer(config), CharTokenizer(SYMBOLS), "# Random")


def babble(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """(samples,) float32: bursts of noise of changing colour and level, and pauses."""
    rng = np.random.default_rng(seed)
    pieces = []
    for _ in range(max(1, round(seconds / 0.2))):
        noise = rng.standard_normal(round(0.2 * rate)).astype(np.float32)
        width = int(rng.integers(1, 12))
        smooth = np.convolve(noise, np.ones(width, np.float32) / width, "same")
        pieces.append(smooth * (0.0 if rng.random() < 0.2 else 10 ** rng.uniform(-2.5, -0.7)))
    return np.concatenate(pieces).astype(np.float32)
