"""One step of a codec's training: what it computes, kernel by kernel or recorded as CUDA graphs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from speechkit.codecs.losses import Discriminators
from speechkit.codecs.wavtokenizer import Reconstruction

WARM_UP = 2  # runs before a recording, in which libraries make what they need


class Step:
    """Losses and gradients, first of the discriminators, then of the codec.

    Args:
        reconstructed: what the codec makes of `wave`.
        losses: of what it made, by name; the codec minimises ``loss``.
        model, discriminators: whose gradients are left.
        wave: (batch, samples).
        kind: of the discriminators' embeddings.
        anew: whether the codec learns from another reconstruction than the one that the discriminators heard.
        backward: leaves the gradients of a loss.
    """

    def __init__(
        self,
        reconstructed: Callable[[], Reconstruction],
        losses: Callable[[Reconstruction], dict[str, Tensor]],
        model: nn.Module,
        discriminators: Discriminators,
        wave: Tensor,
        kind: int,
        anew: bool = False,
        backward: Callable[[Tensor], None] = Tensor.backward,
    ) -> None:
        self.reconstructed, self.losses = reconstructed, losses
        self.model, self.discriminators = model, discriminators
        self.wave, self.kind, self.anew, self.backward = wave, kind, anew, backward
        self._made: Reconstruction | None = None

    def backward_discriminators(self) -> dict[str, Tensor]:
        """What the discriminators minimise; their gradients are left."""
        with torch.set_grad_enabled(not self.anew):
            made = self.reconstructed()
        told = self.discriminators.discriminator_loss(self.wave, made.wave, self.kind)
        self.discriminators.zero_grad()
        self.backward(told)
        self._made = None if self.anew else made
        return {"discriminators": told.detach()}

    def backward_generator(self) -> dict[str, Tensor]:
        """What the codec minimises; its gradients are left."""
        made = self._made or self.reconstructed()
        self._made = None
        with _fixed(self.discriminators):
            losses = self.losses(made)
            self.model.zero_grad()
            self.backward(losses["loss"])
        return {name: value.detach() for name, value in losses.items()}


class GraphedStep:
    """A step recorded on a GPU and replayed: the host starts two graphs instead of thousands of kernels.

    Args:
        step: whose waves are replaced before each replay.
        adversarial: whether the discriminators learn.
        pool: memory that steps share which are never replayed at once, from `torch.cuda.graph_pool_handle`.

    The same numbers come as without, but for the order in which a GPU adds. What Python decided while recording stays
    so: weights of losses, what has a gradient, hooks.
    """

    def __init__(self, step: Step, adversarial: bool, pool: Any) -> None:
        self.step = step  # what a graph reads has to stay
        parts: list[tuple[Callable[[], dict[str, Tensor]], nn.Module]] = [(step.backward_generator, step.model)]
        if adversarial:
            parts.insert(0, (step.backward_discriminators, step.discriminators))
        self._graphs, self._results, self._gradients = [], [], []
        with torch.random.fork_rng([step.wave.device]):
            _warmed_up([run for run, _ in parts], [*step.model.buffers()])
            for run, module in parts:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    found = run()
                self._graphs.append(graph)
                self._results.append(found)
                self._gradients.append([(p, p.grad) for p in module.parameters()])

    @property
    def wave(self) -> Tensor:
        """What is replayed on."""
        return self.step.wave

    def backward_discriminators(self) -> dict[str, Tensor]:
        """As `Step.backward_discriminators`."""
        return self._replayed(0)

    def backward_generator(self) -> dict[str, Tensor]:
        """As `Step.backward_generator`."""
        return self._replayed(-1)

    def _replayed(self, part: int) -> dict[str, Tensor]:
        self._graphs[part].replay()
        for parameter, gradient in self._gradients[part]:
            parameter.grad = gradient
        return self._results[part]


def _warmed_up(runs: Sequence[Callable[[], dict[str, Tensor]]], buffers: Sequence[Tensor]) -> None:
    """Runs what will be recorded on a stream of its own, as PyTorch asks; nothing is learnt from it."""
    kept = [buffer.clone() for buffer in buffers]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            for run in runs:
                run()
    torch.cuda.current_stream().wait_stream(stream)
    for buffer, value in zip(buffers, kept, strict=True):
        buffer.copy_(value)


@contextmanager
def _fixed(discriminators: Discriminators) -> Iterator[None]:
    """The gradient passes through the discriminators and leaves nothing there."""
    learning = [p for p in discriminators.parameters() if p.requires_grad]
    try:
        for p in learning:
            p.requires_grad_(False)
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)
