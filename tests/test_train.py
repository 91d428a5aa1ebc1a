"""`python -m speechkit.train` from end to end, on a minute of the embedded corpus and a model of no use."""

import csv
import io
import json
import os
import pickle
import re
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lightning import Callback, Trainer
from safetensors.torch import load_file

import speechkit
from speechkit import audio, train
from speechkit.asr.job import RecognitionJob
from speechkit.checkpoints import last_checkpoint
from speechkit.text import train_characters
from tests.asr.tiny import babble
from tests.paths import ROOT, hear_ctrl_c

pytest.importorskip("espeakng_loader", reason="the embedded corpus needs espeak-ng: pip install 'speechkit[all]'")

MODEL = (
    "model.encoder.dim=16 model.encoder.layers=1 model.encoder.heads=2 model.encoder.subsampling_channels=4 "
    "model.encoder.contexts=[[8,1],[8,0]] model.predictor.dim=8 model.joiner.dim=8"
).split()
WORDS = [
    *("recipe=librispeech_conformer data.mini_minutes=1 data.workers=0 data.batch_seconds=10".split()),
    *("data.valid_batch_seconds=10 data.max_bad=0.5 data.test=[test-mini]".split()),
    *("job.size=60 job.max_misfits=0.5 job.eval_utterances=1".split()),
    *("trainer.accelerator=cpu trainer.devices=1 trainer.max_steps=4 trainer.val_check_interval=2".split()),
    *("+trainer.limit_val_batches=1 trainer.log_every_n_steps=1".split()),
]
Run = Callable[..., str]


class Signal(Callback):
    """Sends this process, or all of its group as a terminal does, a signal after a training step."""

    def __init__(self, step: int, number: int, group: bool = False) -> None:
        self.step, self.number, self.group = step, number, group

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            os.kill(0 if self.group else os.getpid(), self.number)


class FullDisk(Callback):
    """From a training step on, no file grows over so many bytes."""

    def __init__(self, step: int, size: int) -> None:
        self.step, self.size = step, size

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class Waves(Callback):
    """Writes down what each training step heard."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(self, trainer: Trainer, task: object, outputs: object, batch: object, *_: object) -> None:
        with self.path.open("a") as file:
            file.write(f"{trainer.global_step} {' '.join(batch.ids)}\n")  # type: ignore[attr-defined]


def callback(kind: str, **arguments: object) -> list[str]:
    return [f"+callbacks.test._target_=tests.test_train.{kind}"] + [
        f"+callbacks.test.{name}={value}" for name, value in arguments.items()
    ]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the corpus is made, once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Trains in this process: what it prints."""
    return lambda *words, code=0: trained(cache, monkeypatch, capsys, [*WORDS, *MODEL, *words], code)


def trained(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], code: int
) -> str:
    with monkeypatch.context() as patch:
        patch.setenv("SPEECHKIT_CACHE", str(cache))
        patch.setenv("SPEECHKIT_RUN", "")
        patch.setattr(sys, "argv", ["speechkit.train", *words])
        capsys.readouterr()
        if code:
            with pytest.raises(SystemExit) as ended:
                train.main()
            assert ended.value.code == code
        else:
            train.main()
    printed = capsys.readouterr()
    return printed.err if code else printed.out


def process(cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Trains in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "SPEECHKIT_RUN"} | {"SPEECHKIT_CACHE": str(cache)}
    command = [sys.executable, "-m", "speechkit.train", *WORDS, *MODEL, *words]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        preexec_fn=hear_ctrl_c,
        start_new_session=True,
    )


def losses(out: Path) -> dict[int, float]:
    """The training loss of every step, over all starts of a run."""
    rows = [row for file in sorted(out.glob("csv/*/metrics.csv")) for row in csv.DictReader(file.open())]
    return {int(row["step"]): float(row["train/loss"]) for row in rows if row.get("train/loss")}


