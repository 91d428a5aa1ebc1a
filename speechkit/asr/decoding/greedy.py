"""Greedy CTC and transducer decoding as streaming modules: encoder steps in, (token, step, log-probability) out."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechkit.asr.ctc import CtcHead
from speechkit.asr.decoding.boosting import PhraseBooster
from speechkit.asr.joiner import Joiner
from speechkit.asr.predictor import Predictor, PredictorState
from speechkit.streaming.state import Chunk, where

WINDOW = 8  # steps that one call of the joiner looks at: most of them are blank
MAX_SYMBOLS = 10  # of one step, unless something else is asked for


class CtcGreedyState(NamedTuple):
    """What collapsing and boosting remember; (batch,) int64 each."""

    previous: Tensor  # label of the last step, blank at the start
    node: Tensor  # of the booster
    steps: Tensor  # taken so far


class RnntGreedyState(NamedTuple):
    """The predictor after the tokens so far, and where the row is: a step without a token needs the joiner alone."""

    predictor: PredictorState
    out: Tensor  # (batch, joiner dim), its projected output
    node: Tensor  # (batch,) int64, of the booster
    steps: Tensor  # (batch,) int64, taken so far


class CtcGreedy(nn.Module):
    """The best label of each step, repeats and blanks removed (Graves et al. 2006, section 3.2).

    The output has room for a token a step: (batch, steps, 3). A token's step and log-probability are those of the
    first step that shows it, counted from the start of the stream.
    """

    chunk = first = stride = 1
    lookahead = 0

    def __init__(self, head: CtcHead, booster: PhraseBooster | None = None) -> None:
        super().__init__()
        self.head = head
        self.booster = booster if booster is None else booster.to(_device(head))

    def init_state(self, batch: int) -> CtcGreedyState:
        """State of `batch` streams that have not begun."""
        zeros = torch.zeros(batch, dtype=torch.int64, device=_device(self.head))
        start = 0 if self.booster is None else self.booster.initial
        return CtcGreedyState(zeros + self.head.blank, zeros + start, zeros)

    @torch.no_grad()
    def step(self, x: Chunk, state: CtcGreedyState) -> tuple[Chunk, CtcGreedyState]:
        """(batch, steps, encoder_dim) -> (batch, steps, 3) of token, step and log-probability."""
        log_probs = self.head(x.values)
        at = torch.arange(x.values.shape[1], device=x.values.device)
        valid = at < x.lengths[:, None]
        if self.booster is None:
            labels, node = log_probs.argmax(-1), state.node
        else:
            labels, node = _boosted_labels(log_probs, valid, state, self.booster)
        shown = torch.cat([state.previous[:, None], labels], dim=1)
        emitted = valid & (labels != self.head.blank) & (labels != shown[:, :-1])
        chosen = log_probs.gather(-1, labels[..., None])[..., 0]
        values = torch.stack([labels.to(chosen), (state.steps[:, None] + at).to(chosen), chosen], dim=-1)
        previous = shown.gather(1, x.lengths[:, None])[:, 0]
        values, lengths = left_aligned(values, emitted)
        return Chunk(values, lengths, x.last), CtcGreedyState(previous, node, state.steps + x.lengths)

    def forward(self, encoder: Tensor, lengths: Tensor) -> Chunk:
        """(batch, steps, encoder_dim) and (batch,) -> what whole utterances emit."""
        last = torch.ones_like(lengths, dtype=torch.bool)
        return self.step(Chunk(encoder, lengths, last), self.init_state(len(encoder)))[0]


class RnntGreedy(nn.Module):
    """At each step the best label until it is the blank, at most `max_symbols` of them (Graves 2012, section 2.4).

    Rows move independently: one call of the joiner looks ahead from each row's own step to its next label, so that a
    batch takes about as many calls as its longest row has tokens. The output has room for `max_symbols` tokens a step:
    (batch, steps * max_symbols, 3).
    """

    chunk = first = stride = 1
    lookahead = 0

    def __init__(
        self, predictor: Predictor, joiner: Joiner, max_symbols: int = MAX_SYMBOLS, booster: PhraseBooster | None = None
    ) -> None:
        super().__init__()
        if max_symbols < 1:
            raise ValueError(f"max_symbols should be at least 1, got {max_symbols}")
        self.predictor, self.joiner = predictor, joiner
        self.blank, self.max_symbols = predictor.blank, max_symbols
        self.booster = booster if booster is None else booster.to(_device(joiner))

    @torch.no_grad()
    def init_state(self, batch: int) -> RnntGreedyState:
        """State of `batch` streams that have not begun."""
        predictor = self.predictor.init_state(batch)
        zeros = torch.zeros(batch, dtype=torch.int64, device=predictor.hidden.device)
        out, predictor = self._predict(zeros + self.blank, predictor)
        start = 0 if self.booster is None else self.booster.initial
        return RnntGreedyState(predictor, out, zeros + start, zeros)

    @torch.no_grad()
    def step(self, x: Chunk, state: RnntGreedyState) -> tuple[Chunk, RnntGreedyState]:
        """(batch, steps, encoder_dim) -> (batch, steps * max_symbols, 3) of token, step and log-probability."""
        batch, steps, _ = x.values.shape
        encoder = self.joiner.project_encoder(x.values)
        values = encoder.new_zeros(
            batch, steps * self.max_symbols, 3, dtype=torch.promote_types(encoder.dtype, torch.float)
        )
        rows = torch.arange(batch, device=encoder.device)
        at, symbols, count = (torch.zeros_like(x.lengths) for _ in range(3))
        memory, out, node = state.predictor, state.out, state.node
        more = bool((at < x.lengths).any())
        while more:
            found, ahead, label, log_prob = self._next_label(encoder, out, at, x.lengths, node)
            symbols = torch.where(ahead > 0, 0, symbols)
            at = at + ahead
            emission = torch.stack([label.to(values), (state.steps + at).to(values), log_prob.to(values)], dim=-1)
            slot = count.clamp(max=values.shape[1] - 1)
            values[rows, slot] = torch.where(found[:, None], emission, values[rows, slot])
            count, symbols = count + found, symbols + found
            full = symbols >= self.max_symbols
            at, symbols = at + full, torch.where(full, 0, symbols)
            if self.booster is not None:
                after = self.booster.following[node, label.clamp(max=self.blank - 1)]
                node = torch.where(found, after.to(node), node)
            more, some = torch.stack([(at < x.lengths).any(), found.any()]).tolist()  # one wait for an accelerator
            if some:
                moved_out, moved = self._predict(label, memory)
                out, memory = torch.where(found[:, None], moved_out, out), where(found, moved, memory)
        return Chunk(values, count, x.last), RnntGreedyState(memory, out, node, state.steps + x.lengths)

    def forward(self, encoder: Tensor, lengths: Tensor) -> Chunk:
        """(batch, steps, encoder_dim) and (batch,) -> what whole utterances emit."""
        last = torch.ones_like(lengths, dtype=torch.bool)
        return self.step(Chunk(encoder, lengths, last), self.init_state(len(encoder)))[0]

    def _predict(self, token: Tensor, memory: PredictorState) -> tuple[Tensor, PredictorState]:
        out, following = self.predictor.step(token, memory)
        return self.joiner.project_predictor(out), following

    def _next_label(
        self, encoder: Tensor, out: Tensor, at: Tensor, lengths: Tensor, node: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Whether each row has a label in the window at its step, the steps to it, the label and its log-probability.

        A row without one moves on by the window, or to its end.
        """
        window = min(WINDOW, encoder.shape[1])
        index = at[:, None] + torch.arange(window, device=at.device)
        inside = index < lengths[:, None]
        index = index.clamp(max=encoder.shape[1] - 1)
        logits = self.joiner.join(encoder.gather(1, index[..., None].expand(-1, -1, encoder.shape[2])), out[:, None])
        if self.booster is None:
            labels = logits.argmax(-1)
        else:
            gain = self.booster.gain[self.booster.following[node]][:, None]
            labels = _choose(logits, gain, torch.full_like(index, self.blank), self.blank)
        is_label = inside & (labels != self.blank)
        found, ahead = is_label.any(1), is_label.int().argmax(1)
        label = labels.gather(1, ahead[:, None])[:, 0]
        scores = logits.gather(1, ahead[:, None, None].expand(-1, -1, logits.shape[2]))[:, 0]
        scores = torch.log_softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float))
        ahead = torch.where(found, ahead, inside.sum(1))
        return found, ahead, label, scores.gather(1, label[:, None])[:, 0]


