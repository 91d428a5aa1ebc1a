"""SeACo-Paraformer says what a Paraformer says, but where its bias decoder finds a phrase; its times are finer."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from speechkit.asr.blocks import WHOLE
from speechkit.asr.decoding.boosting import PhraseBooster
from speechkit.asr.sanm_decoder import Sight
from speechkit.asr.seaco import CifPredictorV3, SeacoParaformer
from speechkit.asr.seaco_bias import BiasDecoder
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import InputError
from speechkit.text import CharTokenizer
from speechkit.token_list import ListTokenizer
from tests.asr.small_paraformer import VOCAB, paraformer
from tests.asr.small_seaco import NO_BIAS, seaco

RATE = 8000
TOKENIZER = CharTokenizer(" abcdefgh")
FOUND = 3  # "c"
LETTERS = "abcdefg"
MANY = [a + b for a in LETTERS for b in LETTERS] + [2 * a + b for a in LETTERS for b in LETTERS]


def halved(model: SeacoParaformer) -> SeacoParaformer:
    """With a bias decoder that finds a token on one side of a plane, and no phrase on the other."""
    normal = torch.randn(8, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    model.bias.out.weight.data.zero_()
    model.bias.out.bias.data.fill_(-9)
    model.bias.out.weight.data[FOUND], model.bias.out.weight.data[NO_BIAS] = 4 * normal, -4 * normal
    model.bias.out.bias.data[[FOUND, NO_BIAS]] = 0.0
    return model


def booster(phrases: list[str], weight: float = 0.0) -> PhraseBooster:
    return PhraseBooster(TOKENIZER, phrases, weight)


def waves() -> tuple[Tensor, Tensor]:
    wave = torch.randn(4, 3000, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    return wave, torch.tensor([3000, 1700, 20, 0])


def biased(model: SeacoParaformer, phrases: list[str]) -> tuple[Tensor, Tensor]:
    """Scores of `waves`, and those of the bias decoder alone, both of (tokens, vocabulary) of all rows together."""
    made: list[Tensor] = []
    hook = model.bias.register_forward_hook(lambda _module, _given, scores: made.append(scores))
    found, counts = model.whole_scores(booster(phrases))(*model.encode(*waves(), WHOLE))
    hook.remove()
    own, alone = (torch.cat([row[:n] for row, n in zip(x, counts.tolist(), strict=True)]) for x in (found, made[0]))
    return own[:, 1:], alone


def noise(samples: int) -> np.ndarray:
    return torch.randn(samples, generator=torch.Generator().manual_seed(0)).numpy().clip(-1, 1)


@torch.no_grad()
def test_without_phrases_it_says_what_a_paraformer_says() -> None:
    plain, model = seaco()
    heard = plain.encode(*waves(), WHOLE)
    expected = plain.greedy("nar", WHOLE)(*heard)
    for phrases in (None, booster([])):
        found = model.greedy("nar", WHOLE, phrases)(*heard)
        assert found.lengths.tolist() == expected.lengths.tolist()
        torch.testing.assert_close(found.values[..., [0, 2]], expected.values[..., [0, 2]])


@torch.no_grad()
def test_a_phrase_changes_its_positions_and_no_other() -> None:
    plain, model = seaco()
    halved(model)
    scores, counts = plain.whole_scores()(*plain.encode(*waves(), WHOLE))
    own = torch.cat([row[:n, 1:] for row, n in zip(scores, counts.tolist(), strict=True)])
    found, alone = biased(model, ["cab", "d"])
    changed = alone.argmax(-1) == FOUND
    assert set(alone.argmax(-1).tolist()) == {FOUND, NO_BIAS}
    torch.testing.assert_close(found[~changed], own[~changed])
    torch.testing.assert_close(found[changed], alone[changed].log_softmax(-1))
    assert (found[changed].argmax(-1) != own[changed].argmax(-1)).any()


@torch.no_grad()
def test_which_phrases_there_are_matters_and_their_order_does_not() -> None:
    _, model = seaco()
    (_, one), (_, same), (_, other) = (biased(model, phrases) for phrases in (["cab", "d"], ["d", "cab"], ["cab", "e"]))
    torch.testing.assert_close(one, same)
    assert (one - other).abs().max() > 0.01


@torch.no_grad()
def test_embeddings_and_what_the_decoder_makes_of_them_attend_to_phrases() -> None:
    """The last of which is the start token alone."""
    _, model = seaco()
    bias, phrases = model.bias, model.whole_scores(booster(["cab", "d"])).phrases
    assert phrases is not None
    torch.testing.assert_close(phrases[-1:], bias.phrases(model.decoder.embed, [[model.start]]))
    embeds, hidden = torch.randn(2, 1, 4, 8, dtype=torch.double)
    sight = Sight(torch.ones(1, 4, dtype=torch.bool), phrases[None], torch.ones(1, 3, dtype=torch.bool))
    merged = bias.decoder(embeds, sight) + bias.decoder(hidden, sight)
    torch.testing.assert_close(bias(embeds, hidden, sight.tokens, phrases), bias.out(merged))


@torch.no_grad()
def test_a_phrase_is_the_state_after_its_last_token() -> None:
    _, model = seaco()
    rows = [[1, 2, 3], [4], [5, 6, 5, 6, 5], [1]]
    found = model.bias.phrases(model.decoder.embed, rows)
    for row, vector in zip(rows, found, strict=True):
        _, (state, _) = model.bias.encoder(model.decoder.embed(torch.tensor([row])))
        torch.testing.assert_close(vector, state[1, 0])


@torch.no_grad()
def test_the_attention_that_ranks_phrases_is_that_of_the_layer() -> None:
    _, model = seaco()
    layer: Any = model.bias.decoder.layers[5]
    x, memory = torch.randn(2, 5, 8, dtype=torch.double), torch.randn(2, 9, 8, dtype=torch.double)
    sight = Sight(torch.tensor([[True] * 5, [True] * 3 + [False] * 2]), memory, torch.ones(2, 9, dtype=torch.bool))
    weights = layer.attention(x, sight)
    value = layer.key_value(memory)[..., 8:].unflatten(-1, (2, 4)).transpose(1, 2)
    entered = x + layer.memory(layer.norm2(layer.feed_forward(layer.norm1(x))), sight.tokens)
    torch.testing.assert_close(entered + layer.out((weights @ value).transpose(1, 2).flatten(2)), layer(x, sight)[0])


@torch.no_grad()
@pytest.mark.parametrize("layers", [2, 7])
def test_of_many_phrases_each_utterance_has_the_fifty_that_it_attends_to(layers: int) -> None:
    _, model = seaco(layers=layers)
    bias = model.bias
    assert len(MANY) == 98
    phrases = bias.phrases(model.decoder.embed, [*booster(MANY).tokens, [1]])
    embeds, hidden = torch.randn(2, 2, 5, 8, dtype=torch.double)
    tokens = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    found = bias(embeds, hidden, tokens, phrases)
    every = phrases.expand(2, -1, -1)
    relevance = bias.decoder.relevance(hidden, Sight(tokens, every, torch.ones(2, 99, dtype=torch.bool)))
    assert relevance.sum(1).tolist() == pytest.approx([2 * 5.0, 2 * 3.0])  # heads and tokens
    kept = relevance[:, :-1].argsort(descending=True)[:, :50]
    assert set(kept[0].tolist()) != set(kept[1].tolist())
    for row, count in enumerate([5, 3]):
        chosen = torch.cat([phrases[kept[row]], phrases[-1:]])
        given = [part[row : row + 1, :count] for part in (embeds, hidden, tokens)]
        torch.testing.assert_close(found[row : row + 1, :count], bias(*given, chosen))


@torch.no_grad()
@pytest.mark.parametrize("phrases", [[], ["cab", "d"], MANY])
def test_a_row_of_a_batch_is_what_it_is_alone(phrases: list[str]) -> None:
    """Its times, too, of which the second head reads the whole utterance in both directions."""
    _, model = seaco()
    halved(model)
    wave, lengths = waves()
    greedy = model.greedy("nar", WHOLE, booster(phrases, 0.3))
    together = greedy(*model.encode(wave, lengths, WHOLE))
    assert int(together.lengths[0]) > 5
    for row, length in enumerate(lengths.tolist()):
        alone = greedy(*model.encode(wave[row : row + 1, :length], lengths[row : row + 1], WHOLE))
        count = int(alone.lengths)
        assert int(together.lengths[row]) == count
        torch.testing.assert_close(together.values[row, :count], alone.values[0, :count])


@torch.no_grad()
def test_what_has_no_tokens_gives_none() -> None:
    _, model = seaco()
    model.predictor.out.bias.data.fill_(-40)
    assert model.greedy("nar", WHOLE, booster(["cab"]))(*model.encode(*waves(), WHOLE)).lengths.tolist() == [0] * 4


@torch.no_grad()
def test_times_are_those_of_the_frames_that_complete_tokens() -> None:
    """Of equal weights: 4 tokens in 5 steps of 3 frames are complete after frames 3, 7, 11 and 14."""
    predictor = CifPredictorV3(8).double()
    steps = torch.randn(2, 6, 8, dtype=torch.double)
    predictor.frame_out.weight.zero_()
    lengths, counts = torch.tensor([5, 2]), torch.tensor([4, 1])
    found = predictor.completed(steps, lengths, counts, 4)
    assert (3 * found[0]).tolist() == pytest.approx([3, 7, 11, 14])
    assert float(3 * found[1, 0]) == pytest.approx(5)
    predictor.frame_out.bias.fill_(-20)  # nothing is left of sigmoid / 4 - 0.01
    assert predictor.frame_weights(steps, lengths).count_nonzero() == 0
    assert (3 * predictor.completed(steps, lengths, counts, 4)[0]).tolist() == pytest.approx([14] * 4)


def test_the_frames_are_what_words_are_timed_by() -> None:
    _, model = seaco(RATE)
    found = Transcriber(model.float(), ListTokenizer([chr(0x4E00 + i) for i in range(VOCAB)]))
    said = found.transcribe(noise(2 * RATE))
    steps = said.hypotheses[0].steps
    assert found.model.lead_ms == pytest.approx(10.0)  # 1.5 of 20 / 3 ms
    assert any(step % 1 for step in steps)
    begins = {round(max(0.0, 0.02 * step - 0.01), 3) for step in steps}
    assert len(said.words) == len(steps) > 5
    assert {word.start_s for word in said.words} <= begins


def test_phrases_of_a_transcriber_go_both_ways() -> None:
    """Through the bias decoder whatever their weight is, and into the scores."""
    plain, model = seaco(RATE)
    halved(model)
    with_bias, without = (Transcriber(one.float(), TOKENIZER) for one in (model, plain))
    wave = noise(3 * RATE)
    before = without.transcribe(wave).hypotheses[0].tokens
    assert with_bias.transcribe(wave).hypotheses[0].tokens == before
    assert with_bias.transcribe(wave, hotwords=[]).hypotheses[0].tokens == before
    biased = with_bias.transcribe(wave, hotwords=["fade"], hotword_weight=0).hypotheses[0].tokens
    assert biased.count(FOUND) > before.count(FOUND)
    assert "fade" in with_bias.transcribe(wave, hotwords=["fade"], hotword_weight=60).text
    assert with_bias.transcribe(wave, hotwords=MANY, hotword_weight=0).text


def test_a_phrase_that_cannot_be_written_is_refused() -> None:
    found = Transcriber(seaco(RATE)[1].float(), TOKENIZER)
    with pytest.raises(InputError, match="1 of 2 phrases cannot be boosted.*'zoo'"):
        found.transcribe(noise(RATE), hotwords=["cab", "zoo"])
    with pytest.raises(InputError, match="cannot stream, only hear whole recordings"):
        found.stream()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vocab_size": VOCAB}, "the width and the vocabulary"),
        ({"dim": 16}, "the width and the vocabulary"),
        ({"no_bias": 99}, "no_bias must be one of the 10 tokens, got 99"),
        ({"layers": 0}, "1 to 1000 layers"),
        ({"start": 9}, "stands for no phrase"),
        ({"upsample": 0}, "at least one frame"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], reason: str) -> None:
    plain: Any = paraformer(())
    sizes = {"vocab_size": VOCAB + 1, "dim": 8, "layers": 1, "heads": 2, "inner": 8, "kernel": 3, "no_bias": 1}
    bias: Any = {**sizes, **{key: value for key, value in change.items() if key in sizes}}
    with pytest.raises(ValueError, match=re.escape(reason)):
        SeacoParaformer(
            plain.front, plain.encoder, CifPredictorV3(8, upsample=change.get("upsample", 3)), plain.decoder,
            BiasDecoder(**bias), start=change.get("start", 1),
        )  # fmt: skip
