"""Training of ANCAT by its recipe: what is logged and released, from a Conformer's weights, and as a sweep."""

import csv
import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import speechkit
from speechkit import hub
from speechkit.asr.ancat import AncatEncoder
from speechkit.asr.ancat_job import AncatJob
from speechkit.asr.ancat_task import AncatTask, Phases
from speechkit.asr.job import RecognitionJob
from speechkit.asr.model import Recognizer
from speechkit.errors import InputError
from speechkit.release import build, build_model
from speechkit.text import CharTokenizer
from tests.asr.tiny import babble, configuration, release
from tests.test_train import Run, trained

RECIPE = {"encoder": {"left": 6, "right": 2, "mode": "free", "scheduler_dim": 4, "openness": 0.9}}
WORDS = [
    *("recipe=librispeech_ancat data.mini_minutes=1 data.workers=0 data.batch_seconds=10 data.max_bad=0.5".split()),
    *("data.valid_batch_seconds=10 data.test=[test-mini] job.ctc=false job.eval_utterances=1".split()),
    *("trainer.accelerator=cpu trainer.devices=1 trainer.log_every_n_steps=1 +trainer.limit_val_batches=1".split()),
    *("model.encoder.left=6 model.encoder.right=2 task.phases.start=1 task.phases.ramp=1 task.phases.hard=3".split()),
]


@pytest.fixture(scope="module")
def conformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of an untrained streaming Conformer that spells English; too many letters a step for CTC."""
    letters = [*" '", *string.ascii_lowercase]
    config = configuration(((6, 1), (6, 0)))
    config["model"]["front"]["sample_rate"] = 16_000
    config["model"]["ctc"] = None
    for head in ("predictor", "joiner"):
        config["model"][head]["vocab_size"] = len(letters)
    model = build(config["model"])
    folder = tmp_path_factory.mktemp("conformer") / "release"
    return hub.save(folder, config, model, CharTokenizer(letters), "# Random")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(cache: Path, conformer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Trains in this process: what it prints."""
    pytest.importorskip("espeakng_loader", reason="the embedded corpus needs espeak-ng: pip install 'speechkit[all]'")
    begin = [*WORDS, f"init={conformer}"]
    return lambda *words, code=0: trained(cache, monkeypatch, capsys, [*begin, *words], code)


def logged(out: Path) -> dict[str, list[float]]:
    rows = [row for file in out.glob("csv/*/metrics.csv") for row in csv.DictReader(file.open())]
    return {name: [float(row[name]) for row in rows if row.get(name)] for name in rows[0]}


def test_a_conformer_becomes_an_ancat_whose_wait_is_measured(run: Run, conformer: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = run(f"out={out}", "trainer.max_steps=4", "trainer.val_check_interval=2", "optim.optimizer.lr=1e-4")
    assert "gates would be hard" not in said
    found = logged(out)
    for name in ("train/algorithmic_ms", "train/compute_ms", "train/openness"):
        assert len(found[name]) == 4
    assert all(0 < x <= 320 for x in found["train/algorithmic_ms"])  # 2 layers of 2 steps of 80 ms
    assert found["val/settled_wer"][0] == float("inf")
    assert found["val/settled_wer"][-1] == found["val/wer"][-1]
    assert found["val/algorithmic_ms"]
    scores = json.loads((out / "scores.json").read_text())
    assert all(s["latency_ms"] == 320 and 0 <= s["wait"]["mean"] <= 320 for s in scores)
    assert f"{scores[0]['wait']['mean']:.0f} (to 320)" in (out / "release" / "README.md").read_text()
    assert "(to" in said
    weights, before = (load_file(folder / "model.safetensors") for folder in (out / "release", conformer))
    new = {name for name in weights if name not in before}
    assert all(name.startswith("encoder.schedulers.") for name in new)
    assert before.keys() <= weights.keys()
    model = speechkit.load(out / "release")
    assert isinstance(model.model.encoder, AncatEncoder)
    stream = model.stream().push(babble(3.0))
    assert stream.finish().text == model.transcribe(babble(3.0)).text
    assert model.latencies_ms == [320.0]


def test_runs_of_a_sweep_have_folders_of_their_own_and_do_not_end_with_a_refused_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecognitionJob, "evaluate", lambda *_: [])
    short = ["trainer.max_steps=1", "data.valid=[]", "data.test=[]", "callbacks.best=null", "callbacks.samples=null"]
    words = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "task.algorithmic_weight=0,-1,2", "-m"]
    said = run(f"out={tmp_path}", *short, *words, code=2)
    assert "weights and free steps must not be negative" in said
    assert "of the sweep these runs were refused: 1" in said
    configs = [yaml.safe_load((tmp_path / number / "config.yaml").read_text()) for number in "02"]
    assert [config["task"]["algorithmic_weight"] for config in configs] == [0, 2]
    assert all((tmp_path / number / "release" / "model.safetensors").is_file() for number in "02")
    assert f"{tmp_path / '0'} holds a run: resume=" in run(f"out={tmp_path}", *short, *words, code=2)
    assert "a sweep begins new runs" in run(f"resume={tmp_path / '0'}", *words, code=2)