def _device(module: nn.Module) -> torch.device:
    """Where a head's weights are; those of an ONNX graph are on the CPU."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _choose(scores: Tensor, gain: Tensor, previous: Tensor, blank: int) -> Tensor:
    """Labels under a booster: (..., vocab_size + 1) scores, (..., vocab_size) gains, (...) labels before -> (...).

    A gain is for a new label only: neither the blank nor, with CTC, the label before has one.
    """
    lowest = torch.finfo(scores.dtype).min
    new = scores.scatter(-1, previous[..., None], lowest)[..., :blank] + gain.to(scores)
    value, best = new.max(-1)
    before, silence = scores.gather(-1, previous[..., None])[..., 0], scores[..., blank]
    kept = torch.where(before > silence, previous, blank)
    return torch.where(value > torch.maximum(before, silence), best, kept)


def _boosted_labels(
    log_probs: Tensor, valid: Tensor, state: CtcGreedyState, booster: PhraseBooster
) -> tuple[Tensor, Tensor]:
    """CTC labels (batch, steps), one step after another because each moves the booster, and its nodes (batch,)."""
    blank = log_probs.shape[-1] - 1
    labels, previous, node = [], state.previous, state.node
    for scores, live in zip(log_probs.unbind(1), valid.unbind(1), strict=True):
        label = _choose(scores, booster.gain[booster.following[node]], previous, blank)
        moved = booster.following[node, label.clamp(max=blank - 1)].to(node)
        node = torch.where(live & (label != blank) & (label != previous), moved, node)
        previous = torch.where(live, label, previous)
        labels.append(label)
    stacked = torch.stack(labels, dim=1) if labels else previous.new_zeros(len(previous), 0)
    return stacked, node


def left_aligned(values: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Moves the kept entries (batch, time) of (batch, time, dim) to the left: values with zeros after them, lengths."""
    batch, time, dim = values.shape
    place = torch.where(kept, kept.long().cumsum(1) - 1, time)
    room = values.new_zeros(batch, time + 1, dim)
    return room.scatter(1, place[..., None].expand(-1, -1, dim), values)[:, :time], kept.sum(1)
