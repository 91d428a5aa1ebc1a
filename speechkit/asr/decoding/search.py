"""Which decoder goes with which of a recogniser's heads, greedy or with a beam."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from speechkit.asr.decoding.boosting import PhraseBooster
from speechkit.asr.decoding.ctc_beam import CtcBeam
from speechkit.asr.decoding.greedy import CtcGreedy, RnntGreedy
from speechkit.asr.decoding.hypothesis import Hypothesis
from speechkit.asr.decoding.rnnt_beam import RnntBeam
from speechkit.asr.decoding.scoring import Scorer
from speechkit.asr.model import Recognizer
from speechkit.errors import InputError


def make_greedy(model: Recognizer, decoder: str, booster: PhraseBooster | None = None) -> CtcGreedy | RnntGreedy:
    """The greedy decoder of a head, ``rnnt`` or ``ctc``, of a model that has it."""
    if decoder == "rnnt" and model.predictor is not None and model.joiner is not None:
        return RnntGreedy(model.predictor, model.joiner, booster=booster)
    if decoder == "ctc" and model.ctc is not None:
        return CtcGreedy(model.ctc, booster=booster)
    raise no_decoder(model, decoder)


def make_beam(model: Recognizer, decoder: str, beam: int, scorers: Sequence[Scorer[Any]] = ()) -> CtcBeam | RnntBeam:
    """The search for a decoder, ``rnnt`` or ``ctc``, of a model that has it."""
    if decoder == "rnnt" and model.predictor is not None and model.joiner is not None:
        return RnntBeam(model.predictor, model.joiner, beam, scorers=scorers)
    if decoder == "ctc" and model.ctc is not None:
        return CtcBeam(model.ctc, beam, scorers=scorers)
    raise no_decoder(model, decoder)


def no_decoder(model: Recognizer, decoder: str) -> InputError:
    """What to raise where a model lacks a decoder."""
    return InputError(f"this model has the decoders {', '.join(model.decoders)}, got {decoder!r}")


def beam_search(
    model: Recognizer,
    decoder: str,
    encoder: Tensor,
    beam: int,
    booster: PhraseBooster | None = None,
    scorers: Sequence[Scorer[Any]] = (),
) -> list[Hypothesis]:
    """(steps, dim) of an utterance -> up to `beam` hypotheses, best first."""
    boosters: list[Scorer[Any]] = [] if booster is None else [booster]
    return make_beam(model, decoder, beam, [*boosters, *scorers])(encoder, beam)
