"""How long the outputs of adaptive encoders wait in fact, where a look-ahead in milliseconds is only a bound."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from speechkit.asr.acoustic import AcousticModel
from speechkit.asr.ancat import AncatEncoder, FixedContext
from speechkit.asr.ancat_latency import arrivals
from speechkit.asr.conformer import Context
from speechkit.asr.model import Recognizer
from speechkit.streaming.chain import Chain


@dataclass(frozen=True)
class Wait:
    """Milliseconds from an encoder step's own input to the input with which it came, over all steps."""

    mean: float
    p50: float
    p90: float


def adaptive(model: AcousticModel, context: Context) -> tuple[Recognizer, AncatEncoder] | None:
    """A model and its encoder that decides at this context what it waits for; None for all others."""
    if isinstance(model, Recognizer) and isinstance(model.encoder, AncatEncoder) and context == model.encoder.adaptive:
        return model, model.encoder
    return None


@torch.inference_mode()
def arrival_steps(model: AcousticModel, waves: Sequence[Tensor], context: Context) -> list[Tensor] | None:
    """Of every output of every wave (samples,), the step with which it came; None where look-ahead is fixed."""
    pair = adaptive(model, context)
    if pair is None:
        return None
    recognizer, encoder = pair
    found = []
    for wave in waves:
        features, frames = recognizer.front(wave[None], torch.tensor([len(wave)], device=wave.device))
        _, lengths, gates = encoder.gated(features, frames)
        found.append(arrivals(gates, lengths)[-1, 0, : int(lengths[0])].long())
    return found


def wait(steps: Sequence[Tensor] | None, step_ms: float) -> Wait | None:
    """`arrival_steps` in three numbers; None where there are none."""
    waits = [x - torch.arange(len(x), device=x.device) for x in steps or [] if len(x)]
    if not waits:
        return None
    every = torch.cat(waits).double() * step_ms
    return Wait(float(every.mean()), float(every.quantile(0.5)), float(every.quantile(0.9)))


def causal(model: AcousticModel, context: Context) -> Chain:
    """The stream that gives step i when its own input has come: the clock of `arrival_steps`."""
    pair = adaptive(model, context)
    if pair is None:
        raise ValueError(f"the look-ahead of this model is fixed at {list(context)}: its stream is its own clock")
    recognizer, encoder = pair
    return Chain(recognizer.front, encoder.at(FixedContext(encoder.adaptive[0], 0)))
