"""Paraformer hears whole utterances and streams with the same weights, whatever the batch."""

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from speechkit.asr.blocks import WHOLE, Grid
from speechkit.asr.conformer import ConformerEncoder
from speechkit.asr.conformer_blocks import ConformerBlocks
from speechkit.asr.paraformer import CifPredictor, Paraformer
from speechkit.asr.sanm_decoder import SanmDecoder
from speechkit.asr.sanm_encoder import SanmEncoder
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.features import LogMel
from speechkit.text import CharTokenizer
from speechkit.token_list import ListTokenizer
from tests.asr.small_paraformer import VOCAB, paraformer

GRIDS = ((0, 3, 2, 2, 1), (0, 2, 1, 3, 1))
RATE = 8000
SYMBOLS = " abcdefgh"


def transcriber(**options: Any) -> Transcriber:
    return Transcriber(paraformer(GRIDS, rate=RATE, **options).float(), CharTokenizer(SYMBOLS))


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)).numpy().clip(-1, 1)


def test_one_model_has_the_whole_and_streams() -> None:
    found = transcriber()
    assert found.model.contexts == [WHOLE, *GRIDS]
    assert found.latencies_ms == [4 * 20, 2 * 20]
    assert found.context(None) == WHOLE
    assert found.context(50) == Grid(*GRIDS[1])
    with pytest.raises(InputError, match="look-ahead of at most 10 ms; it has 40, 80"):
        found.context(10)


@pytest.mark.parametrize("latency_ms", [80, 40])
def test_a_stream_says_what_the_masks_say(latency_ms: float) -> None:
    found, wave = transcriber(), noise(3 * RATE)
    whole = found.transcribe(wave, latency_ms=latency_ms)
    stream = found.stream(latency_ms)
    for begin in range(0, len(wave), 1777):
        stream.push(wave[begin : begin + 1777])
    said = stream.finish()
    assert said.text == whole.text != ""
    assert [(word.text, word.start_s, word.end_s) for word in said.words] == [
        (word.text, word.start_s, word.end_s) for word in whole.words
    ]
    assert said.hypotheses[0].log_probs == pytest.approx(whole.hypotheses[0].log_probs, abs=1e-4)


def test_long_recordings_are_heard_in_bounded_memory() -> None:
    """More than a minute: the whole in windows, a grid in blocks."""
    found, wave = transcriber(), noise(61 * RATE)
    assert len(found.transcribe(wave).hypotheses[0].tokens) > 100
    part = wave[: 31 * RATE]
    assert found.transcribe(part, latency_ms=80).text == found.stream(80).push(part).finish().text


@torch.no_grad()
@pytest.mark.parametrize("context", [WHOLE, *(Grid(*grid) for grid in GRIDS)])
@pytest.mark.parametrize("kind", ["sanm", "conformer"])
def test_a_row_of_a_batch_is_what_it_is_alone(context: Grid, kind: str) -> None:
    if kind == "conformer":
        context = context._replace(right=0)
    model = paraformer((), kind)
    lengths = torch.tensor([3000, 1700, 20, 0])
    wave = torch.randn(4, 3000, dtype=torch.double)
    greedy = model.greedy("nar", context)
    together = greedy(*model.encode(wave, lengths, context))
    for row, length in enumerate(lengths.tolist()):
        alone = greedy(*model.encode(wave[row : row + 1, :length], lengths[row : row + 1], context))
        count = int(alone.lengths)
        assert int(together.lengths[row]) == count
        torch.testing.assert_close(together.values[row, :count], alone.values[0, :count])


@torch.no_grad()
@pytest.mark.parametrize("context", [WHOLE, Grid(*GRIDS[0])])
def test_what_has_no_tokens_gives_none(context: Grid) -> None:
    """Beside speech, and alone."""
    model = paraformer(GRIDS)
    model.predictor.out.bias.data.fill_(-40)
    wave, lengths = torch.randn(2, 900, dtype=torch.double), torch.tensor([900, 300])
    assert model.greedy("nar", context)(*model.encode(wave, lengths, context)).lengths.tolist() == [0, 0]


def test_phrases_are_favoured() -> None:
    found, wave = transcriber(), noise(3 * RATE)
    for latency_ms in (None, 80):
        plain = found.transcribe(wave, latency_ms=latency_ms).text
        boosted = found.transcribe(wave, latency_ms=latency_ms, hotwords=["fade"], hotword_weight=30).text
        assert "fade" not in plain
        assert "fade" in boosted


