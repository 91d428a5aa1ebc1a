"""ANCAT chunk by chunk: every layer has a queue of steps that wait for their look-ahead.

The execution is a reconstruction, as all of ANCAT here (see `ancat`); that it equals the encoder under its hard masks
is a test.
"""

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from speechkit.nn.gates import as_gates, gate_bias
from speechkit.nn.masks import valid_mask
from speechkit.streaming.state import Chunk, check_room, queue_pop, queue_push

if TYPE_CHECKING:
    from speechkit.asr.ancat import AncatEncoder, FixedContext, Scheduler
    from speechkit.asr.conformer import ConformerLayer, Context


class AncatLayerState(NamedTuple):
    """What a layer keeps of the past, and the steps that it has not run yet."""

    memory: Tensor  # (batch, left + right, 2 * dim) projected keys and values of the newest inputs
    held: Tensor  # (batch, right, 2 * dim + right) residual, projected query and gates of each waiting step
    conv_left: Tensor  # (batch, kernel - 1, dim)


class AncatState(NamedTuple):
    """State of every layer, and how far each has come."""

    steps: Tensor  # (batch, layers + 1) int64 steps that came to each layer, and that the last one gave
    layers: tuple[AncatLayerState, ...]


class Queue(NamedTuple):
    """A layer in a call: what came, what waits and what runs now."""

    came: Tensor  # (batch,) inputs before this call
    arrived: Tensor  # (batch,) inputs including this call's
    given: Tensor  # (batch,) steps run before this call
    runs: Tensor  # (batch,) steps that run now
    room: int  # the most of them in a row, at least 1; in a graph the queue's size


