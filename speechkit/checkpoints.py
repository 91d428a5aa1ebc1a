"""Checkpoints of a training run: where they lie, how they survive, and their average."""

import math
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from speechkit.errors import InputError
from speechkit.release import check_plain

# What Lightning needs besides the weights to go on with a run.
RUN = {"pytorch-lightning_version": str, "loops": dict, "optimizer_states": list, "lr_schedulers": list}


class CheckpointFiles(TorchCheckpointIO):
    """Writes beside the file that is replaced, so that a kill or a full disk leaves the former one; reads data alone.

    Lightning's own goes through the system's folder for temporary files, from where a move to another disk is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises InputError where the disk does not take it."""
        part = Path(f"{path}.part")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError
            part.unlink(missing_ok=True)
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise InputError(f"the checkpoint {path} cannot be written: {reason}; the former ones are whole") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Raises InputError where no run can go on from the file, or it is damaged; never runs code that is in it."""
        checkpoint = read(Path(path))
        missing = [key for key, kind in RUN.items() if not isinstance(checkpoint.get(key), kind)]
        if missing:
            raise InputError(f"{path} holds weights, but no run can go on from it: it has no {', '.join(missing)}")
        return checkpoint


class SaveOnInterrupt(Callback):
    """Ctrl-C and SIGTERM write the last checkpoint, from which `resume` goes on.

    Both wait until the step that is being done is whole; a second Ctrl-C does not.
    """

    def __init__(self) -> None:
        self._asked, self._saved = False, 0
        self._before: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on Ctrl-C waits."""
        self._asked, self._saved = False, 0
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ctrl-C does what it did before, unless Lightning, which is ending because of it, has it ignored."""
        if self._before is not None and signal.getsignal(signal.SIGINT) == self._ask:
            signal.signal(signal.SIGINT, self._before)
        self._before = None

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends all processes where one was asked to."""
        asked = trainer.received_sigterm or self._asked
        if trainer.strategy.reduce_boolean_decision(asked, all=False):
            self._save(trainer)
            raise SIGTERMException if trainer.received_sigterm else KeyboardInterrupt

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Ends it here too; several processes, of which one may have fewer batches, go on to their next step."""
        if self._asked and trainer.world_size == 1:
            raise KeyboardInterrupt

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves where the exception is an interruption, not an error."""
        interrupted = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        if interrupted and trainer.global_step not in (0, self._saved):
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._saved = trainer.global_step
        trainer.save_checkpoint(_folder(trainer) / "last.ckpt")


def _folder(trainer: Trainer) -> Path:
    callback = trainer.checkpoint_callback
    return Path(getattr(callback, "dirpath", None) or trainer.default_root_dir)


def writable(folder: Path) -> Path:
    """Creates the folder of a run.

    Raises:
        InputError: it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to the output folder {folder}: {error.strerror or error}") from None
    return folder


@contextmanager
def first_rank_first(out: Path) -> Iterator[None]:
    """Lets the first process prepare a run's data while the others, under torchrun or SLURM, wait for it.

    Those that Lightning starts itself begin when the first process has done so, and inherit its word for it.
    """
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK") or 0)
    launch = os.environ.get("MASTER_PORT") or os.environ.get("SLURM_JOB_ID") or "alone"
    ready = out / f".ready-{launch}"
    if rank == 0:
        ready.unlink(missing_ok=True)
        yield
        ready.touch()
        os.environ["SPEECHKIT_READY"] = str(out)
        return
    while os.environ.get("SPEECHKIT_READY") != str(out) and not ready.exists():
        time.sleep(0.2)
    yield


def last_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint of a run, None where it has none; a run that has not begun is begun anew."""
    found = sorted((out / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def read(path: Path) -> dict[str, Any]:
    """A checkpoint of Lightning's, on the CPU.

    Raises:
        InputError: the file is no checkpoint, or is damaged.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
        if not isinstance(state, dict):
            raise TypeError("it holds no weights")
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} is not a checkpoint that can be read: it holds more than tensors and numbers"
        ) from None
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is not a checkpoint that can be read: {reason}") from None
    check_plain(state, str(path))
    return checkpoint


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The task's weights in a checkpoint; raises as `read`."""
    state: dict[str, torch.Tensor] = read(path)["state_dict"]
    return state


def mean(states: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of weights of one model; what has no fractions, such as counts, is the first's."""
    return {
        key: torch.stack([state[key] for state in states]).mean(0) if value.is_floating_point() else value
        for key, value in states[0].items()
    }


def averaged(trainer: Trainer, task: LightningModule, data: LightningDataModule) -> float | None:
    """Loads the average of the best checkpoints into the task, or the best one where that scores better.

    The weights that training ended with count as a checkpoint, also where the steps end between two validations.
    Returns the validation score that was kept, None where there was no monitored checkpoint.
    """
    callbacks = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    if not callbacks or not callbacks[0].best_k_models:
        return None
    best = callbacks[0]

    def score() -> float:
        return float(trainer.validate(task, datamodule=data, verbose=False)[0][str(best.monitor)])

    scores: dict[str, Any] = best.best_k_models
    ranked = [(float(value), weights(Path(path))) for path, value in scores.items() if float(value) < math.inf]
    last = {name: value.detach().clone() for name, value in task.state_dict().items()}
    if not any(_same(last, state) for _, state in ranked):
        ranked.append((score(), last))
    ranked.sort(key=lambda pair: pair[0])
    states = [state for _, state in ranked[: best.save_top_k if best.save_top_k > 0 else None]]
    task.load_state_dict(mean(states))
    if len(states) > 1 and (measured := score()) <= ranked[0][0]:
        return measured
    task.load_state_dict(states[0])
    return ranked[0][0]


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value.cpu(), other[name].cpu()) for name, value in one.items())
