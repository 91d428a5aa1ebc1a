"""Training of Paraformer: two passes, the second with some targets shown; utterances whole and in blocks by turns."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from speechkit.asr.blocks import Grid
from speechkit.asr.ctc import ctc_loss
from speechkit.asr.decoding.greedy import left_aligned
from speechkit.asr.paraformer import Heard, Paraformer
from speechkit.asr.paraformer_loss import (
    glancing_mask,
    length_error,
    mwer_loss,
    path_errors,
    sampled_paths,
    smoothed_cross_entropy,
    with_end,
)  # fmt: skip
from speechkit.asr.task import TextTask
from speechkit.data.collate import Batch
from speechkit.text import Tokenizer

WEIGHT_ROWS = 64  # of a picture


class ParaformerTask(TextTask):
    """Loss ``(1 - c) * cross-entropy + c * CTC + l * MAE of lengths + m * MWER`` (Gao et al. 2022).

    Args:
        model: the recogniser; every batch draws one of its contexts.
        tokenizer: text to token ids and back.
        optimizer: takes the parameters.
        scheduler: takes the optimizer; stepped after every optimizer step.
        sampling_ratio: part of the first pass's misses whose targets the second pass is shown; 0: one pass.
        smoothing: of the targets.
        length_weight: l.
        ctc_weight: c, where the model has a head for it.
        mwer_weight: m; the paper does not say how it weighs this, which comes last in training.
        mwer_start: steps before word errors count.
        mwer_paths: ways to say an utterance that are compared, the most probable one among them.
        flat_start: steps over which training goes from equal alignments, in which every token has a share of the
            utterance by its length, to CTC's own.
        context_weights: how often each context is drawn; evenly where none are given.
        spec_augment: masks features (batch, time, in_dim) given their lengths, in training.
        seed: every step's random draws are a function of it and the step's number.
    """

    def __init__(
        self,
        model: Paraformer,
        tokenizer: Tokenizer,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        sampling_ratio: float = 0.4,
        smoothing: float = 0.1,
        length_weight: float = 1.0,
        ctc_weight: float = 0.3,
        mwer_weight: float = 0.0,
        mwer_start: int = 0,
        mwer_paths: int = 4,
        flat_start: int = 0,
        context_weights: Sequence[float] | None = None,
        spec_augment: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(model, Paraformer):
            raise ValueError(f"a ParaformerTask trains a Paraformer, got {type(model).__name__}")
        names = ["nar", *(f"nar_{model.latency_ms(grid):g}" for grid in model.contexts[1:])]
        super().__init__(tokenizer, optimizer, scheduler, names, seed)
        if not 0 <= sampling_ratio <= 1 or not 0 <= smoothing < 1 or not 0 <= ctc_weight <= 1:
            raise ValueError(
                f"sampling_ratio, smoothing and ctc_weight are from 0 to 1, got {sampling_ratio}, {smoothing} and "
                f"{ctc_weight}"
            )
        if mwer_paths < 2 or min(length_weight, mwer_weight) < 0:
            raise ValueError("word errors are compared of 2 paths or more, and no weight is negative")
        if context_weights is not None and len(context_weights) != len(model.contexts):
            raise ValueError(f"context_weights needs one weight a context, got {len(context_weights)}")
        if context_weights is not None and not (min(context_weights) >= 0 and 0 < sum(context_weights) < math.inf):
            raise ValueError(f"context_weights must not be negative, nor all zero, got {list(context_weights)}")
        if min(flat_start, mwer_start) < 0:
            raise ValueError(f"training does not begin before step 0, got {flat_start} and {mwer_start}")
        self.hearings = dict(zip(names, model.contexts, strict=True))
        self.model, self.sampling_ratio, self.smoothing = model, sampling_ratio, smoothing
        self.length_weight, self.ctc_weight = length_weight, ctc_weight if model.ctc is not None else 0.0
        self.mwer_weight, self.mwer_start = mwer_weight, mwer_start
        self.mwer_paths, self.flat_start = mwer_paths, flat_start
        self.context_weights, self.spec_augment = context_weights, spec_augment
        if model.ctc is not None:
            model.ctc.requires_grad_(self.ctc_weight > 0)  # DDP would wait for gradients that never come
        model.decoder.embed.requires_grad_(sampling_ratio > 0)

    @property
    def rate(self) -> int:
        """Of the waves, Hz."""
        return self.model.rate

    def hear(self, batch: Batch, context: Grid | None = None) -> Heard:
        """Encoder steps at a context, or a drawn one, with SpecAugment in training."""
        features, lengths = self.model.front(batch.wave, batch.wave_lengths)
        if self.training and self.spec_augment is not None:
            features = self.spec_augment(features, lengths)
        if context is None:
            context = random.choices(self.model.contexts, self.context_weights)[0]
        return self.model.heard(features, lengths, context)

    def losses(self, heard: Heard, targets: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """The decoder's parts of the objective; targets (batch, tokens) without the end, (batch,)."""
        model = self.model
        wanted, counts = with_end(targets, lengths, model.end)
        fired = model.integrated(heard, counts)
        sight = model.sight(heard, fired)
        embeds = fired.embeds
        if self.training and self.sampling_ratio > 0:
            with torch.no_grad():
                hits = model.decoder(embeds, sight).argmax(-1) == wanted
            given = glancing_mask(hits, counts, self.sampling_ratio)
            embeds = torch.where(given[..., None], model.decoder.embed(wanted).to(embeds), embeds)
        scores = model.decoder(embeds, sight)
        found = {
            "cross_entropy": smoothed_cross_entropy(scores, wanted, counts, self.smoothing),
            "length_error": length_error(fired.total, counts),
        }
        if self.training and self.mwer_weight > 0 and self.global_step >= self.mwer_start:
            paths = sampled_paths(scores, counts, self.mwer_paths)
            rows = [row[:count] for row, count in zip(targets.tolist(), lengths.tolist(), strict=True)]
            found["mwer"] = mwer_loss(paths, path_errors(paths, counts, rows, model.text))
        return found

    def _ctc(self, heard: Heard, batch: Batch) -> Tensor:
        """Mean loss of the head over the steps that are no other block's, of late from equal alignments."""
        head = self.model.ctc
        if head is None:
            return heard.steps.new_zeros(())
        steps, lengths = (
            (heard.steps, heard.owned.sum(1)) if heard.grid.whole else left_aligned(heard.steps, heard.owned)
        )
        log_probs = head(steps)
        loss = ctc_loss(log_probs, batch.tokens, lengths, batch.token_lengths, head.blank).mean()
        if self.training and self.global_step < self.flat_start:
            own = self.global_step / self.flat_start
            loss = own * loss + (1 - own) * self.flat_loss(log_probs, batch, lengths, head.blank)
        return loss

    def _objective(self, heard: Heard, batch: Batch) -> dict[str, Tensor]:
        parts = self.losses(heard, batch.tokens, batch.token_lengths)
        loss = (1 - self.ctc_weight) * parts["cross_entropy"] + self.length_weight * parts["length_error"]
        if self.ctc_weight > 0:
            parts["ctc"] = self._ctc(heard, batch)
            loss = loss + self.ctc_weight * parts["ctc"]
        if "mwer" in parts:
            loss = loss + self.mwer_weight * parts["mwer"]
        return {"loss": loss, **parts}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective of one batch."""
        return self.log_training(self._objective(self.hear(batch), batch), batch)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss under the first context, and errors of the texts under each."""
        for name, context in self.hearings.items():
            heard = self.hear(batch, context)
            self.count_edits(name, batch, self.decode(heard))
            if name == "nar":
                loss = self._objective(heard, batch)["loss"]
                self.log("val/loss", loss, batch_size=len(batch.wave), sync_dist=True, add_dataloader_idx=False)

    def sample(self, wave: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Features, how much of a token each step is, and CTC posteriors (the blank is the lowest row)."""
        model = self.model
        with torch.autocast(wave.device.type, enabled=False):
            features, lengths = model.front(wave, torch.tensor([wave.shape[1]], device=wave.device))
            heard = model.heard(features, lengths, model.contexts[0])
        height = torch.linspace(1, 0, WEIGHT_ROWS, device=wave.device)[:, None]
        pictures = {"features": features[0].T.flip(0), "weights": (heard.weights[0] >= height).float()}
        if model.ctc is not None:
            pictures["ctc"] = model.ctc(heard.steps)[0].exp().T
        return pictures, {"nar": self.decode(heard)[0]}

    def decode(self, heard: Heard) -> list[str]:
        """Texts of what was heard."""
        fired = self.model.integrated(heard)
        if not fired.embeds.shape[1]:
            return [""] * len(fired.counts)
        best = self.model.decoder(fired.embeds, self.model.sight(heard, fired)).argmax(-1)
        rows = zip(best.tolist(), fired.counts.tolist(), strict=True)
        return [self.tokenizer.decode(self.model.text(tokens[:count])) for tokens, count in rows]
