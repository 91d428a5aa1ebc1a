"""What training shows while it runs: its progress, and samples of what the model hears or makes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from speechkit.data.collate import Batch

LONGEST_SECONDS = 20.0  # of the audio that is logged


class Progress(RichProgressBar):
    """A bar per epoch; off a terminal, a line per epoch."""

    def _get_train_description(self, current_epoch: int) -> str:
        last = self.trainer.max_epochs
        epochs = f"/{last - 1}" if last is not None and last > 0 else ""  # -1: as many as the steps take
        return f"Epoch {current_epoch}{epochs}".ljust(len(self.validation_description))

    def _update_metrics(self, trainer: Trainer, pl_module: Any) -> None:
        """Now and then in training, for to read a number is to wait for the GPU."""
        if not trainer.training or trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            super()._update_metrics(trainer, pl_module)


class FirstBatchLogger(Callback, ABC):
    """Keeps the first validation batch, and logs it to TensorBoard after each validation."""

    def __init__(self) -> None:
        self._batch: Batch | None = None
        self._said = False  # what is logged once

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps it."""
        if batch_idx == 0 and dataloader_idx == 0 and trainer.is_global_zero and len(batch.ids):
            self._batch = batch

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Logs it, where somebody takes it."""
        writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        batch, self._batch = self._batch, None
        if batch is None or not writers or trainer.sanity_checking:
            return
        self.write(batch, pl_module, writers, trainer.global_step)
        self._said = True

    @abstractmethod
    def write(self, batch: Batch, task: Any, writers: Sequence[Any], step: int) -> None:
        """Logs the batch to TensorBoard's writers."""


class SampleLogger(FirstBatchLogger):
    """Logs the first validation utterance to TensorBoard after each validation.

    Its sound and text once; the task's pictures of it and what it says (`TextTask.sample`) each time.
    """

    def write(self, batch: Batch, task: Any, writers: Sequence[Any], step: int) -> None:
        """As `FirstBatchLogger.write`."""
        rate = task.rate
        wave = batch.wave[:1, : int(min(int(batch.wave_lengths[0]), LONGEST_SECONDS * rate))]
        pictures, texts = task.sample(wave)
        for writer in writers:
            if not self._said:
                writer.add_audio("sample/audio", wave[0].float().cpu(), step, sample_rate=rate)
                writer.add_text("sample/reference", batch.texts[0], step)
            for name, picture in pictures.items():
                writer.add_image(f"sample/{name}", _grey(picture), step, dataformats="HW")
            for name, text in texts.items():
                writer.add_text(f"sample/{name}", text, step)


class ReconstructionLogger(FirstBatchLogger):
    """Logs what a codec makes of the first validation crops to TensorBoard after each validation.

    Args:
        count: crops; sound and mel spectrum of each are logged once, those of its reconstruction each time.
    """

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self.count = count

    def write(self, batch: Batch, task: Any, writers: Sequence[Any], step: int) -> None:
        """As `FirstBatchLogger.write`."""
        batch = batch._replace(wave=batch.wave[: self.count], wave_lengths=batch.wave_lengths[: self.count])
        waves = {"reconstruction": task.reconstructed(batch).wave}
        if not self._said:
            waves["original"] = batch.wave
        for name, wave in waves.items():
            pictures = task.mel.spectrum(wave).flip(1)
            for i, (sound, picture) in enumerate(zip(wave.float().cpu().clamp(-1, 1), pictures, strict=True)):
                for writer in writers:
                    at = f"sample{i}/{name}"
                    writer.add_audio(at, sound, step, sample_rate=task.model.rate)
                    writer.add_image(f"{at}_mel", _grey(picture), step, dataformats="HW")


def _grey(picture: Tensor) -> Tensor:
    """Scaled to 0..1."""
    picture = picture.float().cpu()
    low, high = picture.min(), picture.max()
    return (picture - low) / (high - low).clamp(min=1e-6)
