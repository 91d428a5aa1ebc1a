"""Training of codecs: both sides learn, a run can be broken off, and what is released is what was trained."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

import speechkit
from speechkit import audio
from speechkit.codecs.codebook import Codebook
from speechkit.codecs.codec import Codec
from speechkit.codecs.discriminators import DacDiscriminator, MultiPeriod, MultiResolution
from speechkit.codecs.job import CodecJob, folded, score
from speechkit.codecs.losses import Discriminators, MelLoss, hinge_discriminator_loss, least_squares_discriminator_loss
from speechkit.codecs.quantizers import VectorQuantizer
from speechkit.codecs.task import CodecTask
from speechkit.codecs.vocos_layers import AdaLayerNorm
from speechkit.codecs.wavtokenizer import WavTokenizer
from speechkit.data.codec_module import CropDataModule
from speechkit.data.collate import Batch
from speechkit.errors import InputError
from speechkit.release import build
from speechkit.schedule import WarmupCosine

SAMPLES = 300
CONFIG: dict[str, Any] = {
    "_target_": "speechkit.codecs.wavtokenizer.WavTokenizer",
    "rate": 6000,
    "encoder": {"_target_": "speechkit.codecs.seanet.SeanetEncoder", "dim": 8, "filters": 2, "strides": [2, 3]},
    "quantizer": {
        "_target_": "speechkit.codecs.quantizers.VectorQuantizer",
        "codebook": {"_target_": "speechkit.codecs.codebook.Codebook", "size": 16, "dim": 8},
    },
    "decoder": {
        "_target_": "speechkit.codecs.vocos.VocosDecoder", "in_dim": 8, "dim": 32, "inner": 48, "layers": 2, "hop": 6,
        "n_fft": 24,
    },
}  # fmt: skip


def batch(index: int, rows: int = 3) -> Batch:
    """Tones of other heights in every row and batch."""
    generator = torch.Generator().manual_seed(index)
    pitch = torch.rand(rows, 1, generator=generator) * 0.3 + 0.05
    wave = 0.5 * torch.sin(pitch * torch.arange(SAMPLES)) + 0.01 * torch.randn(rows, SAMPLES, generator=generator)
    lengths = torch.full((rows,), SAMPLES)
    return Batch(wave, lengths, torch.zeros(rows, 0), torch.zeros(rows), [str(i) for i in range(rows)], [], [])


class Batches(torch.utils.data.Dataset[Batch]):
    """So many batches, or one of them again and again."""

    def __init__(self, count: int, one: bool = False) -> None:
        self.count, self.one = count, one

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        return batch(0 if self.one else index)


def loader(count: int, one: bool = False) -> DataLoader[Batch]:
    return DataLoader(Batches(count, one), batch_size=None)


def task(autocast: bool = False, **changes: Any) -> CodecTask:
    torch.manual_seed(0)
    discriminators = Discriminators(
        MultiPeriod((2, 3), (2, 4)), MultiResolution(((64, 32),), 2), DacDiscriminator((2,), (2, 4), (64,), 2),
        autocast=autocast,
    )  # fmt: skip
    arguments: dict[str, Any] = {
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, 2e-3),
        "scheduler": lambda optimizer: WarmupCosine(optimizer, 100, 0),
        "mel": MelLoss(6000, 128, 32, 10),
    }
    return CodecTask(build(CONFIG), discriminators=discriminators, **{**arguments, **changes})


def trainer(steps: int, *callbacks: Callback, **changes: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", max_steps=steps, logger=False, callbacks=list(callbacks), enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **{"enable_checkpointing": bool(callbacks), **changes},
    )  # fmt: skip


class Curve(Callback):
    """What was logged after each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fitted(steps: int, one: bool = False, **changes: Any) -> tuple[CodecTask, list[dict[str, float]]]:
    curve, made = Curve(), task(**changes)
    trainer(steps, curve, enable_checkpointing=False).fit(made, loader(steps, one))
    return made, curve.steps


def test_on_one_batch_the_mel_distance_falls_and_all_losses_stay_finite() -> None:
    _, curve = fitted(25, one=True)
    assert len(curve) == 25
    expected = {"loss", "mel", "commitment", "adversarial", "features", "discriminators"}
    for losses in curve:
        assert {name.removeprefix("train/") for name in losses} == expected
        assert all(torch.tensor(value).isfinite() for value in losses.values())
    assert curve[-1]["train/mel"] < 0.5 * curve[0]["train/mel"]