# 7 batches an epoch; drawn are contexts, dropout, SpecAugment (which the mini block leaves out) and speeds.
EXACT = [
    *("trainer.max_steps=10 trainer.val_check_interval=3 callbacks.last.every_n_train_steps=2".split()),
    *("task.spec_augment._target_=speechkit.nn.specaugment.SpecAugment task.spec_augment.freq_width=15".split()),
]


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """An unbroken run: its folder, and what it printed to standard output and standard error."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = process(cache, f"out={out}", *EXACT)
    assert done.returncode == 0, done.stderr
    return out, done.stdout, done.stderr


def test_a_killed_run_goes_on_as_if_it_had_not_been(
    cache: Path, run: Run, whole: tuple[Path, str, str], tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    for step, where in ((5, f"out={out}"), (9, f"resume={out}")):  # in mid-epoch, and in mid-epoch of the next one
        killed = process(cache, *EXACT, where, *callback("Signal", step=step, number=int(signal.SIGKILL)))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    run(*EXACT, f"resume={out}")
    expected, found = (load_file(folder / "release" / "model.safetensors") for folder in (whole[0], out))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert (out / "scores.json").is_file()


def test_a_run_ends_with_scores_a_release_and_the_command_that_uses_it(whole: tuple[Path, str, str]) -> None:
    out, said, _ = whole
    plain = " ".join(said.split())
    assert "no data.root given: using the embedded corpus; the recipe's mini block applies" in plain
    steps = yaml.safe_load((out / "config.yaml").read_text())["trainer"]["max_steps"]
    assert re.search(rf"mini block applies: .*trainer: .*max_steps: {steps} ", plain)
    assert "WER %" in plain
    assert "test-mini: scoring 1 utterances" in plain
    assert "evaluation" in plain
    assert f"release folder: {out / 'release'}" in plain
    assert f"use it: speechkit transcribe --model {out / 'release'} FILE.wav" in plain
    scores = json.loads((out / "scores.json").read_text())
    found = {(s["split"], s["decoder"], s["latency_ms"], s["mode"]) for s in scores}
    assert found == {
        (split, decoder, latency, mode)
        for split in ("dev-mini", "test-mini")
        for decoder in ("ctc", "rnnt")
        for latency in (0.0, 80.0)
        for mode in ("offline", "streaming")
    }


def test_the_library_below_says_what_it_uses_and_does_not_advertise(whole: tuple[Path, str, str]) -> None:
    said = whole[1] + whole[2]
    assert "GPU available: " in said
    assert "Tip:" not in said
    assert "TPU" not in said


def test_off_a_terminal_progress_is_plain_lines(whole: tuple[Path, str, str]) -> None:
    assert "\x1b[" not in whole[1]
    assert "\r" not in whole[1]
    assert re.search(r"Epoch 0 .*\d/\d", whole[1])
    assert "val/wer" in whole[1]
    assert re.search(r"Epoch -\d", whole[1]) is None


def test_the_release_transcribes(whole: tuple[Path, str, str], cache: Path) -> None:
    model = speechkit.load(whole[0] / "release")
    file = next(cache.rglob("test-mini/**/*.flac"))
    assert isinstance(model.transcribe(file).text, str)
    assert model.latencies_ms == [80.0, 0.0]


def test_words_of_the_command_line_win_over_the_mini_block(whole: tuple[Path, str, str]) -> None:
    config = yaml.safe_load((whole[0] / "config.yaml").read_text())
    assert config["task"]["spec_augment"]["freq_width"] == 15
    assert config["data"]["transform"]["speeds"] == [0.9, 1.0, 1.1]
    assert config["model"]["predictor"]["dropout"] == 0.1  # of the mini block
    assert config["model"]["encoder"]["dim"] == 16
    assert config["trainer"]["max_steps"] == 10
    assert config["data"]["batch_seconds"] == 10
    assert config["data"]["train"] == ["train-mini"]  # of the mini block
    assert config["optim"]["scheduler"]["_target_"] == "speechkit.schedule.WarmupCosine"
    assert "dim" not in config["optim"]["scheduler"]
    assert "mini" not in config


def test_samples_are_logged(whole: tuple[Path, str, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(whole[0] / "tensorboard"), {"images": 0, "audio": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    assert {"sample/features", "sample/ctc", "sample/attention"} <= set(tags["images"])
    assert tags["audio"] == ["sample/audio"]
    assert {"train/loss", "val/loss", "val/wer", "train/audio_hours_per_hour"} <= set(tags["scalars"])
    assert {f"sample/{name}/text_summary" for name in ("reference", "ctc", "rnnt")} <= set(tags["tensors"])
    assert len(events.Images("sample/ctc")) >= 3


def test_sigterm_leaves_a_checkpoint(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(f"out={out}", *callback("Signal", step=2, number=int(signal.SIGTERM)), code=128 + signal.SIGTERM)
    checkpoint = last_checkpoint(out)
    assert checkpoint is not None
    assert torch.load(checkpoint, weights_only=True)["global_step"] in (2, 3)


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(cache: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = callback("Signal", step=2, number=int(signal.SIGINT), group=True)
    done = process(cache, f"out={out}", "data.workers=1", *words)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("interrupted"))
    words = shlex.split(line.split("go on with: ")[1])
    assert words[:4] == ["python", "-m", "speechkit.train", "recipe=librispeech_conformer"]
    assert words[-1] == f"resume={out}"
    checkpoint = last_checkpoint(out)
    assert checkpoint is not None
    assert torch.load(checkpoint, weights_only=True)["global_step"] in (2, 3)  # signals take their time
    said = run(f"resume={out}")
    assert "use it: " in said
    assert losses(out).keys() == {0, 1, 2, 3}  # what was logged before is kept, and no step done twice


def test_two_processes_train_one_model(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    two = ["trainer.devices=2", "+trainer.strategy=ddp"]
    done = process(cache, f"out={out}", *two, *callback("Agree", folder=tmp_path))
    assert done.returncode == 0, done.stderr
    sums = [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)]
    assert sums[0] == sums[1]
    assert sums[0].startswith(str(out))
    assert done.stdout.count("release folder: ") == 1
    assert speechkit.load(out / "release").latencies_ms == [80.0, 0.0]


class Agree(Callback):
    """Writes the weights that each process ends with."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_end(self, trainer: Trainer, task: torch.nn.Module) -> None:
        total = [float(p.double().sum()) for p in task.parameters()]
        text = f"{os.environ['SPEECHKIT_RUN']} {trainer.global_step} {total}"
        (self.folder / f"rank{trainer.global_rank}").write_text(text)


