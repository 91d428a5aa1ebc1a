"""Paraformer computes what FunASR does, with every row as it is alone; folders name their own sizes."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from speechkit.asr.paraformer import Paraformer
from speechkit.builder import build
from speechkit.fbank import KaldiFbank, LowFrameRate
from speechkit.importers.funasr import model_config, normalization, renamed
from tests.paths import GOLDENS, needs_goldens

pytestmark = [pytest.mark.parity, needs_goldens]
FOLDERS = sorted(path.parent for path in GOLDENS.glob("paraformer*/offline/config.json"))
FOLDERS += sorted(path.parent for path in GOLDENS.glob("paraformer_*/config.json"))


class Golden:
    """One folder: the model, its front end, and what the reference computed."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.arrays = np.load(folder / "io.npz")
        self.model: Paraformer = build(model_config(self.config, str(folder))).eval()
        self.model.load_state_dict(renamed(load_file(folder / "weights.safetensors")))
        front = self.config["frontend_conf"]
        self.fbank = KaldiFbank(front["fs"], front["n_mels"], front["frame_length"], front["frame_shift"]).eval()
        self.joined = LowFrameRate(front["n_mels"], front["lfr_m"], front["lfr_n"])
        self.shift, self.scale = normalization((folder / "am.mvn").read_text(), "am.mvn")

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    @property
    def rows(self) -> range:
        return range(len(self["wav_lens"]))

    def features(self, row: int) -> Tensor:
        """(1, time, dim) of the reference."""
        return self["feats"][row : row + 1, : int(self["feats_lens"][row])]


@cache
def opened(folder: Path) -> Golden:
    return Golden(folder)


@pytest.fixture(params=FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def golden(request: pytest.FixtureRequest) -> Golden:
    return opened(request.param)


def close(found: Tensor, expected: Any, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@torch.no_grad()
def test_the_front_end_gives_the_features(golden: Golden) -> None:
    joined = golden.joined
    for row in golden.rows:
        wave = golden[f"wav_{row}"][None].float() / 32768
        frames, counts = golden.fbank(wave, torch.tensor([wave.shape[1]]))
        if row == 0:
            close(frames[0], golden["fbank80_0"])
            close(joined(frames, counts)[0][0], golden["lfr_nocmvn_0"])
        features = (joined(frames, counts)[0] + golden.shift) * golden.scale
        close(features, golden.features(row))


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13])
def test_frames_are_joined_as_published(golden: Golden, frames: int) -> None:
    x = golden[f"lfr_in_{frames}"][None]
    front = golden.config["frontend_conf"]
    found, _ = LowFrameRate(x.shape[2], front["lfr_m"], front["lfr_n"])(x, torch.tensor([frames]))
    close(found[0], golden[f"lfr_out_{frames}"], 0)


@torch.no_grad()
def test_every_stage_is_the_reference_s_of_a_single_utterance(golden: Golden) -> None:
    model = golden.model
    for row in golden.rows:
        features = golden.features(row)
        lengths = torch.tensor([features.shape[1]])
        close(model.encoder.embedded(features, torch.ones(1)), golden[f"s{row}_enc_embed"])
        hidden, lengths = model.encoder(features, lengths)
        close(hidden, golden[f"s{row}_encoder_out"])
        close(
            model.predictor.weights(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool)),
            golden[f"s{row}_alphas_raw"],
        )
        fired = model.predictor(hidden, lengths)
        assert fired.counts.tolist() == golden[f"s{row}_token_num"].tolist()
        close(fired.embeds, golden[f"s{row}_acoustic_embeds"])
        close(model.decoder(fired.embeds, fired.counts, hidden, lengths), golden[f"s{row}_logits"])


@torch.no_grad()
def test_a_row_of_a_batch_is_the_reference_s_single_utterance(golden: Golden) -> None:
    """Where the reference's own batch is not."""
    found = golden.model(golden["feats"], golden["feats_lens"])
    for row in golden.rows:
        expected = golden[f"s{row}_log_probs"][0]
        assert int(found.counts[row]) == len(expected)
        close(found.log_probs[row, : len(expected)], expected)
        assert torch.equal(found.log_probs[row, : len(expected)].argmax(-1), golden[f"s{row}_ids_0"])
