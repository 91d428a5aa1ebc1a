"""Emission delay: how long after a word was said a stream gives its last token."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jiwer
import torch
from torch import Tensor
from torchaudio.functional import forced_align, merge_tokens

from speechkit.asr.acoustic import Context
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.streaming.state import Streaming
from speechkit.text import UNSPACED, Tokenizer, steps_for_ctc

Emission = tuple[int, int]  # token, encoder step


@dataclass(frozen=True)
class Delay:
    """Milliseconds from a word's end in the audio to the emission of its last token.

    A word's end is that of its last token in the forced alignment of the reference text with a CTC head under its
    longest context, to the step of 80 ms. CTC gives a token as soon as it is sure, in few steps, so that the end is
    rather where the token was recognised than where its sound ceased; all latencies are measured from the same ends.

    A token is emitted when the audio that its call waits for has come: the end of its chunk, the look-ahead, the front
    end's window, and no later than the end of the audio. The time to compute it (see the real-time factor) comes on
    top. Only words that were recognised count: those that jiwer aligns with an equal word of the reference (`divided`).
    """

    mean: float
    p50: float
    p90: float
    words: int


def summary(delays_ms: Sequence[float]) -> Delay | None:
    """Delays in milliseconds in three numbers; None where no word was recognised."""
    if not delays_ms:
        return None
    values = torch.tensor(delays_ms, dtype=torch.float64)
    return Delay(float(values.mean()), float(values.quantile(0.5)), float(values.quantile(0.9)), len(delays_ms))


def arrival(module: Streaming[Any], step: int, inputs: int) -> int:
    """Inputs that have come when a module gives output `step`, of a stream of so many inputs.

    The first call takes `first` inputs, every other `chunk`; output m needs the input ``m * stride + lookahead``.
    """
    needed = step * module.stride + module.lookahead + 1
    calls = max(0, math.ceil((needed - module.first) / module.chunk))
    return min(module.first + calls * module.chunk, inputs)


def divided(text: str, tokenizer: Tokenizer) -> list[str]:
    """The words of a text: those between spaces, and where a script has none those of the tokenizer's groups.

    Of such a script there are none where the tokenizer lacks a character.
    """
    if not re.search(f"[{UNSPACED}]", text):
        return text.split()
    try:
        return [word for word, _ in _grouped(tokenizer.encode(text), tokenizer)]
    except InputError:
        return []


def _grouped(tokens: Sequence[int], tokenizer: Tokenizer) -> list[tuple[str, list[int]]]:
    """Every word of the tokens, and their positions."""
    groups = ((tokenizer.decode([tokens[i] for i in group]).strip(), group) for group in tokenizer.groups(tokens))
    return [(word, group) for word, group in groups if word]


def delays_ms(
    module: Streaming[Any],
    emitted: Sequence[Emission],
    text: str,
    ends_s: Sequence[float],
    tokenizer: Tokenizer,
    samples: int,
    rate: int,
    grouped: int = 1,
) -> list[float]:
    """Delay of every recognised word of an utterance: what a stream of `module` emitted against the words' ends.

    An output of the module has `grouped` steps. There is none where the ends are those of another division into words.
    """
    said = _grouped([token for token, _ in emitted], tokenizer)
    words = divided(text, tokenizer)
    if not said or not words or len(words) != len(ends_s):
        return []
    found = []
    for part in jiwer.process_words(" ".join(words), " ".join(word for word, _ in said)).alignments[0]:
        if part.type != "equal":
            continue
        for reference, heard in zip(
            range(part.ref_start_idx, part.ref_end_idx), range(part.hyp_start_idx, part.hyp_end_idx), strict=True
        ):
            step = emitted[said[heard][1][-1]][1]
            found.append(1000 * (arrival(module, step // grouped, samples) / rate - ends_s[reference]))
    return found


class Aligner:
    """Forced alignment with a recogniser's CTC head under its longest context."""

    def __init__(self, transcriber: Transcriber) -> None:
        head = getattr(transcriber.model, "ctc", None)
        if head is None:
            raise InputError(
                "emission delay needs a model with a CTC head to align words with: name one with aligner=FOLDER, "
                "or leave the delay out with delay=false"
            )
        self.transcriber, self.head = transcriber, head
        self.context = max(transcriber.model.contexts, key=self._reach)

    def _reach(self, context: Context) -> list[float]:
        """What a context sees ahead, and then all else: no limit is the most."""
        ahead = self.transcriber.model.latency_ms(context)
        return [ahead, *(math.inf if side < 0 else side for side in context[::-1])]

    @torch.inference_mode()
    def word_ends(self, wave: Tensor, text: str) -> list[float] | None:
        """End of every word in seconds; None for a text that is longer than the audio or not the tokenizer's language.

        The words are those of `divided`.

        Args:
            wave: (samples,) at the model's rate.
            text: normalised.
        """
        model, tokenizer = self.transcriber.model, self.transcriber.tokenizer
        lengths = torch.tensor([len(wave)], device=wave.device)
        steps = model.encode(wave[None], lengths, self.context)[0]
        try:
            tokens = tokenizer.encode(text)
        except InputError:
            return None
        groups = tokenizer.groups(tokens)
        if not tokens or steps_for_ctc(tokens) > steps.shape[1] or len(groups) != len(divided(text, tokenizer)):
            return None
        targets = torch.tensor([tokens], device=steps.device)
        labels, scores = forced_align(self.head(steps).float(), targets, blank=self.head.blank)
        spans = merge_tokens(labels[0], scores[0], blank=self.head.blank)
        return [min(spans[group[-1]].end * model.step_ms / 1000, len(wave) / self.transcriber.rate) for group in groups]