def test_accumulated_gradients_count_as_one_step(run: Run, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    run(
        f"out={tmp_path / 'run'}", "trainer.accumulate_grad_batches=3", "trainer.max_steps=2",
        "trainer.val_check_interval=6", *callback("Waves", path=heard),
    )  # fmt: skip
    assert [line.split()[0] for line in heard.read_text().splitlines()] == ["0", "0", "1", "1", "1", "2"]


@pytest.mark.parametrize("step", [3, 0])
def test_a_full_disk_leaves_the_former_checkpoint(cache: Path, tmp_path: Path, step: int) -> None:
    out = tmp_path / "run"
    done = process(cache, f"out={out}", *callback("FullDisk", step=step, size=40_000))
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "File too large" in errors[0]
    assert "Traceback" not in done.stderr
    left = list((out / "checkpoints").iterdir()) if step else []
    assert len(left) == (1 if step else 0)
    for path in left:
        assert torch.load(path, weights_only=True)["global_step"] == 2


def test_a_checkpoint_with_code_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").touch()
    marker = tmp_path / "marker"

    class Explosive:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (marker,)

    file = io.BytesIO()
    torch.save({"state_dict": {"w": torch.zeros(1)}, "callbacks": Explosive()}, file)
    for content in (file.getvalue(), pickle.dumps(Explosive(), protocol=2), file.getvalue()[:200]):
        (tmp_path / "checkpoints" / "last.ckpt").write_bytes(content)
        said = run(f"resume={tmp_path}", code=2)
        assert "last.ckpt is not a checkpoint that can be read" in said
        assert "weights_only" not in said  # no advice to run what is in it
        assert not marker.exists()


def test_a_checkpoint_of_another_model_is_refused(run: Run, whole: tuple[Path, str, str]) -> None:
    for word in ("model.encoder.dim=32", "model.encoder.dropout=0.7"):
        said = run(f"resume={whole[0]}", word, code=2)
        assert re.search(r"the run in \S+ has another model: model\.encoder\.(dim|dropout) is", said)


def test_fine_tuning_begins_with_the_model_given(run: Run, whole: tuple[Path, str, str], tmp_path: Path) -> None:
    out, release = tmp_path / "tuned", whole[0] / "release"
    run(f"init={release}", f"out={out}", "model.encoder.dropout=0.3", "trainer.max_steps=1", "optim.optimizer.lr=0")
    expected, found = (load_file(folder / "model.safetensors") for folder in (release, out / "release"))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert (out / "release" / "tokenizer.model").read_bytes() == (release / "tokenizer.model").read_bytes()
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (release, out / "release")]
    assert configs[1]["model"]["encoder"].pop("dropout") == 0.3
    configs[0]["model"]["encoder"].pop("dropout")
    assert configs[0]["model"] == configs[1]["model"]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("model.encoder.dim=32", "the parts of a recogniser must fit"),
        ("model=streaming_conformer_large", "the model of init=... has its sizes: leave model=... out"),
        ("model.encoder.no_such=1", "no_such"),
    ],
)
def test_fine_tuning_refuses_another_model(
    run: Run, whole: tuple[Path, str, str], tmp_path: Path, word: str, sentence: str
) -> None:
    assert sentence in run(f"init={whole[0] / 'release'}", f"out={tmp_path / 'tuned'}", word, code=2)


