"""Training of recognisers: what all of it shares, and the hybrid CTC/transducer objective under drawn look-aheads."""

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import jiwer
import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from speechkit.asr.decoding.search import make_greedy
from speechkit.asr.flat_start import equal_alignment, flat_start_loss
from speechkit.asr.model import Recognizer
from speechkit.data.collate import Batch
from speechkit.nn.masks import valid_mask
from speechkit.text import Tokenizer

RATES: dict[str, Callable[[list[str], list[str]], jiwer.WordOutput | jiwer.CharacterOutput]] = {
    "wer": jiwer.process_words,
    "cer": jiwer.process_characters,  # the spaces between words are some
}


class TextTask(LightningModule, ABC):
    """Learns to say the text of a batch in one or several ways.

    Args:
        tokenizer: text to token ids and back.
        optimizer: takes the parameters.
        scheduler: takes the optimizer; stepped after every optimizer step.
        decoders: names of the ways; `val/wer` and `val/cer` are the first one's.
        seed: every step's random draws are a function of it and the step's number, so that a resumed run goes on as
            an unbroken one would.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        decoders: Sequence[str],
        seed: int,
    ) -> None:
        super().__init__()
        self.tokenizer, self.seed = tokenizer, seed
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        widths = torch.tensor([float(len(piece)) for piece in tokenizer.pieces])
        self.register_buffer("widths", widths, persistent=False)
        self.widths: Tensor
        self.edits = {name: {rate: [0, 0] for rate in RATES} for name in decoders}
        self._samples: Tensor | int = 0
        self._clock = time.monotonic()

    @property
    @abstractmethod
    def rate(self) -> int:
        """Of the waves, Hz."""

    def sample(self, wave: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Pictures (rows from the top, columns in time) and texts, by their names, of (1, samples); here none."""
        return {}, {}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds the step."""
        step = self.seed * 1_000_003 + self.global_step * 7919 + batch_idx * 31 + self.global_rank * 15_485_863
        torch.manual_seed(step)
        random.seed(step)

    def flat_loss(self, log_probabilities: Tensor, batch: Batch, lengths: Tensor, blank: int) -> Tensor:
        """Mean loss where every token has a share of the utterance by its length, see `flat_start_loss`."""
        widths = self.widths[batch.tokens] * valid_mask(batch.token_lengths, batch.tokens.shape[1])
        labels = equal_alignment(widths, batch.tokens, lengths, log_probabilities.shape[1], blank)
        return flat_start_loss(log_probabilities, labels).mean()

    def log_training(self, losses: dict[str, Tensor], batch: Batch) -> Tensor:
        """Logs the parts of a step's objective, counts its audio, and returns ``losses["loss"]``."""
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), prog_bar=name == "loss", batch_size=len(batch.wave))
        self._samples = self._samples + batch.wave_lengths.sum()  # a number would wait for the GPU at every step
        return losses["loss"]

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs throughput every `log_every_n_steps` batches."""
        if (batch_idx + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            seconds, now = int(self._samples) / self.rate, time.monotonic()
            rate = seconds / max(now - self._clock, 1e-6) * self.trainer.world_size
            self.log("train/audio_hours_per_hour", rate, batch_size=len(batch.wave))
            self._samples, self._clock = 0, now

    def count_edits(self, decoder: str, batch: Batch, texts: list[str]) -> None:
        """Adds the word and character errors of one way to say a batch."""
        for rate, process in RATES.items():
            measured, counts = process(list(batch.texts), texts), self.edits[decoder][rate]
            counts[0] += measured.substitutions + measured.deletions + measured.insertions
            counts[1] += measured.substitutions + measured.deletions + measured.hits

    def on_validation_epoch_end(self) -> None:
        """Word and character error rates of each way, over all processes."""
        for i, (name, edits) in enumerate(self.edits.items()):
            for rate, counts in edits.items():
                value = self.error_rate(name, rate)
                self.log(f"val/{rate}_{name}", value, rank_zero_only=False)
                if i == 0:
                    self.log(f"val/{rate}", value, prog_bar=True)
                counts[:] = [0, 0]

    def error_rate(self, decoder: str, rate: str = "wer") -> Tensor:
        """Errors per word or character of one way to say what was counted, over all processes."""
        total = torch.tensor(self.edits[decoder][rate], dtype=torch.float64, device=self.device)
        if self.trainer.world_size > 1:
            total = self.all_gather(total).sum(0)  # type: ignore[union-attr]
        return (total[0] / total[1].clamp(min=1)).float()

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer over everything that is trained, and its scheduler, stepped every step."""
        optimizer = self.make_optimizer([p for p in self.parameters() if p.requires_grad])
        if self.make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_scheduler(optimizer), "interval": "step"},
        }