def test_a_run_that_ends_before_gates_are_hard_says_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecognitionJob, "evaluate", lambda *_: [])
    short = ["trainer.max_steps=1", "data.valid=[]", "data.test=[]", "callbacks.best=null", "callbacks.samples=null"]
    sentence = "gates would be hard from step 3 on (task.phases.hard), but training ends at step 1"
    assert sentence in run(f"out={tmp_path}", *short)


def test_only_schedulers_may_be_missing(tmp_path: Path) -> None:
    begun = AncatJob().adopt(hub.read(release(tmp_path / "whole")), RECIPE)
    model = build_model(begun)
    assert isinstance(model, Recognizer)
    assert isinstance(model.encoder, AncatEncoder)
    assert model.encoder.adaptive == (6, 2)
    again = AncatJob().adopt(begun, {"encoder": {**RECIPE["encoder"], "right": 5}})
    assert again is begun  # an ANCAT keeps what it was trained with
    lacking = hub.read(release(tmp_path / "lacking"))
    tensors = {name: x for name, x in lacking.tensors.items() if name != "encoder.layers.0.norm_out.weight"}
    with pytest.raises(InputError, match=r"they lack encoder\.layers\.0\.norm_out\.weight$"):
        build_model(AncatJob().adopt(lacking._replace(tensors=tensors), RECIPE))
    surplus = lacking._replace(tensors={**lacking.tensors, "encoder.extra": torch.zeros(1)})
    with pytest.raises(InputError, match=r"they have unknown encoder\.extra$"):
        build_model(AncatJob().adopt(surplus, RECIPE))


def test_what_cannot_stream_is_no_beginning(tmp_path: Path) -> None:
    centred = hub.read(release(tmp_path / "centred", contexts=((-1, -1),), causal=False))
    with pytest.raises(InputError, match=r"can only begin with a causal Conformer or another ANCAT: .*centred is none"):
        AncatJob().adopt(centred, RECIPE)


def test_gates_sharpen_and_then_are_hard_while_weights_rise() -> None:
    phases = Phases(start=10, ramp=10, hard=30, temperatures=(1.0, 0.25))
    assert [phases.gating(step).temperature for step in (0, 10, 20, 30, 90)] == pytest.approx([1, 1, 0.5, 0.25, 0.25])
    assert [phases.gating(step).hard for step in (0, 29, 30)] == [False, False, True]
    assert [phases.gating(step).open for step in (0, 9, 10)] == [True, True, False]
    assert [phases.share(step) for step in (0, 10, 15, 20, 90)] == [0, 0, 0.5, 1, 1]
    assert [Phases(start=3, hard=3).share(step) for step in (2, 3)] == [0, 1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"start": 5, "hard": 4}, "latency must count before gates are hard, got step 5 for it and 4 for them"),
        ({"temperatures": (1.0,)}, r"temperatures must be two numbers over 0, got \[1.0\]"),
        ({"temperatures": (1.0, 0.0)}, "temperatures must be two numbers over 0"),
        ({"noise": -1.0}, "noise and ramp must not be negative"),
    ],
)
def test_phases_that_cannot_be_are_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Phases(**options)


def task(model: Recognizer, **options: Any) -> AncatTask:
    return AncatTask(model, CharTokenizer([" ", *"abcdefgh"]), torch.optim.AdamW, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"penalty": "step"}, "penalty must be one of path, connection, got 'step'"),
        ({"algorithmic_weight": -1.0}, "weights and free steps must not be negative"),
        ({"real_time_factor": 0.0}, "the real-time factor over 0"),
    ],
)
def test_tasks_that_cannot_be_are_one_sentence(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    model = build_model(AncatJob().adopt(hub.read(release(tmp_path / "release")), RECIPE))
    with pytest.raises(ValueError, match=sentence):
        task(model, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="trains an AncatEncoder, got ConformerEncoder"):
        task(build_model(hub.read(release(tmp_path / "other"))))  # type: ignore[arg-type]


def test_penalties_differ_where_a_longer_path_hides_a_connection(tmp_path: Path) -> None:
    model = build_model(AncatJob().adopt(hub.read(release(tmp_path / "release")), RECIPE))
    gates, lengths = torch.zeros(2, 1, 8, 2), torch.tensor([8])
    gates[0, 0, 0, 1] = 1.0
    hidden = gates.clone()
    hidden[1, 0, 0, 1] = 1.0
    for penalty, costs in (("path", False), ("connection", True)):
        latency = task(model, penalty=penalty).latency  # type: ignore[arg-type]
        assert bool(latency(hidden, lengths)[0] > latency(gates, lengths)[0]) is costs
    figures = task(model).latency(hidden, lengths)[1]  # type: ignore[arg-type]
    assert float(figures["algorithmic_ms"]) == pytest.approx(80 * (2 + 1) / 8)
    assert float(figures["openness"]) == pytest.approx(2 / (2 * (7 + 6)))