def test_a_release_does_not_say_where_its_tokenizer_lay(run: Run, whole: tuple[Path, str, str], tmp_path: Path) -> None:
    run(f"job.tokenizer={whole[0] / 'tokenizer'}", f"out={tmp_path / 'a'}", "trainer.max_steps=1")
    text = (tmp_path / "a" / "release" / "config.yaml").read_text()
    assert str(whole[0].parent) not in text
    assert "tokenizer:" not in text
    assert speechkit.load(tmp_path / "a" / "release").tokenizer.vocab_size == 60


def test_characters_that_do_not_fit_are_said_and_a_transducer_takes_them(run: Run, tmp_path: Path) -> None:
    said = run("job.tokenizer=characters", "job.max_misfits=0.01", f"out={tmp_path / 'a'}", code=2)
    assert "have more tokens than the encoder has steps" in said
    assert "model.ctc=null job.ctc=false" in said
    out = tmp_path / "b"
    alone = ["model.ctc=null", "job.ctc=false", "trainer.max_steps=2"]
    run("job.tokenizer=characters", "job.max_misfits=0.01", f"out={out}", *alone)
    assert speechkit.load(out / "release").model.decoders == ["rnnt"]


def test_an_interrupted_evaluation_does_not_cost_the_release(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RecognitionJob, "evaluate", interrupted)
    run("trainer.max_steps=1", f"out={tmp_path}", code=130)
    assert speechkit.load(tmp_path / "release").latencies_ms == [80.0, 0.0]
    assert "| split |" not in (tmp_path / "release" / "README.md").read_text()


def test_texts_that_a_given_tokenizer_cannot_spell_are_named(run: Run, tmp_path: Path) -> None:
    train_characters(["the price is"], tmp_path / "tokenizer")
    said = run(f"job.tokenizer={tmp_path / 'tokenizer'}", f"out={tmp_path / 'a'}", "data.max_bad=0.01", code=2)
    assert re.search(r"error: \d+ of \d+ training texts have no tokens, as \d+-1-\d+: .*", said)
    assert "Traceback" not in said


def test_broken_test_files_do_not_cost_the_release(run: Run, tmp_path: Path) -> None:
    for name in ("good", "cut"):
        audio.write(tmp_path / f"{name}.wav", babble(2.0))
    cut = tmp_path / "cut.wav"
    cut.write_bytes(cut.read_bytes()[:40_000])  # its header is good
    manifests = {"some": ["good", "cut"], "none": ["cut"]}
    for split, names in manifests.items():
        lines = [json.dumps({"id": name, "path": f"{name}.wav", "text": "a word"}) for name in names]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    test = ",".join(str(tmp_path / f"{split}.jsonl") for split in manifests)
    out = tmp_path / "run"
    words = ["trainer.max_steps=1", "data.valid=[]", f"data.test=[{test}]", "job.eval_utterances=null"]
    said = run(f"out={out}", *words)
    assert speechkit.load(out / "release").latencies_ms == [80.0, 0.0]
    scores = json.loads((out / "scores.json").read_text())
    assert {(s["split"], s["words"]) for s in scores} == {(str(tmp_path / "some.jsonl"), 2)}
    some, none = said.split("some.jsonl: scoring 1 utterances")
    assert some.count("cut.wav") == 1
    assert "skipped: " in some
    assert f"not scored: {tmp_path / 'none.jsonl'} has no utterance that can be used" in none


def test_a_test_split_that_is_not_there_is_said_before_training(run: Run, tmp_path: Path) -> None:
    assert "absent.jsonl" in run(f"out={tmp_path}", f"data.test=[{tmp_path / 'absent.jsonl'}]", code=2)
    assert not (tmp_path / "tokenizer").exists()


