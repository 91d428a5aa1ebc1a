"""Training of ANCAT: recognition beside what its look-ahead costs, over gates that harden as training goes on."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from speechkit.asr.ancat import AncatEncoder, Gated, Gating
from speechkit.asr.ancat_latency import (
    algorithmic_loss,
    arrivals,
    compute_loss,
    connection_penalty,
    inside,
    measure,
)
from speechkit.asr.model import Recognizer
from speechkit.asr.task import RecognitionTask
from speechkit.data.collate import Batch
from speechkit.nn.masks import valid_mask
from speechkit.text import Tokenizer

log = logging.getLogger(__name__)

PENALTIES = ("path", "connection")


@dataclass(frozen=True)
class Phases:
    """When training does what (reconstruction): gates are open first, then pruned as they sharpen, then hard.

    Args:
        start: steps in which all gates are open; from there on schedulers learn, and latency counts.
        ramp: steps over which its weights then rise to their values.
        hard: step from which gates are hard, with gradients straight through.
        temperatures: of the gates at `start` and at `hard`; between them it falls geometrically.
        noise: scale of logistic noise on the logits of the gates.
    """

    start: int = 0
    ramp: int = 0
    hard: int = 0
    temperatures: Sequence[float] = (1.0, 0.1)
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.hard:
            raise ValueError(
                f"latency must count before gates are hard, got step {self.start} for it and {self.hard} for them"
            )
        if len(self.temperatures) != 2 or not min(self.temperatures) > 0:
            raise ValueError(f"temperatures must be two numbers over 0, got {list(self.temperatures)}")
        if min(self.noise, self.ramp) < 0:
            raise ValueError(f"noise and ramp must not be negative, got {self.noise} and {self.ramp}")

    def gating(self, step: int) -> Gating:
        """How gates are drawn at a step of training."""
        first, last = self.temperatures
        progress = min(max(step - self.start, 0) / max(self.hard - self.start, 1), 1.0)
        return Gating(first * (last / first) ** progress, self.noise, step < self.start, step >= self.hard)

    def share(self, step: int) -> float:
        """Part of the latency's weights that counts at a step."""
        return min(max(step - self.start, 0) / self.ramp, 1.0) if self.ramp else float(step >= self.start)


class AncatTask(RecognitionTask):
    """The loss of `RecognitionTask` in nats per utterance, plus weighted latencies of `ancat_latency`.

    Logs ``train/algorithmic_ms`` and ``train/compute_ms`` under the gates of training and ``train/openness``, the mean
    gate; ``val/algorithmic_ms`` under the gates of inference; and ``val/settled_wer``, by which checkpoints are chosen:
    the word error rate once the gates are hard, infinite before, for a model that may still wait is no better one.
    Arguments that are not named here are those of `RecognitionTask`.

    Args:
        algorithmic_weight: of the mean wait of the outputs, from 0 to 1 of the longest possible one.
        compute_weight: of the mean backlog of a device, in steps.
        penalty: ``path``, the wait along the paths, or ``connection``, the naive penalty of each connection.
        free_steps: of wait that cost nothing.
        real_time_factor: of the device, on the causal encoder.
        phases: when.
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
        algorithmic_weight: float = 1.0,
        compute_weight: float = 0.0,
        penalty: str = "path",
        free_steps: float = 0.0,
        real_time_factor: float = 0.25,
        phases: Phases | None = None,
    ) -> None:
        super().__init__(
            model, tokenizer, optimizer, scheduler, ctc_weight, fastemit, flat_start, transducer_start, spec_augment,
            seed,
        )  # fmt: skip
        if not isinstance(model.encoder, AncatEncoder):
            raise ValueError(f"an AncatTask trains an AncatEncoder, got {type(model.encoder).__name__}")
        if penalty not in PENALTIES:
            raise ValueError(f"penalty must be one of {', '.join(PENALTIES)}, got {penalty!r}")
        if min(algorithmic_weight, compute_weight, free_steps) < 0 or not real_time_factor > 0:
            raise ValueError("weights and free steps must not be negative, and the real-time factor over 0")
        self.algorithmic_weight, self.compute_weight = algorithmic_weight, compute_weight
        self.penalty, self.free_steps, self.phases = penalty, free_steps, phases or Phases()
        layers = len(model.encoder.layers)
        self.longest, self.capacity = model.encoder.adaptive[1] * layers, layers / real_time_factor

    def on_fit_start(self) -> None:
        """Says where training is too short for its phases."""
        steps, hard = self.trainer.max_steps, self.phases.hard
        if 0 <= steps <= hard:
            log.warning(
                "gates would be hard from step %d on (task.phases.hard), but training ends at step %d: what is "
                "released hears under gates that it was not trained with",
                hard,
                steps,
            )

    def gated(self, batch: Batch, gating: Gating | None) -> Gated:
        """Encoder steps and gates of a batch; hard gates without `gating`."""
        return cast(AncatEncoder, self.model.encoder).gated(*self.features(batch), gating)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective of one batch."""
        steps, lengths, gates = self.gated(batch, self.phases.gating(self.global_step))
        losses = self._losses(batch, steps, lengths)
        cost, figures = self.latency(gates, lengths)
        losses["loss"] = losses["loss"] + self.phases.share(self.global_step) * cost
        return self.log_training(losses | figures, batch)

    def latency(self, gates: Tensor, lengths: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted latencies of (layers, batch, steps, right) gates, and what is logged of them."""
        arrival = arrivals(gates, lengths)
        work = compute_loss(arrival, lengths, self.capacity)
        if self.penalty == "path":
            cost = algorithmic_loss(arrival[-1], lengths, self.longest, self.free_steps)
        else:
            cost = connection_penalty(gates, lengths)
        step_ms, ones = self.model.step_ms, inside(torch.ones_like(gates), lengths)
        ones = ones * valid_mask(lengths, gates.shape[2])[..., None]
        figures = {
            "algorithmic_ms": algorithmic_loss(arrival[-1], lengths, 1.0) * step_ms,
            "compute_ms": work * step_ms,
            "openness": (gates * ones).sum() / ones.sum().clamp(min=1),
        }
        return self.algorithmic_weight * cost + self.compute_weight * work, figures

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As `RecognitionTask`, under the gates of inference, with their latency."""
        steps, lengths, gates = self.gated(batch, None)
        self.validate(batch, steps, lengths)
        mean = measure(gates, lengths, self.capacity).mean * self.model.step_ms
        count = max(1, int(lengths.sum()))
        self.log("val/algorithmic_ms", mean, batch_size=count, sync_dist=True, add_dataloader_idx=False, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        """Error rates, over all processes."""
        settled = self.error_rate(self.model.decoders[0])
        if self.global_step < self.phases.hard:
            settled = torch.full_like(settled, torch.inf)
        self.log("val/settled_wer", settled, rank_zero_only=False)
        super().on_validation_epoch_end()
