"""Training of speech tokens: what they keep of speech is what a recogniser behind them needs."""

import random
import time
from collections.abc import Callable
from typing import Any

import jiwer
import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from speechkit.asr.ctc import ctc_loss
from speechkit.asr.flat_start import equal_alignment, flat_start_loss
from speechkit.codecs.quantizers import Quantized, Usage
from speechkit.codecs.s3 import TokenModel
from speechkit.codecs.supervision.listener import Listener
from speechkit.data.collate import Batch
from speechkit.errors import InputError
from speechkit.nn.masks import valid_mask
from speechkit.text import Tokenizer


class TokenTask(LightningModule):
    """Loss ``ctc_weight * ctc + attention_weight * attention + quantizer_weight * quantizer``, means over utterances.

    The tokenizer's code in between has the gradient of what was not rounded (Du et al. 2024, sections 2.1, and 2.2 of
    CosyVoice 2).

    Args:
        model: speech to tokens.
        listener: recognises text from them; no part of a release.
        tokenizer: text to token ids and back.
        optimizer: takes the parameters.
        scheduler: takes the optimizer; stepped after every optimizer step.
        ctc_weight: of the CTC head's loss.
        attention_weight: of the cross entropy of the decoder that writes.
        quantizer_weight: of the quantiser's own loss: commitment to a codebook, or the spread of numbers over levels.
        continuous_steps: steps, the first ones, in which the listener has the encoder's vectors as they are.
        smoothing: of the decoder's targets.
        flat_start: steps over which the CTC head's loss comes from equal alignments, see `RecognitionTask`.
        spec_augment: masks features (batch, frames, mels) given their lengths, in training.
        seed: every step's random draws are a function of it and the step's number, so that a resumed run goes on as
            an unbroken one would.

    Raises:
        InputError: the two do not fit together, or nothing has a weight.
    """

    def __init__(
        self,
        model: TokenModel,
        listener: Listener,
        tokenizer: Tokenizer,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        ctc_weight: float = 0.3,
        attention_weight: float = 0.7,
        quantizer_weight: float = 100.0,
        continuous_steps: int = 0,
        smoothing: float = 0.1,
        flat_start: int = 0,
        spec_augment: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if listener.dim != model.encoder.dim:
            raise InputError(f"the listener is {listener.dim} wide, but the tokens' vectors are {model.encoder.dim}")
        self.weights = {"ctc": ctc_weight, "attention": attention_weight, "quantizer": quantizer_weight}
        if not any(self.weights[name] for name in listener.decoders):
            raise InputError(f"no weight is left for what the listener has: {', '.join(listener.decoders)}")
        self.model, self.listener, self.tokenizer = model, listener, tokenizer
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.smoothing, self.continuous_steps, self.flat_start = smoothing, continuous_steps, flat_start
        self.spec_augment, self.seed = spec_augment, seed
        widths = torch.tensor([float(len(piece)) for piece in tokenizer.pieces])
        self.register_buffer("widths", widths, persistent=False)
        self.widths: Tensor
        self.edits = {name: [0, 0] for name in listener.decoders}
        self._codes: list[Tensor] = []  # no buffer: DDP would overwrite every process's with the first one's
        self._samples: Tensor | int = 0
        self._clock = time.monotonic()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds the step."""
        step = self.seed * 1_000_003 + self.global_step * 7919 + batch_idx * 31 + self.global_rank * 15_485_863
        torch.manual_seed(step)
        random.seed(step)

    def quantized(self, batch: Batch) -> tuple[Quantized, Tensor]:
        """The tokens of a batch and how many each row has, with SpecAugment in training."""
        features, lengths = self.model.front(batch.wave, batch.wave_lengths)
        if self.training and self.spec_augment is not None:
            features = self.spec_augment(features, lengths)
        vectors, counts = self.model.encoder(features, lengths)
        tokens = self.model.rounded(vectors, counts)
        if self.training and self.global_step < self.continuous_steps:
            tokens = tokens._replace(values=vectors + 0.0 * tokens.values)  # DDP waits for every weight's gradient
        return tokens, counts

    def losses(self, batch: Batch, heard: Tensor, lengths: Tensor, quantizer: Tensor) -> dict[str, Tensor]:
        """The objective and its parts, of what the listener makes of the tokens: (batch, time, dim), (batch,)."""
        parts = {"quantizer": quantizer}
        targets, counts = batch.tokens, batch.token_lengths
        if self.listener.ctc is not None:
            log_probabilities = self.listener.ctc(heard)
            parts["ctc"] = ctc_loss(log_probabilities, targets, lengths, counts, self.listener.ctc.blank).mean()
            if self.training and self.global_step < self.flat_start:
                share = self.global_step / self.flat_start
                flat = self._flat_loss(log_probabilities, batch, lengths, self.listener.ctc.blank)
                parts["ctc"] = share * parts["ctc"] + (1 - share) * flat
        if self.listener.writer is not None:
            each = self.listener.writer.losses(heard, lengths, targets, counts, self.smoothing)
            parts["attention"] = each.mean()
        loss = torch.stack([self.weights[name] * value for name, value in parts.items()]).sum()
        return {"loss": loss, **parts}

    def _flat_loss(self, log_probabilities: Tensor, batch: Batch, lengths: Tensor, blank: int) -> Tensor:
        widths = self.widths[batch.tokens] * valid_mask(batch.token_lengths, batch.tokens.shape[1])
        labels = equal_alignment(widths, batch.tokens, lengths, log_probabilities.shape[1], blank)
        return flat_start_loss(log_probabilities, labels).mean()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective of one batch."""
        tokens, lengths = self.quantized(batch)
        losses = self.losses(batch, self.listener(tokens.values, lengths), lengths, tokens.loss)
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), prog_bar=name == "loss", batch_size=len(batch.wave))
        self._samples = self._samples + batch.wave_lengths.sum()  # a number would wait for the GPU at every step
        return losses["loss"]

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs throughput every `log_every_n_steps` batches."""
        if (batch_idx + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            seconds, now = int(self._samples) / self.model.rate, time.monotonic()
            rate = seconds / max(now - self._clock, 1e-6) * self.trainer.world_size
            self.log("train/audio_hours_per_hour", rate, batch_size=len(batch.wave))
            self._samples, self._clock = 0, now

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss, word errors of each decoder, and the codes that came."""
        tokens, lengths = self.quantized(batch)
        heard = self.listener(tokens.values, lengths)
        losses = self.losses(batch, heard, lengths, tokens.loss)
        self.log("val/loss", losses["loss"], batch_size=len(batch.wave), sync_dist=True, add_dataloader_idx=False)
        self._codes.append(tokens.codes[valid_mask(lengths, tokens.codes.shape[1])])
        for name in self.listener.decoders:
            texts = [self.tokenizer.decode(row) for row in self.listener.decode(name, heard, lengths)]
            measured = jiwer.process_words(list(batch.texts), texts)
            self.edits[name][0] += measured.substitutions + measured.deletions + measured.insertions
            self.edits[name][1] += measured.substitutions + measured.deletions + measured.hits

    def on_validation_epoch_end(self) -> None:
        """Word error rate of each decoder (`val/wer` is the first one's) and use of codes, over all processes."""
        for i, (name, counts) in enumerate(self.edits.items()):
            total = torch.tensor(counts, dtype=torch.float64, device=self.device)
            if self.trainer.world_size > 1:
                total = self.all_gather(total).sum(0)  # type: ignore[union-attr]
            rate = (total[0] / total[1].clamp(min=1)).float()
            self.log(f"val/wer_{name}", rate, rank_zero_only=False)
            if i == 0:
                self.log("val/wer", rate, prog_bar=True)
            counts[:] = [0, 0]
        usage = Usage(self.model.size).to(self.device)
        for codes in self._codes:
            usage.update(codes)
        utilization, perplexity = usage.compute()
        self.log("val/utilization", utilization, prog_bar=True)
        self.log("val/perplexity", perplexity)
        self._codes = []

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer over everything that is trained, and its scheduler, stepped every step."""
        optimizer = self.make_optimizer([p for p in self.parameters() if p.requires_grad])
        if self.make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_scheduler(optimizer), "interval": "step"},
        }
