"""The codec recipes that no other test trains: two steps each, of tiny models on a second of sound."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import speechkit
from speechkit import audio, hub, train
from speechkit.codecs.codec import Codec
from speechkit.codecs.task import CodecTask
from speechkit.data.codec_module import CropDataModule
from speechkit.errors import InputError
from speechkit.release import build
from tests.asr.tiny import RATE, babble
from tests.codecs.test_task import CONFIG

WAVTOKENIZER = [
    *("data.crop_seconds=0.2 data.batch_size=2 data.valid_batch_size=2".split()),
    *("model.encoder.filters=2 model.encoder.dim=8 model.quantizer.codebook.size=8".split()),
    *("model.decoder.dim=32 model.decoder.inner=32 model.decoder.layers=1".split()),
    *("task.quantization_start=0 task.discriminator_start=1".split()),
]
S3 = [
    *("data.batch_seconds=4 data.valid_batch_seconds=4 job.tokenizer=characters job.listener.layers=1".split()),
    *("model.encoder.dim=16 model.encoder.heads=2 model.encoder.layers=1 model.encoder.memory=3".split()),
    *("task.quantization_start=1 task.flat_start=1".split()),
]
TWO_STEPS = [
    *("trainer.max_steps=2 trainer.val_check_interval=2 trainer.log_every_n_steps=1 trainer.accelerator=cpu".split()),
    *("trainer.devices=1 data.workers=0 data.test=[] job.eval_utterances=1 callbacks.samples=null".split()),
]
Shape = tuple[int, ...]


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that name a corpus of three recordings and the run's folder."""
    lines = []
    for i in range(3):
        audio.write(tmp_path / f"{i}.wav", babble(1.0, seed=i), RATE)
        lines.append(json.dumps({"id": str(i), "path": f"{i}.wav", "text": "a few words"}))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(lines))
    monkeypatch.setenv("SPEECHKIT_RUN", "")
    return [f"data.train=[{corpus}]", f"data.valid=[{corpus}]", f"out={tmp_path / 'out'}"]


@pytest.mark.parametrize(
    ("recipe", "options", "rate", "shape", "streams"),
    [
        ("libritts_wavtokenizer_40", WAVTOKENIZER, 24_000, (1, 40), False),
        ("libritts_wavtokenizer_causal", WAVTOKENIZER, 24_000, (1, 75), True),
        ("libritts_wavtokenizer_residual", [*WAVTOKENIZER, "model.quantizer.codebooks=3"], 16_000, (1, 80, 3), True),
        ("librispeech_s3_causal", S3, 16_000, (1, 25), True),
    ],
)
def test_a_recipe_trains_to_a_release_that_loads(
    recipe: str,
    options: list[str],
    rate: int,
    shape: Shape,
    streams: bool,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["speechkit.train", f"recipe={recipe}", *options, *TWO_STEPS, *words])
    train.main()
    model = speechkit.load(out / "release")
    assert model.rate == rate
    assert model.encode(torch.zeros(rate))[0].shape == shape
    assert (model.causal if isinstance(model, Codec) else model.streams) == streams
    config = yaml.safe_load((out / "release" / "config.yaml").read_text())
    assert (config["name"], config["trainer"]["max_steps"]) == (recipe, 2)
    assert len(json.loads((out / "scores.json").read_text())) == 1


def test_training_that_begins_with_a_codec_hears_at_its_rate(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = {**CONFIG, "decoder": {**CONFIG["decoder"], "kinds": 4}}
    hub.save(tmp_path / "tiny", {"model": described, "api": "speechkit.codecs.codec.Codec"}, build(described), None, "")
    rates = []

    def fit(trainer: object, task: CodecTask, data: CropDataModule, *_: object) -> None:
        rates.append((data.rate, task.model.rate))
        raise InputError("enough")

    monkeypatch.setattr(train, "_fit", fit)
    argv = ["speechkit.train", "recipe=libritts_wavtokenizer", f"init={tmp_path / 'tiny'}", *TWO_STEPS, *words]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit):
        train.main()
    assert rates == [(6000, 6000)]


def test_what_diverged_is_no_release(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = ["optim.optimizer.lr=1e30", "optim.scheduler.warmup=0"]
    argv = ["speechkit.train", "recipe=libritts_wavtokenizer", *WAVTOKENIZER, *TWO_STEPS, *rate, *words]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit):
        train.main()
    assert not (tmp_path / "out" / "release").exists()
