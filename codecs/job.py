"""What training a codec needs around its task: checks of the corpus, scores, release."""

import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich import box
from rich.table import Table
from torch import Tensor
from torch.nn.utils import parametrize

from speechkit import hub
from speechkit.builder import build_network
from speechkit.codecs.losses import MelLoss
from speechkit.codecs.quantizers import Usage
from speechkit.codecs.wavtokenizer import WavTokenizer
from speechkit.data.codec_module import CropDataModule
from speechkit.errors import InputError

log = logging.getLogger(__name__)

API = "speechkit.codecs.codec.Codec"
LONGEST_S = 60.0  # of a recording that is scored: memory grows with its square


class Score(NamedTuple):
    """Of a split, whole recordings as they are."""

    split: str
    recordings: int
    seconds: float
    mel: float  # mean over recordings, see `MelLoss`
    utilization: float  # share of the codes that came
    perplexity: float
    real_time_factor: float  # of encoding and decoding together, one recording at a time

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


class CodecJob:
    """Prepares, scores and releases a codec for `speechkit.train`.

    Args:
        eval_utterances: at most so many recordings of a split are scored, null for all.
        half: release the weights in fp16.
    """

    api = API

    def __init__(self, eval_utterances: int | None = None, half: bool = False) -> None:
        self.eval_utterances, self.half = eval_utterances, half
        self.published: Mapping[str, Sequence[Tensor]] | None = None  # discriminators of what training begins with

    def prepare(self, data: CropDataModule, out: Path) -> dict[str, Any]:
        """Sees that the splits are there; the config lacks nothing."""
        data.utterances([*data.valid, *data.test])  # a split that is not there is said before hours of training
        if not data.train:
            raise InputError("name what to train on: data.train=[...] holds no split")
        return {}

    def task_arguments(self) -> dict[str, Any]:
        """What the task's constructor takes from here."""
        return {"published": self.published}

    def evaluate(self, model: WavTokenizer, data: CropDataModule, splits: Sequence[str]) -> list[Score]:
        """Scores of every split with the embedding that a release has; a split that cannot be read has none."""
        model.decoder.use(0)
        return [score(model, split, waves) for split, _, waves in data.readable(splits, self.eval_utterances)]

    def table(self, scores: Sequence[Score]) -> Table:
        """One line for every split."""
        shown = Table("split", "recordings", "mel", "codes used %", "perplexity", "RTF", box=box.SIMPLE, padding=0)
        for s in scores:
            shown.add_row(s.split, str(s.recordings), *_cells(s), f"{s.real_time_factor:.3f}")
        return shown

    def uses(self, release: Path) -> list[str]:
        """Commands that take the release."""
        folder = shlex.quote(str(release))
        return [
            f"use it: speechkit codec encode FILE.wav -o FILE.skc --model {folder}",
            f"and back: speechkit codec decode FILE.skc -o BACK.wav --model {folder}",
        ]

    def release(self, folder: Path, config: dict[str, Any], model: WavTokenizer, scores: Sequence[Score]) -> None:
        """Writes the release folder that `speechkit.load` reads; its card has a table where there are scores."""
        card = f"# {config['name']}\n\nTrained by `python -m speechkit.train recipe={config['name']}`.\n"
        if scores:
            card += "\n| split | recordings | mel distance | codes used % | perplexity |\n|---|---|---|---|---|\n"
        for s in scores:
            card += f"| {s.split} | {s.recordings} | {' | '.join(_cells(s))} |\n"
        hub.save(folder, {**config, "api": API}, folded(model, config["model"]), None, card, half=self.half)


def _cells(s: Score) -> list[str]:
    return [f"{s.mel:.3f}", f"{100 * s.utilization:.1f}", f"{s.perplexity:.0f}"]


@torch.inference_mode()
def score(model: WavTokenizer, split: str, waves: Sequence[Tensor]) -> Score:
    """Encodes and decodes recordings (samples,), one by one, of each at most the first minute.

    Raises:
        ValueError: there are none, or all are shorter than a spectrum needs.
    """
    device = next(model.parameters()).device
    distance, usage = MelLoss(model.rate).to(device), Usage(model.size, model.codebooks).to(device)
    waves = [wave for wave in waves if len(wave) >= distance.least]  # shorter ones have no spectrum
    if not waves:
        raise ValueError(f"there is nothing to score in {split}")
    distances, spent, samples = [], 0.0, 0
    for wave in waves:
        x = wave[None, : round(LONGEST_S * model.rate)].to(device)
        start = time.monotonic()
        codes, counts = model.encode(x, torch.tensor([x.shape[1]], device=device))
        made = model.decode(codes, counts)[0][:, : x.shape[1]]
        made[:, -1:].cpu()  # waits for the device
        spent, samples = spent + time.monotonic() - start, samples + x.shape[1]
        distances.append(float(distance(x, made)))
        usage.update(codes)
    seconds = samples / model.rate
    mean = sum(distances) / len(distances)
    return Score(split, len(waves), seconds, mel=mean, **_usage(usage), real_time_factor=spent / seconds)


def _usage(usage: Usage) -> dict[str, float]:
    counts = usage.counts  # of this process: the others do not score
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    perplexity = float(torch.special.entr(shares).sum(1).exp().mean())
    return {"utilization": float((usage.counts > 0).double().mean()), "perplexity": perplexity}


def folded(model: WavTokenizer, config: Mapping[str, Any]) -> WavTokenizer:
    """A codec for use, in evaluation mode: with whole weights, where training had split them in two.

    Args:
        model: as trained; it stays as it is (to join its weights in place would take them from its copies too).
        config: from which it was built.
    """
    found = build_network(config)
    assert isinstance(found, WavTokenizer)
    tensors = {name: value for name, value in model.state_dict().items() if ".parametrizations." not in name}
    for name, part in model.named_modules():
        if parametrize.is_parametrized(part, "weight"):
            tensors[f"{name}.weight"] = part.weight.detach()
    found.load_state_dict(tensors)
    return found.eval()
