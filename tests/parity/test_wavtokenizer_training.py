"""WavTokenizer's discriminators and losses against what the published implementation computed."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from speechkit.codecs import losses
from speechkit.codecs.discriminators import DacDiscriminator, MultiPeriod, MultiResolution, Verdict
from tests.paths import GOLDENS, needs_goldens

pytestmark = [pytest.mark.parity, needs_goldens]
FOLDERS = sorted(
    path.parent
    for path in GOLDENS.glob("*/config.json")
    if json.loads(path.read_text()).get("system") == "wavtokenizer_train"
)
each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
CLOSE = 1e-5  # absolute, for some scores are no larger than 1e-2; losses and mel spectra go up to 13


class Published:
    """A golden, and our modules with its weights."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        with np.load(folder / "io.npz") as found:
            self.io = {name: torch.from_numpy(found[name]) for name in found.files}
        self.real, self.fake, self.kind = self.io["y"], self.io["y_hat"], int(self.io["bandwidth_id"])
        kinds, mpd, mrd, dac = (self.config[name] for name in ("num_embeddings", "mpd", "mrd", "dac"))
        self.mpd = MultiPeriod(mpd["periods"], mpd["channels"], kinds)
        self.mrd = MultiResolution([r[:2] for r in mrd["resolutions"]], mrd["channels"], kinds)
        self.dac = DacDiscriminator(dac["periods"], mpd["channels"], dac["fft_sizes"], dac["channels"], dac["bands"])
        for name in ("mpd", "mrd", "dac"):
            fill(getattr(self, name), self.config["state_dict_order"][name], self.config["phase"][name])

    def verdicts(self, name: str) -> tuple[list[Verdict], list[Verdict]]:
        """Of one of the three, of the real and the generated waves."""
        if name == "dac":
            return self.dac(self.real), self.dac(self.fake)
        module = getattr(self, name)
        return module(self.real, self.kind), module(self.fake, self.kind)


def fill(module: nn.Module, order: Sequence[str], phase: float) -> None:
    """The formula of the golden's `weight_fill`; our tensors have the published order."""
    kinds = {"weight_g": "original0", "weight_v": "original1", "bias": "bias", "weight": "weight"}
    tensors = module.state_dict()
    for i, ((name, tensor), theirs) in enumerate(zip(tensors.items(), order, strict=True)):
        kind = theirs.rpartition(".")[2]
        assert name.rpartition(".")[2] == kinds[kind]
        values = np.sin((np.arange(tensor.numel()) + 1) * (0.7390851 + 0.0113 * i + phase))
        scaled = {"weight_g": 1 + 0.2 * values, "bias": 0.05 * values, "weight": 0.1 * values, "weight_v": values}[kind]
        tensor.copy_(torch.from_numpy(scaled.astype(np.float32)).view(tensor.shape))


def statistics(features: Sequence[Tensor]) -> Tensor:
    """The golden's `fmap_stats`."""

    def rows() -> Iterator[list[float]]:
        for x in features:
            y = x.double()
            yield [*map(float, (y.mean(), y.std(), y.abs().mean())), *x.shape, *[0] * (4 - x.dim())]

    return torch.tensor(list(rows()), dtype=torch.float64)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=CLOSE, rtol=0)


@pytest.fixture(scope="module")
def published() -> dict[Path, Published]:
    with torch.no_grad():
        return {folder: Published(folder) for folder in FOLDERS}


def test_the_discriminators_are_of_the_published_size() -> None:
    with torch.device("meta"):
        modules: list[nn.Module] = [MultiPeriod(), MultiResolution(), DacDiscriminator()]
    millions = [sum(p.numel() for p in module.parameters()) / 1e6 for module in modules]
    assert [round(count, 2) for count in millions] == [41.13, 0.60, 42.52]


@each_folder
@pytest.mark.parametrize("name", ["mpd", "mrd"])
@torch.no_grad()
def test_every_score_and_feature_is_as_published(published: dict[Path, Published], folder: Path, name: str) -> None:
    golden = published[folder]
    for kind, verdicts in zip(("real", "gen"), golden.verdicts(name), strict=True):
        for i, verdict in enumerate(verdicts):
            close(verdict.score.flatten(1), golden.io[f"{name}.{i}.{kind}_score"])
            close(statistics(verdict.features), golden.io[f"{name}.{i}.{kind}_fmap_stats"])


@each_folder
@torch.no_grad()
def test_every_verdict_of_dac_is_as_published(published: dict[Path, Published], folder: Path) -> None:
    golden = published[folder]
    for i, verdict in enumerate(golden.verdicts("dac")[0]):
        close(verdict.score, golden.io[f"dac.{i}.score"])
        close(statistics([*verdict.features, verdict.score]), golden.io[f"dac.{i}.fmap_stats"])


@each_folder
@torch.no_grad()
def test_every_loss_is_as_published(published: dict[Path, Published], folder: Path) -> None:
    golden = published[folder]
    found: dict[str, Tensor] = {}
    for name, theirs in (("mpd", "mp"), ("mrd", "mrd")):
        real, fake = golden.verdicts(name)
        found[f"disc_{theirs}"] = losses.hinge_discriminator_loss(real, fake)
        found[f"gen_{theirs}"] = losses.hinge_generator_loss(fake)
        found[f"fm_{theirs}"] = losses.feature_matching_loss(real, fake) / len(real)
    real, fake = golden.verdicts("dac")
    found["dac_disc"] = losses.least_squares_discriminator_loss(real, fake)
    found["dac_gen"], found["dac_fm"] = (
        losses.least_squares_generator_loss(fake),
        losses.feature_matching_loss(real, fake),
    )
    mel = golden.config["mel"]
    distance = losses.MelLoss(mel["sample_rate"], mel["n_fft"], mel["hop_length"], mel["n_mels"])
    close(distance.spectrum(golden.real), golden.io["mel.y"])
    found["mel"] = distance(golden.real, golden.fake)
    expected = {name.removeprefix("loss."): value for name, value in golden.io.items() if name.startswith("loss.")}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close(found[name], value)