def test_times_are_those_of_the_weights() -> None:
    """A token begins a step and a half before the one that completes it, and none before the recording."""
    tokens = [chr(0x4E00 + i) for i in range(VOCAB)]
    said = Transcriber(paraformer(GRIDS, rate=RATE).float(), ListTokenizer(tokens)).transcribe(noise(3 * RATE))
    steps = said.hypotheses[0].steps
    assert len(said.words) == len(steps) > 5
    assert [word.start_s for word in said.words] == pytest.approx([max(0.0, 0.02 * n - 0.03) for n in steps], abs=2e-3)
    assert all(a.end_s <= b.start_s for a, b in pairwise(said.words))
    assert said.words[-1].end_s <= 3.0


def test_characters_without_spaces_are_words() -> None:
    tokens = [chr(0x4E00 + i) for i in range(VOCAB)]
    found = Transcriber(paraformer(GRIDS, rate=RATE).float(), ListTokenizer(tokens))
    stream = found.stream(80).push(noise(3 * RATE))
    said = stream.finish()
    assert said.text == stream.text == found.transcribe(noise(3 * RATE), latency_ms=80).text
    assert said.text == "".join(word.text for word in said.words)
    assert len(said.words) == len(said.hypotheses[0].tokens) > 5


def test_there_is_no_beam() -> None:
    with pytest.raises(InputError, match="says all tokens at once: it has no beam search"):
        transcriber().transcribe(noise(RATE), beam=4)
    with pytest.raises(InputError, match="this model has the decoders nar, got 'ctc'"):
        transcriber().transcribe(noise(RATE), decoder="ctc")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"grids": [[0, 3, 2]]}, "a grid has five numbers"),
        ({"grids": [[0, 3, 2, -1, 0]]}, "none of them without end"),
        ({"grids": [[0, 0, 2, 0, 0]]}, "a grid is [left, size"),
        ({"grids": [[0, 10**6, 0, 0, 0]]}, "at most 10000 steps"),
        ({"whole": False}, "got neither"),
        ({"grids": [[0, 3, 2, 0, 0], [0, 4, 1, 2, 1]]}, "grids with one look-ahead"),
        ({"kernel": 0}, "at least one tap"),
        ({"grids": [[0, 3, 2, 0, 0]], "shift": 0}, "sees no later tokens"),
        ({"end": 99}, "the token of the end"),
        ({"special": [-1]}, "the token of the end"),
        ({"wide": 16}, "one width"),
        ({"in_dim": 15}, "even width"),
        ({"heads": 3}, "cannot be split among 3 heads"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], reason: str) -> None:
    front: Any = paraformer().front
    options = {key: value for key, value in change.items() if key in ("grids", "whole", "end", "special")}
    with pytest.raises(ValueError, match=re.escape(reason)):
        Paraformer(
            front,
            SanmEncoder(change.get("in_dim", 16), 8, 1, change.get("heads", 2), 8, change.get("kernel", 3)),
            CifPredictor(change.get("wide", 8)),
            SanmDecoder(VOCAB, 8, 1, 2, 8, 5, change.get("shift", 2), end="end" not in change),
            **options,
        )


def test_a_conformer_refuses_blocks_that_overlap_or_that_it_does_not_have() -> None:
    with pytest.raises(ValueError, match="blocks do not overlap"):
        paraformer(((0, 3, 2, 2, 1),), "conformer")
    others: Any = {"causal": False}, {"style": "regular", "contexts": [(6, 1)]}
    for options in others:
        encoder = ConformerBlocks(ConformerEncoder(8, 8, 1, 2, subsampling_channels=2, **options))
        encoder.context(WHOLE)
        with pytest.raises(ValueError, match="only a causal Conformer"):
            encoder.context(Grid(0, 3, 0, 2, 1))


def test_a_front_end_that_does_not_fit_is_refused() -> None:
    fine = paraformer(((0, 3, 0, 2, 1),), "conformer")
    with pytest.raises(ValueError, match="the front end gives 4 numbers, and the encoder takes 8"):
        Paraformer(LogMel(sample_rate=1000, n_mels=4, n_fft=32), fine.encoder, fine.predictor, fine.decoder)


def test_weights_are_in_single_precision_under_autocast() -> None:
    """Half precision has 256 numbers under 1: nothing would add up."""
    model = paraformer(GRIDS).float()
    features = torch.randn(2, 12, 16)
    lengths = torch.tensor([12, 9])
    with torch.autocast("cpu", torch.bfloat16):
        heard = model.heard(features, lengths)
        fired = model.integrated(heard)
    assert heard.weights.dtype == fired.embeds.dtype == torch.float32
    expected = model.predictor.cif(heard.steps.float(), heard.weights, lengths)
    torch.testing.assert_close(fired.embeds, expected.embeds)
