"""Error rates of a recogniser: under the masks of each context, and chunk by chunk as in use."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jiwer
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from torch import Tensor

from speechkit.asr.acoustic import Context, check_decoder
from speechkit.asr.decoding.search import check_beam
from speechkit.asr.latency import Delay, Emission, delays_ms, summary
from speechkit.asr.transcriber import Transcriber
from speechkit.asr.waits import Wait, arrival_steps, causal, wait
from speechkit.errors import InputError
from speechkit.streaming.state import Chunk, Streaming
from speechkit.streaming.stream import run

BATCH_SECONDS = 120.0  # padded audio of a batch, offline
ROWS = 16  # streams in a call, streaming
MODES = ("offline", "streaming")


@dataclass(frozen=True)
class Score:
    """One line of a results table."""

    split: str
    decoder: str
    mode: str  # offline or streaming
    latency_ms: float | None  # longest look-ahead, None for full context
    wer: float
    cer: float
    words: int  # in the references
    seconds: float  # of audio
    real_time_factor: float  # wall seconds per second of audio, decoding included
    beam: int = 1  # hypotheses of the search; 1 is greedy
    delay: Delay | None = None  # of emission, streaming
    wait: Wait | None = None  # measured, where latency_ms is the bound of an adaptive look-ahead

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


class Encoded:
    """Encoder steps of every wave at one context, offline or streamed, for all decoders."""

    def __init__(self, transcriber: Transcriber, waves: Sequence[Tensor], context: Context, mode: str) -> None:
        self.transcriber, self.context, self.mode = transcriber, context, mode
        begin = time.monotonic()
        self.steps = self._stream(waves) if mode == "streaming" else self._whole(waves)
        self.spent = time.monotonic() - begin
        self.arrivals = arrival_steps(transcriber.model, waves, context)

    def _stream(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Chunk by chunk through explicit state, many streams at once."""
        self.module = self.transcriber.model.streaming(self.context)
        return _longest_first(lambda sorted_: run(self.module, [wave[:, None] for wave in sorted_], ROWS), waves)

    def _whole(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Whole utterances in batches, under the context's masks."""

        def encode(batch: list[Tensor]) -> list[Tensor]:
            lengths = torch.tensor([len(wave) for wave in batch], device=batch[0].device)
            wave = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
            steps, counts = self.transcriber.model.encode(wave, lengths, self.context)
            return [row[:count] for row, count in zip(steps, counts.tolist(), strict=True)]

        return _batched(encode, waves, BATCH_SECONDS * self.transcriber.rate)

    def greedy(self, decoder: str) -> list[list[Emission]]:
        """(token, step) of every wave; in streams with as many steps a call as the encoder gives."""
        greedy = self.transcriber.greedy(decoder, context=self.context)

        def decode(batch: list[Tensor]) -> list[Tensor]:
            lengths = torch.tensor([len(steps) for steps in batch], device=batch[0].device)
            emitted: Chunk = greedy(torch.nn.utils.rnn.pad_sequence(batch, batch_first=True), lengths)
            return [row[:count] for row, count in zip(emitted.values, emitted.lengths.tolist(), strict=True)]

        if self.mode == "streaming":
            chunks = max(1, self.module.chunk // self.module.stride)
            rows = _longest_first(lambda sorted_: run(greedy, sorted_, ROWS, chunks), self.steps)
        else:
            rows = _batched(decode, self.steps, 1000 * BATCH_SECONDS / self.transcriber.model.step_ms)
        return [[(int(token), int(step)) for token, step, _ in row.tolist()] for row in rows]

    def beam(self, decoder: str, beam: int) -> list[list[Emission]]:
        """(token, step) of the best hypothesis of every wave."""
        search = self.transcriber.search(decoder, beam, context=self.context)
        best = [search.nbest(search.hear(steps, search.init_state()))[0] for steps in self.steps]
        return [list(zip(found.tokens, map(int, found.steps), strict=True)) for found in best]


def _longest_first(function: Callable[[list[Tensor]], list[Tensor]], items: Sequence[Tensor]) -> list[Tensor]:
    """`function` over the items sorted by length; the results in the items' own order."""
    order = sorted(range(len(items)), key=lambda i: -len(items[i]))
    found = dict(zip(order, function([items[i] for i in order]), strict=True))
    return [found[i] for i in range(len(items))]


def _batched(function: Callable[[list[Tensor]], list[Tensor]], items: Sequence[Tensor], size: float) -> list[Tensor]:
    """`function` over batches of like length and at most `size` padded entries."""

    def batches(sorted_: list[Tensor]) -> list[Tensor]:
        found: list[Tensor] = []
        batch: list[Tensor] = []
        for item in sorted_:
            if batch and (len(batch) + 1) * len(batch[0]) > size:
                found += function(batch)
                batch = []
            batch.append(item)
        return found + (function(batch) if batch else [])

    return _longest_first(batches, items)


@torch.inference_mode()
def score(
    transcriber: Transcriber,
    split: str,
    waves: Sequence[Tensor],
    texts: Sequence[str],
    modes: Sequence[str] = MODES,
    decoders: Sequence[str] | None = None,
    contexts: Sequence[Context] | None = None,
    beam: int = 1,
    word_ends: Sequence[list[float] | None] | None = None,
) -> list[Score]:
    """Scores of a split for every decoder, context and mode.

    Args:
        transcriber: the model; full context has no streaming mode.
        split: its name, for the results.
        waves: (samples,) each, at the model's rate.
        texts: normalised.
        modes: ``offline``, ``streaming``.
        decoders: ``rnnt``, ``ctc``; None for all that the model has.
        contexts: None for all that the model was trained with.
        beam: over 1, a search with so many hypotheses over the offline steps is scored besides the greedy decoders.
        word_ends: of each text, in seconds (see `Aligner`): streams are then measured for their emission delay.

    Raises:
        InputError: see `check_choice`.
    """
    check_choice(transcriber, modes, decoders, beam)
    found: list[Score] = []
    names = list(decoders or transcriber.model.decoders)
    pairs = [
        (context, mode)
        for context in contexts or transcriber.model.contexts
        for mode in modes
        if mode == "offline" or transcriber.model.streams(context)
    ]
    shown = Console(stderr=True)
    for context, mode in track(pairs, escape(split), console=shown, transient=True, disable=not sys.stderr.isatty()):
        encoded = Encoded(transcriber, waves, context, mode)
        widths = {1, beam} if mode == "offline" else {1}
        found += [_line(encoded, split, d, width, waves, texts, word_ends) for d in names for width in widths]
    return sorted(found, key=lambda s: (names.index(s.decoder), s.beam))


def check_choice(transcriber: Transcriber, modes: Sequence[str], decoders: Sequence[str] | None, beam: int) -> None:
    """Refuses what `score` could not do, before anything is read.

    Raises:
        InputError: there is no such mode or decoder, nothing to score, or a beam of less than 1 or over 1000.
    """
    if unknown := set(modes) - set(MODES):
        raise InputError(f"modes are offline and streaming, got {', '.join(sorted(unknown))}")
    if "offline" not in modes and not (modes and transcriber.latencies_ms):
        raise InputError("nothing would be scored: a model that needs full context has the mode offline alone")
    for decoder in decoders or ():
        check_decoder(transcriber.model, decoder)
    check_beam(beam)


def _line(
    encoded: Encoded,
    split: str,
    decoder: str,
    beam: int,
    waves: Sequence[Tensor],
    texts: Sequence[str],
    word_ends: Sequence[list[float] | None] | None,
) -> Score:
    """The score of one decoder."""
    transcriber, context = encoded.transcriber, encoded.context
    begin = time.monotonic()
    rows = encoded.greedy(decoder) if beam == 1 else encoded.beam(decoder, beam)
    spent = encoded.spent + time.monotonic() - begin
    said = [transcriber.tokenizer.decode([token for token, _ in row]) for row in rows]
    seconds = sum(len(wave) for wave in waves) / transcriber.rate
    streamed = encoded.mode == "streaming" and word_ends is not None
    return Score(
        split,
        decoder,
        encoded.mode,
        latency_ms=None if math.isinf(ahead := transcriber.model.latency_ms(context)) else ahead,
        wer=float(jiwer.wer(list(texts), said)),
        cer=float(jiwer.cer(list(texts), said)),
        words=sum(len(text.split()) for text in texts),
        seconds=seconds,
        real_time_factor=spent / max(seconds, 1e-9),
        beam=beam,
        delay=_delay(encoded, rows, waves, texts, word_ends or ()) if streamed else None,
        wait=wait(encoded.arrivals, transcriber.model.step_ms),
    )


def _delay(
    encoded: Encoded,
    rows: Sequence[Sequence[Emission]],
    waves: Sequence[Tensor],
    texts: Sequence[str],
    word_ends: Sequence[list[float] | None],
) -> Delay | None:
    """Emission delay over all utterances that could be aligned."""
    tokenizer, rate = encoded.transcriber.tokenizer, encoded.transcriber.rate
    grouped = encoded.transcriber.model.grouped(encoded.context)
    found: list[float] = []
    module: Streaming[Any] = encoded.module
    if encoded.arrivals is not None:
        module = causal(encoded.transcriber.model, encoded.context)
        came = [steps.tolist() for steps in encoded.arrivals]
        rows = [[(token, steps[i]) for token, i in row] for row, steps in zip(rows, came, strict=True)]
    for row, wave, text, ends in zip(rows, waves, texts, word_ends, strict=True):
        if ends is not None:
            found += delays_ms(module, row, text, ends, tokenizer, len(wave), rate, grouped)
    return summary(found)
