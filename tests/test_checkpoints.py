"""Checkpoints survive what befalls the disk, and their average is kept where it is better."""

import os
import resource
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from speechkit.checkpoints import CheckpointFiles, averaged, first_rank_first, last_checkpoint, weights
from speechkit.errors import InputError


def checkpoint(value: float, size: int = 10_000) -> dict[str, Any]:
    return {"state_dict": {"w": torch.full((size,), value), "count": torch.tensor(3)}, "global_step": 1}


def test_a_full_disk_leaves_the_former_file_and_nothing_else(tmp_path: Path) -> None:
    path, files = tmp_path / "checkpoints" / "last.ckpt", CheckpointFiles()
    files.save_checkpoint(checkpoint(1.0), path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(InputError, match=r"last\.ckpt cannot be written: .*; the former ones are whole") as error:
            files.save_checkpoint(checkpoint(2.0), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    assert torch.equal(weights(path)["w"], torch.ones(10_000))


def test_a_checkpoint_is_written_beside_the_one_that_it_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, files = tmp_path / "last.ckpt", CheckpointFiles()
    files.save_checkpoint(checkpoint(1.0), path)
    moves: list[tuple[Path, Path]] = []
    replace = Path.replace

    def moved(self: Path, to: Path) -> Path:
        moves.append((self, Path(to)))
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", moved)
    files.save_checkpoint(checkpoint(2.0), path)
    assert [(a.parent, b) for a, b in moves] == [(tmp_path, path)]
    assert weights(path)["w"][0] == 2.0


def test_what_a_kill_left_unfinished_is_not_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    files = CheckpointFiles()
    assert last_checkpoint(tmp_path) is None
    for age, name in ((20, "step10.ckpt"), (10, "last.ckpt")):
        files.save_checkpoint(checkpoint(float(age)), folder / name)
        os.utime(folder / name, (time.time() - age,) * 2)
    (folder / "last.ckpt.part").write_bytes(b"PK half")
    assert last_checkpoint(tmp_path) == folder / "last.ckpt"


WHOLE = {"pytorch-lightning_version": "2.5.0", "loops": {}, "optimizer_states": [], "lr_schedulers": []}


def test_a_run_goes_on_from_a_whole_checkpoint(tmp_path: Path) -> None:
    files = CheckpointFiles()
    files.save_checkpoint({**checkpoint(1.0), **WHOLE}, tmp_path / "last.ckpt")
    assert files.load_checkpoint(tmp_path / "last.ckpt").keys() == {*checkpoint(1.0), *WHOLE}


@pytest.mark.parametrize("lost", WHOLE)
def test_no_run_goes_on_from_weights_alone(tmp_path: Path, lost: str) -> None:
    files = CheckpointFiles()
    files.save_checkpoint({**checkpoint(1.0), **WHOLE, lost: None}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=rf"last\.ckpt holds weights, but no run can go on from it: it has no {lost}$"):
        files.load_checkpoint(tmp_path / "last.ckpt")
    assert weights(tmp_path / "last.ckpt")["w"][0] == 1.0


@pytest.mark.parametrize(
    "odd", [torch.ones(4).to_sparse(), torch.ones(4, device="meta"), torch.ones(1).expand(1 << 40), 7]
)
def test_weights_that_are_no_plain_tensors_are_named(tmp_path: Path, odd: object) -> None:
    torch.save({"state_dict": {"count": torch.tensor(3), "w": odd}}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"last\.ckpt must hold plain tensors .*: w$"):
        weights(tmp_path / "last.ckpt")


@pytest.mark.parametrize("content", [[1], {"state_dict": None}, {"weights": {}}, 3])
def test_what_holds_no_weights_is_no_checkpoint(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"last\.ckpt is not a checkpoint that can be read: it holds no weights"):
        weights(tmp_path / "last.ckpt")


class Trained(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(4))
        self.register_buffer("count", torch.tensor(0))


def after_training(tmp_path: Path, measured: list[float]) -> tuple[SimpleNamespace, Trained]:
    """Checkpoints 2 (WER 0.2) and 1 (0.1), a task that ended at 4, and what each validation will say."""
    best = ModelCheckpoint(tmp_path, monitor="val/wer", save_top_k=2)
    for value, wer in ((2.0, 0.2), (1.0, 0.1)):
        path = tmp_path / f"{value}.ckpt"
        CheckpointFiles().save_checkpoint(checkpoint(value, 4), path)
        best.best_k_models[str(path)] = torch.tensor(wer)
    task = Trained()
    task.w.data.fill_(4.0)
    said = iter(measured)
    return SimpleNamespace(checkpoint_callbacks=[best], validate=lambda *_, **__: [{"val/wer": next(said)}]), task


@pytest.mark.parametrize(
    ("last", "mean", "expected"),
    [
        (0.9, 0.05, 1.5),  # the last weights are not among the best two
        (0.9, 0.4, 1.0),
        (0.15, 0.05, 2.5),
        (0.05, 0.4, 4.0),
    ],
)
def test_the_average_is_kept_where_it_scores_better(tmp_path: Path, last: float, mean: float, expected: float) -> None:
    trainer, task = after_training(tmp_path, [last, mean])
    kept = averaged(trainer, task, None)  # type: ignore[arg-type]
    assert torch.equal(task.w.data, torch.full((4,), expected))
    assert kept == pytest.approx(min(last, mean, 0.1))


def test_last_weights_that_are_a_checkpoint_are_not_scored_again(tmp_path: Path) -> None:
    trainer, task = after_training(tmp_path, [0.05])
    task.load_state_dict(checkpoint(1.0, 4)["state_dict"])
    averaged(trainer, task, None)  # type: ignore[arg-type]
    assert torch.equal(task.w.data, torch.full((4,), 1.5))
    assert int(task.get_buffer("count")) == 3


def test_checkpoints_of_an_infinite_score_are_not_averaged(tmp_path: Path) -> None:
    trainer, task = after_training(tmp_path, [0.3, 0.05])
    scores = trainer.checkpoint_callbacks[0].best_k_models
    scores[str(tmp_path / "1.0.ckpt")] = torch.tensor(float("inf"))
    averaged(trainer, task, None)  # type: ignore[arg-type]
    assert torch.equal(task.w.data, torch.full((4,), 3.0))  # of checkpoint 2 and the last weights, 4


def test_without_a_score_the_last_weights_stay() -> None:
    trainer = SimpleNamespace(checkpoint_callbacks=[ModelCheckpoint(monitor="val/wer")])
    assert averaged(trainer, Trained(), None) is None  # type: ignore[arg-type]


def test_the_others_wait_for_the_first_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("SPEECHKIT_READY", raising=False)
    monkeypatch.setenv("RANK", "1")
    order: list[str] = []

    def second() -> None:
        with first_rank_first(tmp_path):
            order.append("second")

    waiting = threading.Thread(target=second, daemon=True)
    waiting.start()
    time.sleep(0.3)
    monkeypatch.setenv("RANK", "0")
    with first_rank_first(tmp_path):
        order.append("first")
    waiting.join(timeout=5)
    assert order == ["first", "second"]


def test_a_process_that_was_started_after_it_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "29501")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("SPEECHKIT_READY", str(tmp_path))
    monkeypatch.delenv("RANK", raising=False)
    entered = threading.Event()

    def enter() -> None:
        with first_rank_first(tmp_path):
            entered.set()

    threading.Thread(target=enter, daemon=True).start()
    assert entered.wait(timeout=5)
