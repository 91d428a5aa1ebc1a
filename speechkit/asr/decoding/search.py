"""Which decoder goes with which of a recogniser's heads, greedy or with a beam."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from speechkit.asr.acoustic import Context, Greedy, no_decoder
from speechkit.asr.decoding.boosting import PhraseBooster
from speechkit.asr.decoding.ctc_beam import CtcBeam
from speechkit.asr.decoding.greedy import CtcGreedy, RnntGreedy
from speechkit.asr.decoding.hypothesis import Hypothesis
from speechkit.asr.decoding.rnnt_beam import RnntBeam
from speechkit.asr.decoding.scoring import Scorer
from speechkit.errors import InputError
from speechkit.streaming.state import Chunk

LARGEST_BEAM = 1000  # a step takes as many times the work of greedy decoding


class Search(Protocol):
    """A decoder that hears the steps of one utterance as they come. No streaming module: its state grows with them."""

    def init_state(self) -> Any: ...
    def hear(self, encoder: Tensor, state: Any) -> Any: ...
    def nbest(self, state: Any, count: int = 1, final: bool = True) -> list[Hypothesis]: ...


class GreedySearch:
    """A greedy decoder as a search with one hypothesis."""

    def __init__(self, greedy: Greedy) -> None:
        self.greedy = greedy

    def init_state(self) -> tuple[Any, Hypothesis]:
        """A stream that has not begun."""
        return self.greedy.init_state(1), Hypothesis([], [], [], 0.0)

    def hear(self, encoder: Tensor, state: tuple[Any, Hypothesis]) -> tuple[Any, Hypothesis]:
        """(steps, encoder_dim), any number of steps, and the state after them."""
        inner, found = state
        if not len(encoder):
            return state
        lengths = torch.tensor([len(encoder)], device=encoder.device)
        x = Chunk(encoder[None], lengths, torch.zeros_like(lengths, dtype=torch.bool))
        emitted, inner = self.greedy.step(x, inner)
        return inner, found.extended(emitted.values[0, : int(emitted.lengths[0])])

    def nbest(self, state: tuple[Any, Hypothesis], count: int = 1, final: bool = True) -> list[Hypothesis]:
        """The hypothesis."""
        return [state[1]]


class Heads:
    """What recognisers with a CTC head, a transducer or both decode with: the same at every context."""

    blank: int  # the blank's index, which is the vocabulary's size
    ctc: Any  # `CtcHead` or its like, None where there is none
    predictor: Any
    joiner: Any
    decoders: Any

    @property
    def vocab_size(self) -> int:
        """Pieces that the tokenizer has."""
        return self.blank

    @property
    def lead_ms(self) -> float:
        """How much earlier than its step a token begins: the step that gives it is where it is heard."""
        return 0.0

    def grouped(self, context: Context) -> int:
        """Encoder steps in an output of a stream."""
        return 1

    def greedy(self, decoder: str, context: Context, booster: PhraseBooster | None = None) -> CtcGreedy | RnntGreedy:
        """The greedy decoder of a head."""
        return make_greedy(self, decoder, booster)

    def beam(
        self, decoder: str, context: Context, beam: int, scorers: Sequence[Scorer[Any]] = ()
    ) -> CtcBeam | RnntBeam:
        """The beam search of a head."""
        return make_beam(self, decoder, beam, scorers)


def make_greedy(model: Heads, decoder: str, booster: PhraseBooster | None = None) -> CtcGreedy | RnntGreedy:
    """The greedy decoder of a head, ``rnnt`` or ``ctc``, of a model that has it."""
    if decoder == "rnnt" and model.predictor is not None and model.joiner is not None:
        return RnntGreedy(model.predictor, model.joiner, booster=booster)
    if decoder == "ctc" and model.ctc is not None:
        return CtcGreedy(model.ctc, booster=booster)
    raise no_decoder(model, decoder)


def make_beam(model: Heads, decoder: str, beam: int, scorers: Sequence[Scorer[Any]] = ()) -> CtcBeam | RnntBeam:
    """The search for a decoder, ``rnnt`` or ``ctc``, of a model that has it; errors as `check_beam`."""
    check_beam(beam)
    if decoder == "rnnt" and model.predictor is not None and model.joiner is not None:
        return RnntBeam(model.predictor, model.joiner, beam, scorers=scorers)
    if decoder == "ctc" and model.ctc is not None:
        return CtcBeam(model.ctc, beam, scorers=scorers)
    raise no_decoder(model, decoder)


def check_beam(beam: int) -> None:
    """Refuses beams of no hypothesis, and such as no machine has the time for.

    Raises:
        InputError: the beam is not from 1 to 1000.
    """
    if not 1 <= beam <= LARGEST_BEAM:
        raise InputError(f"a beam keeps from 1 to {LARGEST_BEAM} hypotheses, got {beam}")
