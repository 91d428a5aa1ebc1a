"""The Conformer's layers chunk by chunk: projected keys and values of the left context are the state."""

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from speechkit.nn.attention import attention_bias
from speechkit.nn.masks import check_context, context_mask
from speechkit.streaming.state import Chunk, check_room, queue_pop, queue_push, where

if TYPE_CHECKING:
    from speechkit.asr.conformer import ConformerEncoder, ConformerLayer


class LayerState(NamedTuple):
    """What a layer keeps of the past."""

    memory: Tensor  # (batch, left + held, 2 * dim) projected keys and values
    held: Tensor  # (batch, held, 2 * dim) residuals and projected queries whose look-ahead has not come yet
    conv_left: Tensor  # (batch, kernel - 1, dim)


class ConformerState(NamedTuple):
    """State of every layer and the steps that wait for their chunk."""

    pending: Tensor  # (batch, chunk - 1, dim)
    waiting: Tensor  # (batch,) int64 valid entries of `pending`
    steps: Tensor  # (batch,) int64 steps taken
    slots: Tensor  # (batch,) int64 places for steps, valid or not, that went through the layers
    layers: tuple[LayerState, ...]


class ConformerStream:
    """The layers of a `ConformerEncoder` at one context, prepared for inference.

    Equal to the encoder's masked forward pass at every context. NeMo caches the attention's inputs and projects them
    anew for each chunk; here keys and values are cached, and the projected positions computed once.

    With ``regular`` attention and a right context R, every layer holds back R steps, so outputs come ``R * layers``
    steps late and a stream's end takes extra calls.
    """

    stride = 1

    def __init__(self, encoder: "ConformerEncoder", context: tuple[int, int], chunks: int = 1) -> None:
        check_context(context, encoder.style)
        left, right = context
        if left < 0 or right < 0:
            raise ValueError(f"a stream's context must be limited, got {list(context)}: name left and right in steps")
        self.encoder, self.context = encoder, context
        self.left = left
        self.held = right if encoder.style == "regular" else 0
        self.chunk = self.first = chunks * (right + 1 if encoder.style == "chunked_limited" else 1)
        self.lookahead = self.held * len(encoder.layers)
        self._positions: list[Tensor] = []

    @property
    def layers(self) -> "list[ConformerLayer]":
        """The encoder's layers."""
        return cast("list[ConformerLayer]", list(self.encoder.layers))

    def init_state(self, batch: int) -> ConformerState:
        """State of `batch` streams that have not begun."""
        zeros = self.encoder.subsampling.out.weight.new_zeros
        count = torch.zeros(batch, dtype=torch.int64, device=zeros(1).device)
        layers = []
        for layer in self.layers:
            memory = zeros(batch, self.left + self.held, 2 * self.encoder.dim)
            held = zeros(batch, self.held, 2 * self.encoder.dim)
            layers.append(LayerState(memory, held, layer.convolution.init_state(batch)))
        pending = zeros(batch, self.chunk - 1, self.encoder.dim)
        return ConformerState(pending, count, count.clone(), count.clone(), tuple(layers))

    def step(self, x: Chunk, state: ConformerState) -> tuple[Chunk, ConformerState]:
        """(batch, chunk, dim) subsampled features -> (batch, chunk, dim) encoder steps."""
        check_room(x, self.chunk)
        queue = queue_push(state.pending, state.waiting, x)
        waiting = state.waiting + x.lengths
        taken = torch.where(x.last | (waiting >= self.chunk), waiting.clamp(max=self.chunk), 0)
        active = (taken > 0) | x.last
        steps, waiting = state.steps + taken, waiting - taken
        y = queue_pop(queue, torch.zeros_like(taken), self.chunk) * self.encoder.scale
        layers = []
        masks = self._masks(state.slots, steps)
        for i, (layer, old) in enumerate(zip(self.layers, state.layers, strict=True)):
            if i and self.held:
                masks = self._masks(state.slots - i * self.held, steps)
            y, new = self._layer(layer, self.positions[i], y, masks, old)
            layers.append(new)
        pending = queue_pop(queue, taken, self.chunk - 1)
        kept = tuple(layers) if _all(active) else where(active, tuple(layers), state.layers)
        slots = state.slots + self.chunk * active
        start = state.slots - self.lookahead
        given = (steps.minimum(start + self.chunk) - start.clamp(min=0)).clamp(min=0) * active
        y = queue_pop(y, (-start).clamp(0, self.chunk), self.chunk) if self.held else y
        y = y * (torch.arange(self.chunk, device=y.device) < given[:, None])[..., None]
        last = x.last & (waiting == 0) & (start + self.chunk >= steps)
        return Chunk(y, given, last), ConformerState(pending, waiting, steps, slots, kept)

    @property
    def positions(self) -> list[Tensor]:
        """Each layer's projected distances, from the first query's to the oldest key down to the newest key's."""
        if not self._positions:
            with torch.no_grad():
                window = self.left + self.held + self.chunk
                first, count = self.left + self.chunk - 1, window + self.chunk - 1
                self._positions = [layer.attention.positions(first, count) for layer in self.layers]
        return self._positions

    def _masks(self, slots: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Attention bias of a layer whose newest inputs begin at `slots`, and the validity of its queries."""
        offset = torch.arange(self.chunk, device=slots.device) - self.held
        window = torch.arange(-self.left - self.held, self.chunk, device=slots.device)
        query, key = slots[:, None] + offset, slots[:, None] + window
        visible = context_mask(query, key, self.context, self.encoder.style)
        visible = visible & ((key >= 0) & (key < steps[:, None]))[:, None, :]
        valid = ((query >= 0) & (query < steps[:, None]))[..., None]
        return attention_bias(visible, self.encoder.subsampling.out.weight.dtype), valid

    def _layer(
        self, layer: "ConformerLayer", positions: Tensor, x: Tensor, masks: tuple[Tensor, Tensor], state: LayerState
    ) -> tuple[Tensor, LayerState]:
        bias, valid = masks
        attention, dim = layer.attention, self.encoder.dim
        x = layer.enter(x)
        q, new = attention.qkv(layer.norm_attention(x)).split([dim, 2 * dim], dim=2)
        kept = state.held
        if self.held:
            held = torch.cat([state.held, torch.cat([x, q], dim=2)], dim=1)
            (x, q), kept = held[:, : self.chunk].split(dim, dim=2), held[:, self.chunk :]
        memory = torch.cat([state.memory, new], dim=1)
        k, v = attention.by_head(memory, 2)
        x = x + attention.attend(attention.by_head(q, 1)[0], k, v, positions, bias)
        y, conv_left = layer.convolution.step(layer.norm_convolution(x), valid, state.conv_left)
        return layer.leave(x + y), LayerState(memory[:, self.chunk :], kept, conv_left)


def _all(rows: Tensor) -> bool:
    """Whether every row is true, where that can be asked for nothing: not on an accelerator, not in a graph."""
    return not torch.compiler.is_compiling() and rows.device.type == "cpu" and bool(rows.all())
