"""ANCAT: a causal Conformer whose schedulers decide, step by step, which future steps attention waits for.

Strimel et al. 2023 (arXiv 2305.04159), "Lookahead When It Matters". Of the paper's text only abstract, introduction and
the caption of figure 1 were at hand: every layer has an attention scheduler that fills in the connections to the right
and passes one mask to all heads. How schedulers look, how gates enter the attention and everything about the losses
(`ancat_latency`) is a reconstruction, marked so below, and no figure of the paper is claimed.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechkit.asr.ancat_stream import AncatStream
from speechkit.asr.conformer import ConformerEncoder, Context
from speechkit.errors import InputError
from speechkit.nn.attention import MASKED, relative_positions
from speechkit.nn.gates import as_gates, gate_bias
from speechkit.nn.linear import Linear
from speechkit.nn.masks import valid_mask
from speechkit.streaming.chain import Chain

MODES = ("contiguous", "free")
CLOSED = 1e-6  # weight of a closed gate in hard training: its gradient is then what opening the gate would change


class FixedContext(NamedTuple):
    """The context without schedulers: each step of each layer waits for `right` steps; 0 is causal."""

    left: int
    right: int
    fixed: bool = True  # so that none of them equals the adaptive context of the same numbers


class Gating(NamedTuple):
    """How gates are drawn in training (reconstruction): softer at high temperature, hard ones straight through.

    An encoder that has not learned anything closes gates for what they let in is noise: until it has, all are open.
    """

    temperature: float = 1.0
    noise: float = 0.0  # scale of logistic noise on the logits; 1 draws open gates with their probability
    open: bool = False  # all of them, and schedulers do not learn
    hard: bool = False  # forward as in inference, gradients of the soft gates (Bengio et al. 2013)


class Gated(NamedTuple):
    """Encoder steps and the gates behind them."""

    steps: Tensor  # (batch, steps, dim), zero after each row's steps
    lengths: Tensor  # (batch,)
    gates: Tensor  # (layers, batch, steps, right) from 0 to 1: step i of a layer waits for step i + 1 + r of its input


class Scheduler(nn.Module):
    """Which of the next `right` steps a step waits for, decided from the step itself (reconstruction).

    Layer norm, linear, SiLU, linear. In mode ``free`` every connection has a gate of its own. In mode ``contiguous`` a
    step waits for the first m steps after it: a gate is the product of its own factor and those before it.

    Args:
        openness: probability of a gate's factor at the start: training begins non-causal and prunes.
    """

    def __init__(
        self, dim: int, right: int, mode: str = "contiguous", hidden: int = 64, openness: float = 0.85
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"a scheduler's mode must be one of {', '.join(MODES)}, got {mode!r}")
        if right < 1 or hidden < 1:
            raise ValueError(f"a scheduler needs at least one step to wait for and one unit, got {right} and {hidden}")
        if not 0 < openness < 1:
            raise ValueError(f"a scheduler's openness must lie between 0 and 1, got {openness}")
        self.mode = mode
        self.norm = nn.LayerNorm(dim)
        self.hidden = Linear(dim, hidden)
        self.out = Linear(hidden, right)
        nn.init.constant_(self.out.bias, math.log(openness / (1 - openness)))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, steps, dim) a layer's input -> (batch, steps, right) logits, in single precision or better."""
        logits = self.out(F.silu(self.hidden(self.norm(x))))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def hard(self, logits: Tensor) -> Tensor:
        """Logits -> the gates of inference, bool: what soft ones become as the temperature falls to zero."""
        opened = logits > 0
        return opened if self.mode == "free" else (~opened).long().cumsum(-1) == 0

    def soft(self, logits: Tensor, gating: Gating) -> tuple[Tensor, Tensor]:
        """Logits -> (batch, steps, right) logarithms of the gates, and the gates."""
        if gating.open:
            log = 0.0 * logits  # a gradient of zero, for DDP waits for every parameter's
            return log, log.exp()
        if gating.noise:
            uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            logits = logits + gating.noise * torch.logit(uniform)
        log = F.logsigmoid(logits / gating.temperature)
        log = log if self.mode == "free" else log.cumsum(-1)
        gates = log.exp()
        if gating.hard:
            gates = self.hard(logits).to(gates) + (gates - gates.detach())
            log = torch.log(gates.clamp(min=0) + CLOSED)
        return log.clamp(min=MASKED), gates


Gate = Callable[[Scheduler, Tensor], tuple[Tensor, Tensor]]