class AncatStream:
    """The layers of an `AncatEncoder` at one context, prepared for inference; equal to its hard-masked forward pass.

    A step of a layer runs in the call in which the last input that its open gates wait for has come, or the stream has
    ended; in a row's order, all that became ready at once. Keys and values are projected once, when an input comes. At
    most `right` steps wait in a layer, so that the state's size is fixed. A call computes what runs in it; in a
    graph (ONNX), whose sizes are fixed, the most that could.

    Rounding may turn a gate whose logit is all but zero: in single precision a stream and the whole can differ there.
    """

    stride = 1

    def __init__(self, encoder: "AncatEncoder", context: "Context | FixedContext", chunks: int = 1) -> None:
        if chunks < 1:
            raise ValueError(f"a stream takes at least one step a call, got {chunks}")
        self.encoder, self.gate = encoder, encoder.gate(context)
        self.left, self.right = context[:2]
        self.chunk = self.first = chunks
        self.lookahead = self.right * len(encoder.layers)
        self.room = chunks + self.lookahead  # outputs that may come in one call
        self._positions: list[Tensor] = []

    @property
    def layers(self) -> "list[ConformerLayer]":
        """The encoder's layers."""
        return cast("list[ConformerLayer]", list(self.encoder.layers))

    def init_state(self, batch: int) -> AncatState:
        """State of `batch` streams that have not begun."""
        zeros, dim = self.encoder.subsampling.out.weight.new_zeros, self.encoder.dim
        layers = []
        for layer in self.layers:
            memory = zeros(batch, self.left + self.right, 2 * dim)
            held = zeros(batch, self.right, 2 * dim + self.right)
            layers.append(AncatLayerState(memory, held, layer.convolution.init_state(batch)))
        steps = zeros(batch, len(layers) + 1).long()
        return AncatState(steps, tuple(layers))

    def step(self, x: Chunk, state: AncatState) -> tuple[Chunk, AncatState]:
        """(batch, chunk, dim) subsampled features -> (batch, chunk + right * layers, dim) encoder steps."""
        check_room(x, self.chunk)
        y, counts = x._replace(values=x.values * self.encoder.scale), [state.steps[:, 0] + x.lengths]
        layers, busy = [], torch.compiler.is_compiling() or bool(x.last.any())
        for i, layer in enumerate(state.layers):
            if busy or bool(y.lengths.any()):  # else nothing came, and nothing can have become ready
                y, layer = self._layer(i, y, state.steps[:, i], state.steps[:, i + 1], layer)
            layers.append(layer)
            counts.append(state.steps[:, i + 1] + y.lengths)
        values = F.pad(y.values, (0, 0, 0, self.room - y.values.shape[1]))
        return y._replace(values=values), AncatState(torch.stack(counts, 1), tuple(layers))

    @property
    def positions(self) -> list[Tensor]:
        """Each layer's projected distances for as many queries as can come at once; fewer take the middle of them."""
        if not self._positions:
            first, count = self.left + self.room - 1, self.left + self.right + 2 * self.room - 1
            with torch.no_grad():
                self._positions = [layer.attention.positions(first, count) for layer in self.layers]
        return self._positions

    def _layer(
        self, i: int, x: Chunk, came: Tensor, given: Tensor, state: AncatLayerState
    ) -> tuple[Chunk, AncatLayerState]:
        """One layer of a call: what came, (batch, any, dim) -> what runs, (batch, any, dim)."""
        layer, dim = self.layers[i], self.encoder.dim
        _, gates = self.gate(cast("Scheduler", self.encoder.schedulers[i]), x.values)
        residual = layer.enter(x.values)
        q, new = layer.attention.qkv(layer.norm_attention(residual)).split([dim, 2 * dim], dim=2)
        waiting = came - given
        queue = queue_push(state.held, waiting, x._replace(values=torch.cat([residual, q, gates.to(q)], dim=2)))
        now = self._ready(queue[..., 2 * dim :], x, came, given)
        residual, q, gates = queue[:, : now.room].split([dim, dim, self.right], dim=2)
        memory = torch.cat([state.memory, new], dim=1)
        y = residual + self._attend(i, q, gates, memory, now)
        y, conv_left = self._convolve(layer, y, now, state.conv_left)
        left_over = (now.arrived - now.given - now.runs)[:, None]
        held = queue_pop(queue, now.runs, self.right)
        held = held * (torch.arange(self.right, device=held.device) < left_over)[..., None]
        memory = queue_pop(memory, x.lengths, self.left + self.right)
        return Chunk(y, now.runs, x.last), AncatLayerState(memory, held, conv_left)

    def _ready(self, gates: Tensor, x: Chunk, came: Tensor, given: Tensor) -> Queue:
        """How many of each row's queue run: in order, up to the first that waits for what has not come."""
        arrived = came + x.lengths
        place = torch.arange(gates.shape[1], device=gates.device)
        reach = (gates * torch.arange(1, self.right + 1, device=gates.device)).amax(2) if self.right else gates.sum(2)
        ready = (given[:, None] + place + reach.long() < arrived[:, None]) | x.last[:, None]
        ready = ready & (place < (arrived - given)[:, None])
        runs = ((~ready).long().cumsum(1) == 0).sum(1)
        room = gates.shape[1] if torch.compiler.is_compiling() else max(1, int(runs.max()))
        return Queue(came, arrived, given, runs, room)

    def _attend(self, i: int, q: Tensor, gates: Tensor, memory: Tensor, now: Queue) -> Tensor:
        """Attention of the steps that run, whose first one's left context begins each row's window of the memory."""
        attention, window = self.layers[i].attention, self.left + self.right + now.room
        offset = self.right - (now.came - now.given)
        k, v = attention.by_head(queue_pop(memory, offset, window), 2)
        query = torch.arange(now.room, device=q.device)
        distance = (torch.arange(window, device=q.device) - self.left - query[:, None]).expand(q.shape[0], -1, -1)
        key = now.given[:, None] - self.left + torch.arange(window, device=q.device)
        valid = ((key >= 0) & (key < now.arrived[:, None]))[:, None]
        log, _ = as_gates(gates > 0)
        skipped = self.room - now.room
        positions = self.positions[i][..., skipped : skipped + window + now.room - 1]
        bias = gate_bias(log, distance, valid, self.left)
        return attention.attend(attention.by_head(q, 1)[0], k, v, positions, bias)

    def _convolve(self, layer: "ConformerLayer", x: Tensor, now: Queue, left: Tensor) -> tuple[Tensor, Tensor]:
        """Convolution and what follows it; each row's left context moves on by the steps that it ran."""
        convolution, valid = layer.convolution, valid_mask(now.runs, now.room)[..., None]
        gated = torch.cat([left, convolution.gate(layer.norm_convolution(x), valid)], dim=1)
        y = layer.leave(x + convolution.convolve(gated)) * valid
        return y, queue_pop(gated, now.runs, convolution.left)