def test_both_sides_learn_from_their_own_losses_alone() -> None:
    made = task(discriminator_start=2)
    seen: list[dict[str, Tensor]] = []

    class Watch(Callback):
        def on_train_batch_start(self, *_: object) -> None:
            seen.append({name: value.detach().clone() for name, value in made.named_parameters()})

        def on_train_end(self, *_: object) -> None:
            self.on_train_batch_start()

    trainer(4, Watch(), enable_checkpointing=False).fit(made, loader(4))
    for step, (before, after) in enumerate(pairwise(seen)):
        moved = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
        assert moved == ({"model"} if step < 2 else {"model", "discriminators"})
    assert all(parameter.requires_grad for parameter in made.parameters())


@pytest.mark.parametrize(("compat", "moves"), [(None, 1), ("reference", 2)])
def test_the_codebook_moves_once_a_step_or_twice_as_published(
    compat: str | None, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    learn = Codebook.learn

    def counted(book: Codebook, x: Tensor, codes: Tensor) -> None:
        steps.append(len(x))
        learn(book, x, codes)

    monkeypatch.setattr(Codebook, "learn", counted)
    fitted(3, compat=compat)
    assert steps == [3 * SAMPLES // 6] * 3 * moves


def test_another_compatibility_is_refused() -> None:
    with pytest.raises(ValueError, match="compat must be 'reference' or null"):
        task(compat="published")


def test_a_precision_with_scaled_losses_is_refused() -> None:
    made = task()
    made.trainer = type("Half", (), {"precision": "16-mixed"})()
    with pytest.raises(InputError, match="got 16-mixed"):
        made.on_fit_start()


def test_every_step_draws_an_embedding_and_evaluation_has_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    made = task()
    used: list[int] = []
    use = made.model.decoder.use

    def noted(kind: int) -> None:
        used.append(kind)
        use(kind)

    monkeypatch.setattr(made.model.decoder, "use", noted)
    run = trainer(8, enable_checkpointing=False)
    run.fit(made, loader(8), loader(1))
    assert used[-1] == 0
    assert len(set(used[:8])) > 2


@pytest.fixture
def crops(tmp_path: Path) -> Callable[[], CropDataModule]:
    """Two crops a batch, of five recordings."""
    (tmp_path / "train").mkdir()
    for i in range(5):
        audio.write(tmp_path / "train" / f"{i}.wav", batch(i).wave.flatten().numpy(), 6000)
    seconds = SAMPLES / 6000
    return lambda: CropDataModule(
        str(tmp_path), ["train"], [], [], crop_seconds=seconds, batch_size=2, rate=6000, seed=1
    )


@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_run_ends_as_an_unbroken_one(stop: int, crops: Callable[[], CropDataModule], tmp_path: Path) -> None:
    """Broken off before and after the discriminators join in, in the first and in the second epoch."""
    changes: dict[str, Any] = {"discriminator_start": 3}
    whole = task(**changes)
    trainer(5, enable_checkpointing=False).fit(whole, datamodule=crops())
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(stop, saver).fit(task(**changes), datamodule=crops())
    later = task(**changes)
    rest = trainer(5, enable_checkpointing=False)
    rest.fit(later, datamodule=crops(), ckpt_path=tmp_path / f"step={stop}.ckpt", weights_only=True)
    assert rest.global_step == 5
    for name, value in whole.state_dict().items():
        assert torch.equal(value, later.state_dict()[name]), name


def test_validation_says_distance_and_use_of_codes() -> None:
    made = task()
    run = trainer(6, enable_checkpointing=False)
    run.fit(made, loader(6))
    metrics = run.validate(made, loader(2), verbose=False)[0]
    assert metrics.keys() == {"val/mel", "val/commitment", "val/utilization", "val/perplexity"}
    codes = torch.cat([made.model.eval().encode(batch(i).wave, batch(i).wave_lengths)[0].flatten() for i in range(2)])
    shares = torch.bincount(codes, minlength=16) / len(codes)
    assert metrics["val/utilization"] == pytest.approx(float((shares > 0).float().mean()))
    assert metrics["val/perplexity"] == pytest.approx(float(torch.special.entr(shares).sum().exp()), rel=1e-4)


def test_discriminators_in_half_precision_say_nearly_the_same() -> None:
    discriminators = task().discriminators
    real, fake = 0.1 * torch.randn(2, 2, 4000)
    said = []
    for discriminators.autocast in (False, True):
        with torch.no_grad():
            said.append(
                [
                    discriminators.discriminator_loss(real, fake, 0),
                    *discriminators.generator_losses(real, fake, 0).values(),
                ]
            )
    for one, other in zip(*said, strict=True):
        assert one.dtype == other.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)
        assert not torch.equal(one, other)


def test_both_waves_are_judged_at_once_as_one_by_one() -> None:
    discriminators = task().discriminators
    real, fake = 0.1 * torch.randn(2, 3, 4000)
    one, other = discriminators.verdicts(real, 0), discriminators.verdicts(fake, 0)
    apart = hinge_discriminator_loss(one[0], other[0]) + hinge_discriminator_loss(one[1], other[1])
    torch.testing.assert_close(
        discriminators.discriminator_loss(real, fake, 0), apart + least_squares_discriminator_loss(one[2], other[2])
    )


def test_codes_that_are_never_used_come_back() -> None:
    made, _ = fitted(1)
    assert isinstance(made.model.quantizer, VectorQuantizer)
    book = made.model.quantizer.codebook
    book.embed[5] = 50.0
    book.embed_avg[5], book.cluster_size[5] = 25.0, 0.5
    trainer(1, enable_checkpointing=False).fit(made, loader(1))
    assert book.embed[5].abs().max() < 25


@pytest.fixture(scope="module")
def trained() -> CodecTask:
    return fitted(5)[0]


def test_scores_are_of_the_embedding_that_is_released(trained: CodecTask) -> None:
    """A training that ends without a validation leaves the one of its last step."""

    class Data:
        def readable(self, splits: list[str], count: int | None) -> list[tuple[str, None, list[Tensor]]]:
            return [(split, None, [batch(7).wave.flatten()]) for split in splits]

    found = []
    for kind in (0, 1):
        trained.model.eval().decoder.use(kind)
        with torch.no_grad():
            for part in trained.model.decoder.modules():
                if isinstance(part, AdaLayerNorm):
                    part.scale.weight[1] += 1
        found.append(CodecJob().evaluate(trained.model, Data(), ["a"])[0].mel)  # type: ignore[arg-type]
    assert found[0] == found[1]


def test_a_release_gives_what_the_trained_model_gives(trained: CodecTask, tmp_path: Path) -> None:
    model = trained.model.eval()
    model.decoder.use(0)
    job = CodecJob()
    job.release(tmp_path / "release", {"name": "tiny", "model": CONFIG}, model, [])
    codec = speechkit.load(tmp_path / "release")
    assert isinstance(codec, Codec)
    heard = batch(7)
    with torch.no_grad():
        codes, counts = model.encode(heard.wave, heard.wave_lengths)
        expected = model.decode(codes, counts)[0]
    found = codec.encode(heard.wave)
    assert torch.equal(found.values, codes)
    torch.testing.assert_close(codec.decode(found), expected, atol=1e-6, rtol=1e-5)
    assert isinstance(codec.model, torch.nn.Module)
    names = set(codec.model.state_dict())
    assert not [name for name in names if "parametrizations" in name]
    assert [name for name in model.state_dict() if "parametrizations" in name]  # the trained one stays as it was
    assert model.encode(heard.wave, heard.wave_lengths)[0].equal(codes)


def test_scores_and_card_of_a_release(trained: CodecTask, tmp_path: Path) -> None:
    waves = [batch(i).wave[0, : 50 * (i + 1)] for i in range(4)]
    model = folded(trained.model, CONFIG)
    model.rate = 24_000  # of the scores' spectra
    found = score(model, "some", [torch.cat([wave] * 16) for wave in waves] + [waves[0]])
    assert found.recordings == 4  # one is shorter than a spectrum's frame
    assert found.seconds == pytest.approx(8000 / 24_000)
    assert found.mel > 0
    assert 1 <= found.perplexity <= 16 * found.utilization + 1e-6
    assert found.as_dict()["split"] == "some"
    job = CodecJob()
    job.release(tmp_path / "release", {"name": "tiny", "model": CONFIG}, trained.model, [found])
    assert "| some | 4 |" in (tmp_path / "release" / "README.md").read_text()
    assert job.table([found]).row_count == 1
    with pytest.raises(ValueError, match="nothing to score in none"):
        score(model, "none", [])


def test_a_released_codec_can_be_trained_on(trained: CodecTask) -> None:
    """As with ``init=``: its weights are split again and begin as they were."""
    model = folded(trained.model, CONFIG)
    heard = batch(3)
    codes = model.encode(heard.wave, heard.wave_lengths)[0]
    again = task()
    again.model.load_state_dict(trained.model.state_dict())
    made: Callable[..., CodecTask] = CodecTask
    fresh = made(model, again.make_optimizer, again.discriminators, again.mel)
    assert isinstance(fresh.model, WavTokenizer)
    assert torch.equal(fresh.model.encode(heard.wave, heard.wave_lengths)[0], codes)


def test_a_codebook_begins_where_latents_begin_to_be_quantised() -> None:
    begun: list[bool] = []

    class Watch(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            begun.append(made.model.quantizer.begun)

    made = task(quantization_start=2, discriminator_start=3)
    trainer(4, Watch(), enable_checkpointing=False).fit(made, loader(4))
    assert begun == [False, False, True, True]


def test_an_encoder_is_drawn_anew_only_where_nothing_was_trained(trained: CodecTask) -> None:
    """Its outputs then differ more over time."""

    def spread(made: CodecTask) -> float:
        return float(made.model.eval().encoder(batch(0).wave, batch(0).wave_lengths)[0].std(1).mean())

    assert spread(task(encoder_gain=1.2)) > 3 * spread(task())
    model = folded(trained.model, CONFIG)
    expected = model.encoder.first.conv.weight.clone()
    arguments: dict[str, Any] = {"optimizer": trained.make_optimizer, "discriminators": trained.discriminators}
    again = CodecTask(model, mel=trained.mel, encoder_gain=1.2, **arguments)
    torch.testing.assert_close(again.model.encoder.first.conv.weight, expected)


def test_autocast_leaves_codes_and_phases_alone_and_a_codec_learns_in_it() -> None:
    made = task(discriminator_start=2)
    wave, lengths = batch(0).wave, batch(0).wave_lengths
    made.model.eval()
    latents, counts = made.model.encoder(wave, lengths)
    made.model.encoder.forward = lambda *_: (latents, counts)  # type: ignore[method-assign]
    codes = made.model.encode(wave, lengths)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.model.encode(wave, lengths)[0], codes)
        spectrum = made.model.decoder.head._spectrum(torch.randn(1, 3, 32, dtype=torch.bfloat16))
        assert made.model(wave, lengths).wave.dtype == torch.float32
    assert spectrum.dtype == torch.float32
    del made.model.encoder.forward
    made.train()
    fit = trainer(4, enable_checkpointing=False, precision="bf16-mixed")
    fit.fit(made, loader(4))
    assert all(parameter.isfinite().all() for parameter in made.model.parameters())


def test_gradients_in_half_precision_are_finite_where_bands_are_one_bin_wide() -> None:
    """oneDNN read memory there that nobody had written: here it is full of NaN."""
    made = DacDiscriminator((), (4,), (64,), 2)
    conv = cast(Any, made.discriminators[0]).band_convs[0][3]
    x = torch.randn(6, 2, 19, 1).to(memory_format=torch.channels_last)
    for _ in range(100):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            said = conv(x).square().mean()
        for size in (2**k for k in range(6, 17)):
            [torch.full((size + i,), torch.nan) for i in range(20)]
        said.backward()
        assert all(x.grad.isfinite().all() for x in conv.parameters())


def test_published_discriminators_are_gone_on_with_where_they_fit(caplog: pytest.LogCaptureFixture) -> None:
    theirs = {
        name: [x + 1 for x in part.state_dict().values()] for name, part in task().discriminators.named_children()
    }
    theirs["dac"] = theirs["dac"][:-1]
    made = task(published=theirs)
    for name in ("periods", "resolutions"):
        found = getattr(made.discriminators, name).state_dict().values()
        assert all(torch.equal(mine, x) for mine, x in zip(found, theirs[name], strict=True))
    assert "discriminators (dac) have other sizes than the recipe's" in caplog.text