class RecognitionTask(TextTask):
    """Loss ``(1 - w) * transducer + w * ctc`` (either alone where the model has one head), means over utterances.

    Args:
        model: the recogniser.
        tokenizer: text to token ids and back.
        optimizer: takes the parameters.
        scheduler: takes the optimizer; stepped after every optimizer step.
        ctc_weight: w.
        fastemit: weight of FastEmit in the transducer's loss.
        flat_start: steps over which training goes from equal alignments, in which every token has a share of the
            utterance by its length, to the objective. On small corpora and batches the objective alone gives the same
            output, whatever it hears, for thousands of steps.
        transducer_start: steps of CTC alone, where the model has both heads, before the transducer joins in. A step
            without it costs a tenth to a quarter less, and what the transducer has to learn first, which steps have
            words in them, the encoder then knows.
        spec_augment: masks features (batch, frames, n_mels) given their lengths, in training.
        seed: every step's random draws are a function of it and the step's number, so that a resumed run goes on as
            an unbroken one would.
    """

    def __init__(
        self,
        model: Recognizer,
        tokenizer: Tokenizer,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        ctc_weight: float = 0.3,
        fastemit: float = 0.005,
        flat_start: int = 0,
        transducer_start: int = 0,
        spec_augment: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        heads = model.decoders
        super().__init__(tokenizer, optimizer, scheduler, heads, seed)
        self.model = model
        self.ctc_weight = ctc_weight if len(heads) == 2 else float(heads == ["ctc"])
        self.fastemit, self.spec_augment = fastemit, spec_augment
        self.flat_start, self.transducer_start = flat_start, transducer_start

    @property
    def rate(self) -> int:
        """Of the waves, Hz."""
        return self.model.front.sample_rate

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(batch, steps, dim) and valid steps, with SpecAugment in training."""
        return self.model.encoder(*self.features(batch))

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(batch, frames, n_mels) and valid frames, with SpecAugment in training."""
        features, lengths = self.model.front(batch.wave, batch.wave_lengths)
        if self.training and self.spec_augment is not None:
            features = self.spec_augment(features, lengths)
        return features, lengths

    def _losses(self, batch: Batch, encoder: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        both = len(self.model.decoders) == 2
        alone = self.training and both and self.global_step < self.transducer_start
        heads, weight = (["ctc"], 1.0) if alone else (self.model.decoders, self.ctc_weight)
        each = self.model.losses(encoder, lengths, batch.tokens, batch.token_lengths, self.fastemit, heads)
        ctc, transducer = each.ctc.mean(), each.transducer.mean()
        loss = (1 - weight) * transducer + weight * ctc
        head = self.model.ctc
        if self.training and head is not None and self.global_step < self.flat_start:
            flat = self.global_step / self.flat_start
            loss = flat * loss + (1 - flat) * self.flat_loss(head(encoder), batch, lengths, self.model.blank)
        if alone and self.trainer.world_size > 1:  # DDP waits for every parameter's gradient
            idle = (part for part in (self.model.predictor, self.model.joiner) if part is not None)
            loss = loss + 0.0 * sum(p.sum() for part in idle for p in part.parameters())
        losses = {"loss": loss}
        if both:
            losses |= {name: value for name, value in (("ctc", ctc), ("rnnt", transducer)) if name in heads}
        return losses

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective of one batch."""
        return self.log_training(self._losses(batch, *self.encode(batch)), batch)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss, and errors of every head under the first context."""
        self.validate(batch, *self.encode(batch))

    def validate(self, batch: Batch, encoder: Tensor, lengths: Tensor) -> None:
        """Logs the loss and counts errors of encoder steps (batch, steps, dim)."""
        losses = self._losses(batch, encoder, lengths)
        self.log("val/loss", losses["loss"], batch_size=len(batch.wave), sync_dist=True, add_dataloader_idx=False)
        for name in self.model.decoders:
            self.count_edits(name, batch, self.decode(name, encoder, lengths))

    def sample(self, wave: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Features, attention of the last layer (heads side by side), CTC posteriors (the blank is the lowest row)."""
        model, seen = self.model, []
        attention: Any = model.encoder.layers[-1].attention
        hook = attention.register_forward_pre_hook(lambda module, inputs: seen.append(module.weights(*inputs)))
        try:
            with torch.autocast(wave.device.type, enabled=False):
                features, lengths = model.front(wave, torch.tensor([wave.shape[1]], device=wave.device))
                steps, counts = model.encoder(features, lengths)
        finally:
            hook.remove()
        texts = {name: self.decode(name, steps, counts)[0] for name in model.decoders}
        pictures = {"features": features[0].T.flip(0), "attention": torch.cat(list(seen[0][0]), dim=1)}
        if model.ctc is not None:
            pictures["ctc"] = model.ctc(steps)[0].exp().T
        return pictures, texts

    def decode(self, head: str, encoder: Tensor, lengths: Tensor) -> list[str]:
        """Greedy texts of encoder steps (batch, steps, dim)."""
        emitted = make_greedy(self.model, head)(encoder, lengths)
        rows = zip(emitted.values[..., 0].long().tolist(), emitted.lengths.tolist(), strict=True)
        return [self.tokenizer.decode(tokens[:count]) for tokens, count in rows]