def test_a_run_shorter_than_a_checkpoint_is_due_leaves_its_last(run: Run, tmp_path: Path) -> None:
    run(f"out={tmp_path}", "trainer.max_steps=1", "data.valid=[]", "data.test=[]")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("seed=abc", "seed must be a whole number, got 'abc'"),
        ("seed=-1", "seed must be a whole number from 0 to 4294967295, got -1"),
        ("out=null", "out must be a text, got null"),
        ("data.workers=-1", "data cannot be built as configured: num_workers option should be non-negative; "),
        ("data.workers=many", "data.workers must be a whole number, got 'many'"),
        ("data.batch_seconds=-3", "Batches need a positive batch_seconds"),
        ("data.train=5", "data.train must be a list of texts, got 5"),
        ("job.eval_utterances=all", "job.eval_utterances must be a whole number or null, got 'all'"),
        ("model.encoder.dim=33", "model.encoder cannot be built as configured: "),
        ("model.encoder.layers=-1", "model.encoder cannot be built as configured: "),
        ("model.encoder.heads=0", "model.encoder cannot be built as configured: "),
        ("model.encoder=null", "model.encoder must be made by a _target_ (ConformerEncoder), got null"),
        ("+model.encoder.size=3", "model.encoder cannot be built as configured: "),
        ("optim.optimizer.lr=abc", "optim.optimizer.lr must be a number, got 'abc'"),
        ("optim.optimizer.lr=-1", "optim cannot be built as configured: Invalid learning rate: -1"),
        ("trainer.max_steps=abc", "trainer.max_steps must be a whole number, got 'abc'"),
        ("trainer.max_steps=-5", "trainer cannot be built as configured: `max_steps` must be "),
        ("trainer.accelerator=abacus", "trainer cannot be built as configured: You selected an invalid accelerator"),
        ("trainer.val_check_interval=often", "trainer cannot be built as configured: Invalid time format"),
        ("callbacks.best.save_top_k=some", "callbacks.best.save_top_k must be a whole number, got 'some'"),
    ],
)
def test_a_value_that_cannot_be_is_one_sentence(run: Run, tmp_path: Path, word: str, sentence: str) -> None:
    said = run(f"out={tmp_path / 'run'}", word, code=2)
    assert "Traceback" not in said
    assert [line[7 : 7 + len(sentence)] for line in said.splitlines() if line.startswith("error: ")] == [sentence]


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(run: Run, tmp_path: Path) -> None:
    said = run(f"out={tmp_path / 'run'}", "trainer.accelerator=gpu", code=2)
    assert said.splitlines()[-1] == "error: trainer cannot be built as configured: No supported gpu backend found!"


class Mistaken(Callback):
    """A bug that shows while training runs."""

    def on_train_batch_end(self, *_: object) -> None:
        int("a bug")


def test_a_bug_in_training_keeps_its_traceback(run: Run, tmp_path: Path) -> None:
    said = run(f"out={tmp_path / 'run'}", *callback("Mistaken"), code=1)
    assert "in on_train_batch_end" in said
    assert "ValueError: invalid literal for int() with base 10: 'a bug'" in said


def test_a_run_that_is_not_there_is_not_resumed(run: Run, tmp_path: Path) -> None:
    said = run(f"resume={tmp_path / 'mistyped'}", code=2)
    assert "there is no run to go on with" in said
    assert not (tmp_path / "mistyped").exists()
    (tmp_path / "config.yaml").touch()
    said = run(f"resume={tmp_path}", "trainer.max_steps=1", "data.valid=[]", "data.test=[]")
    assert "holds no checkpoint yet: training begins at step 0" in said


def test_a_job_says_that_it_is_not_prepared() -> None:
    with pytest.raises(RuntimeError, match=r"prepare\(\) comes first"):
        RecognitionJob().task_arguments()


def test_ctc_alone_trains(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [word for word in MODEL if "predictor" not in word and "joiner" not in word]
    words += ["model.predictor=null", "model.joiner=null", f"out={tmp_path}", "trainer.max_steps=2"]
    trained(cache, monkeypatch, capsys, [*WORDS, *words], 0)
    assert speechkit.load(tmp_path / "release").model.decoders == ["ctc"]


def test_processes_of_torchrun_need_a_folder_in_common(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(code=2).endswith("error: several processes share one run folder: name it with out=FOLDER\n")
