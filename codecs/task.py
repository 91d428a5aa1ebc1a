"""Training of codecs: reconstruction against discriminators that learn along with it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from speechkit.codecs.losses import Discriminators, MelLoss
from speechkit.codecs.quantizers import Usage
from speechkit.codecs.seanet import normalize_weights
from speechkit.codecs.step import GraphedStep, Step
from speechkit.codecs.wavtokenizer import Reconstruction, WavTokenizer
from speechkit.data.collate import Batch
from speechkit.errors import InputError

log = logging.getLogger(__name__)


class CodecTask(LightningModule):
    """Each step trains the discriminators, then the codec (Ji et al. 2024, section 3.4, and its code).

    The codec minimises ``mel_weight * mel + commitment_weight * commitment + adversarial + features``. A step of the
    trainer is one of both: its count, and so `max_steps`, is that of the codec's steps.

    Args:
        model: the codec; its encoder's weights are split into length and direction for the training.
        optimizer: takes parameters; there is one of the codec and one of the discriminators.
        discriminators: all that the codec has to fool.
        mel: distance of spectra.
        scheduler: takes an optimizer; stepped after every step of it.
        mel_weight, commitment_weight: see above.
        encoder_gain: of the encoder's convolutions, drawn anew with it and without biases (He et al. 2015, equation 10)
            where the codebook has not begun yet. As published (None), an untrained encoder's outputs hardly differ and
            all have one code, from which short trainings do not recover.
        quantization_start: steps, the first ones, in which latents are not quantised, where the codebook has not begun.
        discriminator_start: steps of the codec before the discriminators join in. They cost several times what it does.
        kinds: embeddings of the decoder and the discriminators, of which every step uses a random one and evaluation
            the first.
        compat: ``reference`` reconstructs anew for the codec's part of a step, so that the codebook moves twice, as in
            the published training; else what the discriminators heard is what the codec learns from.
        graphs: whether steps are recorded as CUDA graphs, where one process trains on a GPU in single precision on
            whole crops: small codecs wait for the host else. The same numbers come. See `GraphedStep`.
        seed: every step's random draws are a function of it and the step's number, so that a resumed run goes on as
            an unbroken one would.
        published: tensors of a checkpoint that the discriminators begin with, in its order; those of other sizes begin
            anew.

    Raises:
        ValueError: another `compat`, fewer steps than 0, or more `kinds` than there are embeddings.
    """

    def __init__(
        self,
        model: WavTokenizer,
        optimizer: Callable[[Any], Optimizer],
        discriminators: Discriminators,
        mel: MelLoss,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        mel_weight: float = 45.0,
        commitment_weight: float = 1000.0,
        encoder_gain: float | None = None,
        quantization_start: int = 0,
        discriminator_start: int = 0,
        kinds: int = 4,
        compat: str | None = None,
        graphs: bool = False,
        seed: int = 0,
        published: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        super().__init__()
        if compat not in (None, "reference"):
            raise ValueError(f"compat must be 'reference' or null, got {compat!r}")
        most = min(model.decoder.kinds, discriminators.kinds)
        if not 1 <= kinds <= most:
            raise ValueError(f"kinds must be from 1 to {most}, the embeddings that all parts have, got {kinds}")
        if min(quantization_start, discriminator_start) < 0:
            raise ValueError(f"steps cannot be fewer than 0, got {min(quantization_start, discriminator_start)}")
        if encoder_gain is not None and not model.quantizer.begun:
            _drawn_anew(model.encoder, encoder_gain)
        normalize_weights(model.encoder)
        self.model, self.discriminators, self.mel = model, discriminators, mel
        for name, tensors in (published or {}).items():
            _begun_with(getattr(self.discriminators, name), tensors, name)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.mel_weight, self.commitment_weight = mel_weight, commitment_weight
        self.quantization_start, self.discriminator_start = quantization_start, discriminator_start
        self.kinds, self.compat, self.graphs, self.seed = kinds, compat, graphs, seed
        self.automatic_optimization = False
        self._whole = False  # the crops of the last batch
        self._graphs: dict[tuple[int, ...], GraphedStep] = {}  # of one phase: they share their memory
        self._phase: tuple[bool, bool] | None = None
        self._codes: list[Tensor] = []  # no buffer: DDP would overwrite every process's with the first one's

    def on_fit_start(self) -> None:
        """Refuses a precision whose scaling of losses only one of the two optimizers would undo."""
        if str(self.trainer.precision) == "16-mixed":
            raise InputError("a codec trains in trainer.precision=32-true or bf16-mixed, got 16-mixed")
        if self.graphs and not self._can_be_graphed:
            log.warning("task.graphs=true needs one process on a GPU and trainer.precision=32-true: no graphs here")
        self._forget_graphs()

    def on_fit_end(self) -> None:
        """Gives the graphs' memory back; where the model goes now, they would not find it."""
        self._forget_graphs()

    def _forget_graphs(self) -> None:
        self._graphs.clear()
        self._phase = None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds the step."""
        step = self.seed * 1_000_003 + self.global_step * 7919 + self.global_rank * 15_485_863
        torch.manual_seed(step)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Sees whether all crops are whole, while that costs nothing to know; refuses those that are too short."""
        least = max(self.mel.least, self.discriminators.least)
        if batch.wave.shape[1] < least:
            seconds = least / self.model.rate
            raise InputError(
                f"crops are too short for the losses' spectra: data.crop_seconds must be {seconds:.3f} or more"
            )
        self._whole = bool((batch.wave_lengths == batch.wave.shape[1]).all())
        return batch

    def reconstructed(self, batch: Batch, quantized: bool = True) -> Reconstruction:
        """What the codec makes of a batch, as long as it was."""
        if not quantized:
            latents, counts = self.model.encoder(batch.wave, batch.wave_lengths)
            shape = latents.shape[:2] if self.model.codebooks == 1 else (*latents.shape[:2], self.model.codebooks)
            made = Reconstruction(
                self.model.decoder(latents, counts)[0], counts.new_zeros(shape), commitment=latents.new_zeros(())
            )
        else:
            made = self.model(batch.wave, batch.wave_lengths, whole=self._whole)
        return made._replace(wave=made.wave[:, : batch.wave.shape[1]])

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step of the discriminators, once they are there, and one of the codec."""
        kind = int(torch.randint(self.kinds, ()))
        self.model.decoder.use(kind)
        adversarial = self.global_step >= self.discriminator_start
        codec = self.optimizers()[0]  # type: ignore[index]
        # Lightning counts the steps of optimizers that it wraps: this one is not to be counted.
        judges: Optimizer = self.optimizers(use_pl_optimizer=False)[1]  # type: ignore[index]
        step = self._step(batch, kind, adversarial)
        losses = {}
        if adversarial:
            losses = step.backward_discriminators()
            judges.step()
        losses = losses | step.backward_generator()
        codec.step()
        for name, value in losses.items():
            self.log(f"train/{name}", value, prog_bar=name in ("loss", "mel"), batch_size=len(batch.wave))
        for i, scheduler in enumerate(self.lr_schedulers() or []):  # type: ignore[arg-type]
            if i == 0 or adversarial:  # the discriminators' rate begins to fall when they begin to learn
                scheduler.step()

    def _step(self, batch: Batch, kind: int, adversarial: bool) -> Step | GraphedStep:
        """What computes the step, on the batch."""
        begun = self.model.quantizer.begun
        quantized = begun or self.global_step >= self.quantization_start

        def made(batch: Batch) -> Step:
            return Step(
                lambda: self.reconstructed(batch, quantized),
                lambda found: self._losses(batch.wave, found, kind, adversarial),
                self.model,
                self.discriminators,
                batch.wave,
                kind,
                anew=self.compat == "reference",
                backward=self.manual_backward,
            )

        if not (self._can_be_graphed and self._whole) or quantized != begun:  # a codebook begins
            return made(batch)
        phase, key = (adversarial, quantized), (kind, *batch.wave.shape)
        if self._phase != phase:  # what was recorded before will not be replayed again
            self._phase, self._pool = phase, torch.cuda.graph_pool_handle()
            self._graphs.clear()
        if key not in self._graphs:
            still = made(batch._replace(wave=batch.wave.clone()))
            self._graphs[key] = GraphedStep(still, adversarial, self._pool)
        self._graphs[key].wave.copy_(batch.wave)
        return self._graphs[key]

    @property
    def _can_be_graphed(self) -> bool:
        """Whether graphs are wanted, and can be had here."""
        alone = self.trainer.world_size == 1 and str(self.trainer.precision) == "32-true"
        return self.graphs and alone and self.device.type == "cuda"

    def _losses(self, wave: Tensor, made: Reconstruction, kind: int, adversarial: bool) -> dict[str, Tensor]:
        losses = {"mel": self.mel(wave, made.wave), "commitment": made.commitment}
        loss = self.mel_weight * losses["mel"] + self.commitment_weight * losses["commitment"]
        if adversarial:
            losses |= self.discriminators.generator_losses(wave, made.wave, kind)
            loss = loss + losses["adversarial"] + losses["features"]
        return {"loss": loss, **losses}

    def on_validation_epoch_start(self) -> None:
        """Begins to count codes; the embeddings are those of evaluation."""
        self.model.decoder.use(0)
        self._codes = []

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Distances of crops."""
        made = self.reconstructed(batch)
        self._codes.append(made.codes.flatten(0, 1))
        found = {"mel": self.mel(batch.wave, made.wave), "commitment": made.commitment}
        for name, value in found.items():
            self.log(f"val/{name}", value, prog_bar=name == "mel", batch_size=len(batch.wave), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Which share of the codes came, and their perplexity, over all processes."""
        usage = Usage(self.model.size, self.model.codebooks).to(self.device)
        for codes in self._codes:
            usage.update(codes)
        utilization, perplexity = usage.compute()
        self.log("val/utilization", utilization, prog_bar=True)
        self.log("val/perplexity", perplexity)
        self._codes = []

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer twice, of the codec and of the discriminators, and its scheduler for each."""
        optimizers = [self.make_optimizer(list(part.parameters())) for part in (self.model, self.discriminators)]
        if self.make_scheduler is None:
            return optimizers
        return optimizers, [self.make_scheduler(optimizer) for optimizer in optimizers]


def _drawn_anew(module: nn.Module, gain: float) -> None:
    """Convolutions that keep the deviation of what they are given, times `gain`."""
    for part in module.modules():
        if isinstance(part, nn.Conv1d):
            nn.init.normal_(part.weight, std=gain * part.weight[0].numel() ** -0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _begun_with(module: nn.Module, tensors: Sequence[Tensor], name: str) -> None:
    """Takes tensors in the order of the module's own, if they are of its sizes."""
    ours = module.state_dict()
    if [x.shape for x in tensors] != [x.shape for x in ours.values()]:
        log.warning("the checkpoint's discriminators (%s) have other sizes than the recipe's: they begin anew", name)
        return
    module.load_state_dict(dict(zip(ours, tensors, strict=True)))
