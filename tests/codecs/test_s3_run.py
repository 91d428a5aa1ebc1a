"""`python -m speechkit.train recipe=librispeech_s3` from end to end, by two processes, on a tiny tokenizer."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import speechkit
from speechkit.codecs.s3 import SpeechTokenizer
from tests.paths import ROOT

pytest.importorskip("espeakng_loader", reason="the embedded corpus needs espeak-ng: pip install 'speechkit[all]'")

WORDS = [
    *("recipe=librispeech_s3 data.mini_minutes=1 data.workers=0 data.batch_seconds=10 data.max_bad=0.5".split()),
    *("data.valid_batch_seconds=10 data.test=[test-mini] job.size=60 job.max_misfits=0.5".split()),
    *("job.eval_utterances=2 job.listener.layers=1 job.listener.writer_layers=1".split()),
    *("model.encoder.dim=16 model.encoder.heads=2 model.encoder.layers=1 model.encoder.memory=3".split()),
    *("task.quantization_start=1 task.flat_start=2 task.attention_weight=0.5".split()),
    *("trainer.accelerator=cpu trainer.max_steps=4 trainer.val_check_interval=2".split()),
    *("+trainer.limit_val_batches=1 trainer.log_every_n_steps=1 callbacks.last.every_n_train_steps=2".split()),
]
TWO = ["trainer.devices=2", "+trainer.strategy=ddp"]


def train(folder: Path, *words: str) -> str:
    """What a run printed."""
    environment = {k: v for k, v in os.environ.items() if k != "SPEECHKIT_RUN"} | {"SPEECHKIT_CACHE": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", "speechkit.train", *WORDS, *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Of a tokenizer with a codebook, which two processes train: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    agree = ["+callbacks.test._target_=tests.codecs.test_training.Agree", f"+callbacks.test.folder={folder}"]
    vector = ["model=s3_vq", "model.quantizer.codebook.size=12"]
    return folder / "out", train(folder, *TWO, *agree, *vector, f"out={folder / 'out'}")


def test_two_processes_train_one_tokenizer(run: tuple[Path, str]) -> None:
    ends = [json.loads((run[0].parent / f"rank{rank}").read_text()) for rank in (0, 1)]
    assert ends[0] == ends[1]
    assert ends[0][0] == 4
    assert ends[0][1]["model.quantizer.codebook.inited"] == 1


def test_it_ends_with_scores_through_codes_and_a_release_that_loads(run: tuple[Path, str]) -> None:
    out, said = run
    scores = json.loads((out / "scores.json").read_text())
    assert {(s["split"], s["decoder"]) for s in scores} == {
        (split, decoder) for split in ("dev-mini", "test-mini") for decoder in ("ctc", "attention")
    }
    assert all(0 < s["utilization"] <= 1 and s["bits_per_second"] == pytest.approx(89.6, abs=0.1) for s in scores)
    tokenizer = speechkit.load(out / "release")
    assert isinstance(tokenizer, SpeechTokenizer)
    assert tokenizer.encode(torch.zeros(16_000))[0].shape == (1, 25)
    assert f"use it: speechkit codec encode FILE.wav -o FILE.skc --model {out / 'release'}" in said
    config = yaml.safe_load((out / "release" / "config.yaml").read_text())
    assert config["api"] == "speechkit.codecs.s3.SpeechTokenizer"
    rows = [row for file in out.glob("csv/*/metrics.csv") for row in csv.DictReader(file.open())]
    names = {name for row in rows for name, value in row.items() if value}
    assert {
        "train/ctc",
        "train/attention",
        "val/wer",
        "val/cer",
        "val/cer_attention",
        "val/utilization",
        "val/perplexity",
    } <= names


def test_another_run_goes_on_from_the_release(run: tuple[Path, str], tmp_path: Path) -> None:
    words = ["optim.optimizer.lr=0", f"out={tmp_path / 'out'}", "trainer.max_steps=1", "data.valid=[]", "data.test=[]"]
    train(run[0].parent, f"init={run[0] / 'release'}", *words)
    wave = torch.randn(16_000)
    before, after = (speechkit.load(folder / "release") for folder in (run[0], tmp_path / "out"))
    for name, value in before.model.encoder.state_dict().items():
        assert torch.equal(after.model.encoder.state_dict()[name], value), name
    assert before.encode(wave)[0].shape == after.encode(wave)[0].shape
