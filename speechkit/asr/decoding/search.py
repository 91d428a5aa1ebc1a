"""Beam search with a recogniser's heads."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from speechkit.asr.decoding.boosting import PhraseBooster
from speechkit.asr.decoding.ctc_beam import CtcBeam
from speechkit.asr.decoding.hypothesis import Hypothesis
from speechkit.asr.decoding.rnnt_beam import RnntBeam
from speechkit.asr.decoding.scoring import Scorer
from speechkit.asr.model import Recognizer
from speechkit.errors import InputError


def make_beam(model: Recognizer, decoder: str, beam: int, scorers: Sequence[Scorer[Any]] = ()) -> CtcBeam | RnntBeam:
    """The search for a decoder, ``rnnt`` or ``ctc``, of a model that has it."""
    if decoder == "rnnt" and model.predictor is not None and model.joiner is not None:
        return RnntBeam(model.predictor, model.joiner, beam, scorers=scorers)
    if decoder == "ctc" and model.ctc is not None:
        return CtcBeam(model.ctc, beam, scorers=scorers)
    raise InputError(f"this model has the decoders {', '.join(model.decoders)}, got {decoder!r}")


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
