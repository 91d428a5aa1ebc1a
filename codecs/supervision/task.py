"""Training of speech tokens: what they keep of speech is what a recogniser behind them needs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from speechkit.asr.ctc import ctc_loss
from speechkit.asr.task import TextTask
from speechkit.codecs.quantizers import Quantized, Usage
from speechkit.codecs.s3 import TokenModel
from speechkit.codecs.supervision.listener import Listener
from speechkit.data.collate import Batch
from speechkit.errors import InputError
from speechkit.nn.masks import valid_mask
from speechkit.text import Tokenizer


class TokenTask(TextTask):
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
        quantization_start: steps, the first ones, in which the listener has the encoder's vectors as they are.
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
        quantization_start: int = 0,
        smoothing: float = 0.1,
        flat_start: int = 0,
        spec_augment: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(tokenizer, optimizer, scheduler, listener.decoders, seed)
        if listener.dim != model.encoder.dim:
            raise InputError(f"the listener is {listener.dim} wide, but the tokens' vectors are {model.encoder.dim}")
        self.weights = {"ctc": ctc_weight, "attention": attention_weight, "quantizer": quantizer_weight}
        if not any(self.weights[name] for name in listener.decoders):
            raise InputError(f"no weight is left for what the listener has: {', '.join(listener.decoders)}")
        self.model, self.listener = model, listener
        self.smoothing, self.quantization_start, self.flat_start = smoothing, quantization_start, flat_start
        self.spec_augment = spec_augment
        self._codes: list[Tensor] = []  # no buffer: DDP would overwrite every process's with the first one's

    @property
    def rate(self) -> int:
        """Of the waves, Hz."""
        return self.model.rate

    def quantized(self, batch: Batch) -> tuple[Quantized, Tensor]:
        """The tokens of a batch and how many each row has, with SpecAugment in training."""
        features, lengths = self.model.front(batch.wave, batch.wave_lengths)
        if self.training and self.spec_augment is not None:
            features = self.spec_augment(features, lengths)
        vectors, counts = self.model.encoder(features, lengths)
        tokens = self.model.rounded(vectors, counts)
        if self.training and self.global_step < self.quantization_start:
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
                flat = self.flat_loss(log_probabilities, batch, lengths, self.listener.ctc.blank)
                parts["ctc"] = share * parts["ctc"] + (1 - share) * flat
        if self.listener.writer is not None:
            each = self.listener.writer.losses(heard, lengths, targets, counts, self.smoothing)
            parts["attention"] = each.mean()
        loss = torch.stack([self.weights[name] * value for name, value in parts.items()]).sum()
        return {"loss": loss, **parts}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective of one batch."""
        tokens, lengths = self.quantized(batch)
        losses = self.losses(batch, self.listener(tokens.values, lengths), lengths, tokens.loss)
        return self.log_training(losses, batch)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss, errors of each decoder, and the codes that came."""
        tokens, lengths = self.quantized(batch)
        heard = self.listener(tokens.values, lengths)
        losses = self.losses(batch, heard, lengths, tokens.loss)
        self.log("val/loss", losses["loss"], batch_size=len(batch.wave), sync_dist=True, add_dataloader_idx=False)
        self._codes.append(tokens.codes[valid_mask(lengths, tokens.codes.shape[1])])
        for name in self.listener.decoders:
            texts = [self.tokenizer.decode(row) for row in self.listener.decode(name, heard, lengths)]
            self.count_edits(name, batch, texts)

    def on_validation_epoch_end(self) -> None:
        """Error rates of each decoder and use of codes, over all processes."""
        super().on_validation_epoch_end()
        usage = Usage(self.model.size).to(self.device)
        for codes in self._codes:
            usage.update(codes)
        utilization, perplexity = usage.compute()
        self.log("val/utilization", utilization, prog_bar=True)
        self.log("val/perplexity", perplexity)
        self._codes = []