class AncatEncoder(ConformerEncoder):
    """A causal Conformer with regular attention, up to `right` adaptive right connections for each layer and step.

    Parameters are those of `ConformerEncoder` and ``schedulers.*``. With all gates closed it equals that encoder with
    ``style="regular"`` and the context [left, 0], with all gates open the one with [left, right]; a `FixedContext`
    gives both, and what lies between. Arguments that are not named here are those of `ConformerEncoder`.

    Args:
        left: attention context in steps.
        right: most steps that a layer waits for; over the layers they add up.
        mode, scheduler_dim, openness: see `Scheduler`.
    """

    def __init__(
        self,
        n_mels: int = 80,
        dim: int = 256,
        layers: int = 16,
        heads: int = 4,
        conv_kernel: int = 9,
        ff_expansion: int = 4,
        subsampling_channels: int = 256,
        left: int = 70,
        right: int = 4,
        mode: str = "contiguous",
        scheduler_dim: int = 64,
        openness: float = 0.85,
        bias: bool = True,
        xscale: bool = True,
        conv_norm: str = "layer_norm",
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
    ) -> None:
        if left < 0:
            raise ValueError(f"an adaptive encoder has a limited left context, got {left}")
        super().__init__(
            n_mels, dim, layers, heads, conv_kernel, ff_expansion, subsampling_channels, contexts=[(left, right)],
            style="regular", bias=bias, xscale=xscale, causal=True, conv_norm=conv_norm, dropout=dropout,
            attention_dropout=attention_dropout,
        )  # fmt: skip
        self.schedulers = nn.ModuleList(Scheduler(dim, right, mode, scheduler_dim, openness) for _ in range(layers))

    @property
    def adaptive(self) -> Context:
        """The context in which the schedulers decide: [left, right]."""
        return self.contexts[0]

    def check(self, context: Context | FixedContext) -> None:
        """Refuses contexts that are neither the adaptive nor a fixed one."""
        if isinstance(context, FixedContext):
            if context.left < 0 or context.right < 0:
                raise InputError(f"a fixed context must be limited, got {list(context[:2])}")
        elif tuple(context) != self.adaptive:
            raise InputError(
                f"the schedulers were trained for the context {list(self.adaptive)}, got {list(context)}; one in which "
                "they decide nothing is a FixedContext in Python"
            )

    def forward(
        self, features: Tensor, lengths: Tensor, context: Context | FixedContext | None = None
    ) -> tuple[Tensor, Tensor]:
        """(batch, frames, n_mels) -> (batch, steps, dim) under hard gates, and the valid steps of each row."""
        x, lengths = self.subsampling(features, lengths)
        return self.contextualize(x, lengths, self.adaptive if context is None else context)

    def contextualize(self, x: Tensor, lengths: Tensor, context: Context | FixedContext) -> tuple[Tensor, Tensor]:
        """The layers alone: (batch, steps, dim) subsampled features -> the same shape, zero after each row's steps."""
        return self.schedule(x, lengths, context)[:2]

    def gated(self, features: Tensor, lengths: Tensor, gating: Gating | None = None) -> Gated:
        """As `forward`, with the gates: hard ones where no `gating` says how to train them."""
        x, lengths = self.subsampling(features, lengths)
        return self.schedule(x, lengths, self.adaptive, gating)

    def gate(self, context: Context | FixedContext, gating: Gating | None = None) -> Gate:
        """The function of a scheduler and its layer's input that gives the gates' logarithms and the gates."""
        self.check(context)
        if isinstance(context, FixedContext):
            right = context.right
            return lambda _, x: as_gates(x.new_ones(*x.shape[:2], right, dtype=torch.bool))
        if gating is None:
            return lambda scheduler, x: as_gates(scheduler.hard(scheduler(x)))
        return lambda scheduler, x: scheduler.soft(scheduler(x), gating)

    def schedule(
        self, x: Tensor, lengths: Tensor, context: Context | FixedContext, gating: Gating | None = None
    ) -> Gated:
        """As `contextualize`, with the gates."""
        gate, time = self.gate(context, gating), x.shape[1]
        valid = valid_mask(lengths, time)
        position = torch.arange(time, device=x.device)
        distance = (position - position[:, None]).expand(x.shape[0], -1, -1)
        x = self.dropout(x * self.scale)
        sinusoids = relative_positions(time - 1, 2 * time - 1, self.dim, self.subsampling.out.weight)
        gates = []
        for layer, scheduler in zip(self.layers, self.schedulers, strict=True):
            log, opened = gate(cast(Scheduler, scheduler), x)
            x = layer(x, gate_bias(log, distance, valid[:, None], context[0]), sinusoids, valid[..., None])
            gates.append(opened)
        return Gated(x * valid[..., None], lengths, torch.stack(gates))

    def at(self, context: Context | FixedContext, chunks: int = 1) -> Chain:
        """The encoder as a streaming module: (batch, frames, n_mels) -> (batch, steps, dim).

        Takes `chunks` steps a call. The view reads the weights as they are now: make it after loading them.
        """
        return Chain(self.subsampling, AncatStream(self, context, chunks))
