"""What training shows while it runs: its progress, and samples of what the model hears or makes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from speechkit.data.collate import Batch
from speechkit.nn.attention import RelativeAttention, relative_shift

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

    Its sound and text once; its features, the CTC posteriors (blank is the lowest row), the attention of one layer
    (heads side by side) and the decoded texts each time.

    Args:
        layer: whose attention is shown; counted from the end where negative.
    """

    def __init__(self, layer: int = -1) -> None:
        super().__init__()
        self.layer = layer

    def write(self, batch: Batch, task: Any, writers: Sequence[Any], step: int) -> None:
        """As `FirstBatchLogger.write`."""
        rate = task.model.front.sample_rate
        wave = batch.wave[:1, : int(min(int(batch.wave_lengths[0]), LONGEST_SECONDS * rate))]
        pictures, texts = self._heard(task, wave)
        for writer in writers:
            if not self._said:
                writer.add_audio("sample/audio", wave[0].float().cpu(), step, sample_rate=rate)
                writer.add_text("sample/reference", batch.texts[0], step)
            for name, picture in pictures.items():
                writer.add_image(f"sample/{name}", _grey(picture), step, dataformats="HW")
            for name, text in texts.items():
                writer.add_text(f"sample/{name}", text, step)

    def _heard(self, task: Any, wave: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Pictures (rows from the top, columns in time) and decoded texts of (1, samples)."""
        model, seen = task.model, []
        attention = model.encoder.layers[self.layer].attention
        hook = attention.register_forward_pre_hook(lambda module, inputs: seen.append(_attention(module, *inputs)))
        try:
            with torch.autocast(wave.device.type, enabled=False):
                features, lengths = model.front(wave, torch.tensor([wave.shape[1]], device=wave.device))
                steps, counts = model.encoder(features, lengths)
        finally:
            hook.remove()
        texts = {name: task.decode(name, steps, counts)[0] for name in model.decoders}
        pictures = {"features": features[0].T.flip(0), "attention": torch.cat(list(seen[0][0]), dim=1)}
        if model.ctc is not None:
            pictures["ctc"] = model.ctc(steps)[0].exp().T
        return pictures, texts


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


def _attention(module: RelativeAttention, x: Tensor, bias: Tensor, sinusoids: Tensor) -> Tensor:
    """The weights, which the module itself never holds, for its attention is one fused call: (batch, heads, q, k)."""
    query, key, _ = module.project(x)
    by_position = (query + module.position_bias[:, None]) @ module.project_positions(sinusoids)
    scores = (query + module.content_bias[:, None]) @ key.mT + relative_shift(by_position, key.shape[2])
    return torch.softmax(scores / math.sqrt(module.head_dim) + bias, -1)


def _grey(picture: Tensor) -> Tensor:
    """Scaled to 0..1."""
    picture = picture.float().cpu()
    low, high = picture.min(), picture.max()
    return (picture - low) / (high - low).clamp(min=1e-6)
