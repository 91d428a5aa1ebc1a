"""`python -m speechkit.train recipe=libritts_wavtokenizer` from end to end, by two processes, on a tiny codec."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning import Callback, LightningModule, Trainer

import speechkit
from speechkit.codecs.codec import Codec
from tests.paths import ROOT

pytest.importorskip("espeakng_loader", reason="the embedded corpus needs espeak-ng: pip install 'speechkit[all]'")

WORDS = [
    *("recipe=libritts_wavtokenizer data.mini_minutes=1 data.workers=0 data.batch_size=2".split()),
    *("data.crop_seconds=0.2 data.max_bad=0.5 data.test=[test-mini] job.eval_utterances=1".split()),
    *("model.encoder.filters=2 model.encoder.dim=8".split()),
    *("model.quantizer.codebook.size=16 model.decoder.dim=32 model.decoder.inner=32 model.decoder.layers=1".split()),
    *("task.quantization_start=1 task.discriminator_start=2 trainer.max_steps=4 trainer.val_check_interval=2".split()),
    *("+trainer.limit_val_batches=1 trainer.log_every_n_steps=1 callbacks.last.every_n_train_steps=2".split()),
    "trainer.accelerator=cpu",
]
TWO = ["trainer.devices=2", "trainer.strategy=ddp_find_unused_parameters_true"]


class Agree(Callback):
    """Writes what each process ends with: its weights, and the buffers of the codebook."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = {name: float(value.double().sum()) for name, value in pl_module.state_dict().items()}
        (self.folder / f"rank{trainer.global_rank}").write_text(json.dumps([trainer.global_step, total]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    out = folder / "out"
    environment = {k: v for k, v in os.environ.items() if k != "SPEECHKIT_RUN"} | {"SPEECHKIT_CACHE": str(folder)}
    agree = [f"+callbacks.test._target_={__name__}.Agree", f"+callbacks.test.folder={folder}"]
    done = subprocess.run(
        [sys.executable, "-m", "speechkit.train", *WORDS, *TWO, *agree, f"out={out}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out, " ".join(done.stdout.split())


def test_two_processes_train_one_codec(run: tuple[Path, str]) -> None:
    ends = [json.loads((run[0].parent / f"rank{rank}").read_text()) for rank in (0, 1)]
    assert ends[0] == ends[1]
    assert ends[0][0] == 4  # steps of the codec: the discriminators' are not counted
    assert ends[0][1]["model.quantizer.codebook.inited"] == 1


def test_it_ends_with_scores_and_a_release_that_loads(run: tuple[Path, str]) -> None:
    out, said = run
    scores = {s["split"]: s for s in json.loads((out / "scores.json").read_text())}
    assert scores.keys() == {"dev-mini", "test-mini"}
    codec = speechkit.load(out / "release")
    assert isinstance(codec, Codec)
    codes = codec.encode(torch.zeros(24_000))
    assert codes.values.shape == (1, 75)
    assert codec.decode(codes).shape == (1, 24_000)
    assert f"use it: speechkit codec encode FILE.wav -o FILE.skc --model {out / 'release'}" in said
    assert said.count("release folder: ") == 1
    config = yaml.safe_load((out / "release" / "config.yaml").read_text())
    assert config["api"] == "speechkit.codecs.codec.Codec"
    assert "vocab_size" not in config


def test_what_it_logs_can_be_seen_and_heard(run: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(run[0] / "tensorboard"), {"images": 0, "audio": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    for kind in ("original", "reconstruction"):
        assert f"sample0/{kind}" in tags["audio"]
        assert f"sample1/{kind}_mel" in tags["images"]
    assert len(events.Audio("sample0/original")) == 1
    assert len(events.Audio("sample0/reconstruction")) >= 2
    rows = [row for file in run[0].glob("csv/*/metrics.csv") for row in csv.DictReader(file.open())]
    names = {name for row in rows for name, value in row.items() if value}
    assert {"train/mel", "train/discriminators", "val/mel", "val/utilization", "val/perplexity"} <= names


def test_the_best_checkpoints_are_named_by_their_mel_distance(run: tuple[Path, str]) -> None:
    names = sorted(path.name for path in (run[0] / "checkpoints").iterdir())
    assert any(name.startswith("step2-mel") for name in names)
    assert "last.ckpt" in names
