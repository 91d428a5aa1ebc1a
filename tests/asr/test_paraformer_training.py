"""Training of Paraformer by its recipes, and that it teaches: whole utterances and blocks, with one set of weights."""

import csv
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import speechkit
from speechkit.asr.blocks import WHOLE, Grid
from speechkit.asr.conformer_blocks import ConformerBlocks
from speechkit.asr.ctc import CtcHead
from speechkit.asr.paraformer import CifPredictor, Paraformer
from speechkit.asr.paraformer_task import ParaformerTask
from speechkit.asr.sanm_decoder import SanmDecoder
from speechkit.asr.sanm_encoder import SanmEncoder
from speechkit.fbank import KaldiFbank
from speechkit.low_frame_rate import LowFrameRate, LowFrameRateFbank
from speechkit.text import CharTokenizer
from speechkit.token_list import ListTokenizer
from tests.asr.small_paraformer import VOCAB, paraformer
from tests.asr.tiny import babble, release
from tests.test_train import Run, trained

WORDS = [
    *("data.mini_minutes=1 data.workers=0 data.batch_seconds=10 data.max_bad=0.5 data.valid_batch_seconds=10".split()),
    *("data.test=[test-mini] job.eval_utterances=1 job.max_misfits=1 trainer.accelerator=cpu".split()),
    *("trainer.devices=1 trainer.log_every_n_steps=1 +trainer.limit_val_batches=1 trainer.max_steps=3".split()),
    *("trainer.val_check_interval=3 model.encoder.dim=32 model.encoder.layers=1 model.encoder.inner=32".split()),
    *("model.decoder.layers=1 model.decoder.inner=32".split()),
]
GRID = Grid(0, 4, 2, 2, 1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Trains in this process: what it prints."""
    pytest.importorskip("espeakng_loader", reason="the embedded corpus needs espeak-ng: pip install 'speechkit[all]'")
    return lambda *words, code=0: trained(cache, monkeypatch, capsys, [*WORDS, *words], code)


def test_a_recipe_ends_with_scores_of_whole_utterances_and_streams(run: Run, tmp_path: Path) -> None:
    words = ["recipe=librispeech_paraformer", f"out={tmp_path}", "job.size=60", "task.mwer_weight=0.5"]
    said = run(*words)
    rows = list(csv.DictReader(next(tmp_path.glob("csv/*/metrics.csv")).open()))
    for name in ("cross_entropy", "length_error", "ctc", "mwer"):
        assert len([row for row in rows if row.get(f"train/{name}")]) == 3, name
    assert all(row["val/wer_nar_840"] for row in rows if row["val/wer"])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {(s["mode"], s["latency_ms"]) for s in scores} == {("offline", None), ("offline", 840), ("streaming", 840)}
    same = {s["split"]: s["wer"] for s in scores if s["latency_ms"] == 840 and s["mode"] == "offline"}
    assert all(same[s["split"]] == s["wer"] for s in scores if s["mode"] == "streaming")
    assert "nar" in said
    model = speechkit.load(tmp_path / "release")
    stream = model.stream().push(babble(3.0))
    assert stream.finish().text == model.transcribe(babble(3.0), latency_ms=840).text


def test_characters_and_half_as_long_steps(run: Run, tmp_path: Path) -> None:
    run("recipe=aishell_paraformer", f"out={tmp_path}", "data.test=[]", "callbacks.samples=null")
    assert list(tmp_path.glob("checkpoints/step3-cer*.ckpt")), "checkpoints are chosen by characters"
    model = speechkit.load(tmp_path / "release")
    assert isinstance(model.tokenizer, ListTokenizer)
    assert {len(piece.removesuffix("@@")) for piece in model.tokenizer.pieces} == {1}
    assert model.model.step_ms == 30
    assert [tuple(grid) for grid in model.model.contexts] == [WHOLE, (0, 20, 10, 4, 1)]


def test_a_conformer_takes_the_encoder_s_place(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("espeakng_loader", reason="the embedded corpus needs espeak-ng: pip install 'speechkit[all]'")
    sizes = "dim=32 layers=1 subsampling_channels=4".split()
    words = [word for word in WORDS if not word.startswith("model.encoder")]
    words += [f"model.encoder.encoder.{size}" for size in sizes]
    words += ["recipe=librispeech_paraformer_conformer", f"out={tmp_path}", "data.test=[]", "job.size=60"]
    trained(cache, monkeypatch, capsys, words, 0)
    model = speechkit.load(tmp_path / "release")
    assert isinstance(model.model.encoder, ConformerBlocks)
    assert model.latencies_ms == [880.0]
    stream = model.stream().push(babble(3.0))
    assert stream.finish().text == model.transcribe(babble(3.0), latency_ms=880).text


def test_a_recipe_does_not_begin_with_another_kind(run: Run, tmp_path: Path) -> None:
    words = ["recipe=librispeech_paraformer", f"out={tmp_path / 'run'}", f"init={release(tmp_path / 'release')}"]
    assert "that is a Recognizer, and the recipe trains a Paraformer" in run(*words, code=2)


def test_every_parameter_that_is_trained_has_a_gradient() -> None:
    """DDP waits for all of them."""
    choices: Any = {}, {"ctc_weight": 0.0}, {"sampling_ratio": 0.0}, {"ctc_weight": 0.0, "sampling_ratio": 0.0}
    for options in choices:
        model = paraformer(ctc=CtcHead(8, VOCAB)).float()
        task: Any = ParaformerTask(model, CharTokenizer("abcdefghi"), lambda p: torch.optim.SGD(p, 0.1), **options)
        task.train()
        heard = model.heard(torch.randn(2, 30, 16), torch.tensor([30, 25]))
        tokens, counts = torch.randint(0, VOCAB, (2, 4)), torch.tensor([4, 3])
        batch = SimpleNamespace(tokens=tokens, token_lengths=counts)
        task._objective(heard, batch)["loss"].backward()
        idle = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
        assert idle == set(), options


def features(tokens: list[int], looks: Tensor) -> Tensor:
    """Some steps that look like each token, a little different every time."""
    rows = [looks[token] + 0.3 * torch.randn(looks.shape[1]) for token in tokens for _ in range(random.randint(2, 4))]
    return torch.stack(rows)


def test_both_ways_to_hear_are_learned_at_once() -> None:
    torch.manual_seed(0)
    random.seed(0)
    front = LowFrameRateFbank(KaldiFbank(4000, 8), LowFrameRate(8, 2, 1))
    encoder, decoder = SanmEncoder(16, 32, 2, 2, 64, 5, dropout=0.0), SanmDecoder(6, 32, 1, 2, 64, 5, 2, 0.0, end=True)
    model = Paraformer(front, encoder, CifPredictor(32), decoder, grids=[GRID])
    task: Any = ParaformerTask(model, CharTokenizer(" abcde"), lambda p: torch.optim.Adam(p, 3e-3), ctc_weight=0.0)
    looks, optimizer = torch.randn(6, 16), torch.optim.Adam(model.parameters(), 3e-3)

    def batch(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        texts = [random.sample(range(6), random.randint(2, 6)) for _ in range(count)]  # equal neighbours sound like one
        rows = [features(text, looks) for text in texts]
        pad = torch.nn.utils.rnn.pad_sequence
        targets = pad([torch.tensor(text) for text in texts], batch_first=True)
        lengths = [torch.tensor([len(one) for one in part]) for part in (rows, texts)]
        return pad(rows, batch_first=True), lengths[0], targets, lengths[1]

    task.train()
    for step in range(200):
        x, lengths, targets, counts = batch(16)
        parts = task.losses(model.heard(x, lengths, (WHOLE, GRID)[step % 2]), targets, counts)
        optimizer.zero_grad()
        (parts["cross_entropy"] + parts["length_error"]).backward()
        optimizer.step()
    task.eval()
    x, lengths, targets, counts = batch(50)
    pairs = zip(targets.tolist(), counts.tolist(), strict=True)
    expected = [task.tokenizer.decode(row[:count]) for row, count in pairs]
    for context in (WHOLE, GRID):
        with torch.no_grad():
            said = task.decode(model.heard(x, lengths, context))
        assert sum(a == b for a, b in zip(said, expected, strict=True)) >= 30, context
