"""Paraformer computes what FunASR does, with every row as it is alone; folders name their own sizes."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import speechkit
from speechkit.asr.blocks import WHOLE, Grid, unpacked
from speechkit.asr.paraformer import Paraformer
from speechkit.asr.paraformer_loss import glancing_mask, length_error, smoothed_cross_entropy, with_end
from speechkit.asr.sanm_decoder import Sight
from speechkit.asr.transcriber import Transcriber
from speechkit.importers.funasr import renamed
from speechkit.low_frame_rate import LowFrameRate
from speechkit.streaming.state import Chunk
from tests.paths import GOLDENS, needs_goldens

pytestmark = [pytest.mark.parity, needs_goldens]


def folders(kind: str) -> list[Path]:
    """Folders of a kind, of any sizes."""
    found = (path.parent for path in GOLDENS.glob("paraformer*/**/config.json"))
    return sorted(folder for folder in found if json.loads((folder / "config.json").read_text())["model"] == kind)


class Golden:
    """One folder: the model, its front end, and what the reference computed."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.arrays = np.load(folder / "io.npz")
        self.transcriber: Transcriber = speechkit.load(folder / "model.pt")
        assert isinstance(self.transcriber.model, Paraformer)
        self.model: Paraformer = self.transcriber.model

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    @property
    def rows(self) -> range:
        return range(len(self["wav_lens"]))

    def features(self, row: int) -> Tensor:
        """(1, time, dim) of the reference."""
        return self["feats"][row : row + 1, : int(self["feats_lens"][row])]


@cache
def opened(folder: Path) -> Golden:
    return Golden(folder)


def name(folder: Path) -> str:
    return f"{folder.parent.name}-{folder.name}"


@pytest.fixture(params=folders("Paraformer"), ids=name)
def golden(request: pytest.FixtureRequest) -> Golden:
    return opened(request.param)


@pytest.fixture(params=folders("ParaformerStreaming"), ids=name)
def streaming(request: pytest.FixtureRequest) -> Golden:
    return opened(request.param)


def close(found: Tensor, expected: Any, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@torch.no_grad()
def test_the_front_end_gives_the_features(golden: Golden) -> None:
    front: Any = golden.model.front
    plain = LowFrameRate(front.fbank.n_mels, front.joined.span, front.joined.stride)
    for row in golden.rows:
        wave = golden[f"wav_{row}"][None].float() / 32768
        lengths = torch.tensor([wave.shape[1]])
        frames, counts = front.fbank(wave, lengths)
        if row == 0:
            close(frames[0], golden["fbank80_0"])
            close(plain(frames, counts)[0][0], golden["lfr_nocmvn_0"])
        close(front(wave, lengths)[0], golden.features(row))


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13])
def test_frames_are_joined_as_published(golden: Golden, frames: int) -> None:
    x = golden[f"lfr_in_{frames}"][None]
    front = golden.config["frontend_conf"]
    found, _ = LowFrameRate(x.shape[2], front["lfr_m"], front["lfr_n"])(x, torch.tensor([frames]))
    close(found[0], golden[f"lfr_out_{frames}"], 0)


@torch.no_grad()
def test_every_stage_is_the_reference_s_of_a_single_utterance(golden: Golden) -> None:
    model: Any = golden.model
    for row in golden.rows:
        features = golden.features(row)
        lengths = torch.tensor([features.shape[1]])
        close(model.encoder.embedded(features, torch.ones(1)), golden[f"s{row}_enc_embed"])
        heard = model.heard(features, lengths)
        close(heard.steps, golden[f"s{row}_encoder_out"])
        close(heard.weights, golden[f"s{row}_alphas_raw"])
        fired = model.integrated(heard)
        assert fired.counts.tolist() == golden[f"s{row}_token_num"].tolist()
        close(fired.embeds, golden[f"s{row}_acoustic_embeds"])
        close(model.decoder(fired.embeds, model.sight(heard, fired)), golden[f"s{row}_logits"])


@torch.no_grad()
def test_a_row_of_a_batch_is_the_reference_s_single_utterance(golden: Golden) -> None:
    """Where the reference's own batch is not."""
    model = golden.model
    heard = model.heard(golden["feats"], golden["feats_lens"])
    fired = model.integrated(heard)
    log_probs = model.decoder(fired.embeds, model.sight(heard, fired)).log_softmax(-1)
    for row in golden.rows:
        expected = golden[f"s{row}_log_probs"][0]
        assert int(fired.counts[row]) == len(expected)
        close(log_probs[row, : len(expected)], expected)


@torch.no_grad()
def test_a_batch_is_the_reference_s_in_compat(golden: Golden) -> None:
    """Its padding included."""
    model: Any = golden.model
    steps, lengths = model.encoder(golden["feats"], golden["feats_lens"], "reference")
    close(steps, golden["b_encoder_out"])
    valid = torch.arange(steps.shape[1]) < lengths[:, None]
    weights = model.predictor(steps) * valid
    close(weights, golden["b_alphas_raw"])
    fired = model.predictor.cif.padded(steps, weights, lengths)
    close(fired.weights.float(), golden["b_alphas"])
    assert fired.counts.tolist() == golden["b_token_num"].tolist()
    close(fired.embeds, golden["b_acoustic_embeds"])
    tokens = torch.arange(fired.embeds.shape[1]) < fired.counts[:, None]
    log_probs = model.decoder(fired.embeds, Sight(tokens, steps, valid)).log_softmax(-1)
    model.compat = "reference"
    emitted = model.greedy("nar", WHOLE)(steps, lengths)
    model.compat = None
    for row in golden.rows:
        count = int(fired.counts[row])
        close(log_probs[row, :count], golden["b_log_probs"][row, :count])
        ids = golden[f"b_ids_{row}"]
        kept = ids[~torch.isin(ids, torch.tensor(model.special))]
        assert emitted.values[row, : int(emitted.lengths[row]), 0].tolist() == kept.tolist()


@torch.no_grad()
def test_tokens_are_the_reference_s(golden: Golden) -> None:
    for row in golden.rows:
        found = golden.transcriber.transcribe(golden[f"wav_{row}"].float().numpy() / 32768)
        expected = golden[f"s{row}_ids_0"]
        kept = expected[~torch.isin(expected, torch.tensor(golden.model.special))]
        assert found.hypotheses[0].tokens == kept.tolist()


@pytest.mark.parametrize("ratio", ["r0.75", "r0.0", "r0.2"])
def test_training_has_the_reference_s_losses_and_gradients(golden: Golden, ratio: str) -> None:
    """With its draws, and without the fires that it misses."""
    model: Any = golden.model
    model.zero_grad()
    wanted, counts = with_end(golden["text"], golden["text_lens"], model.end)
    model.compat = "reference"
    heard = model.heard(golden["feats"], golden["feats_lens"])
    model.compat = None
    fired = model.integrated(heard, counts)
    there = golden[f"{ratio}_train_acoustic_embeds"]
    embeds = fired.embeds * (there != 0).any(-1, keepdim=True)
    close(embeds, there)
    close(fired.total.float(), golden[f"{ratio}_train_token_num"])
    sight = model.sight(heard, fired)
    if f"{ratio}_embed_mask" in golden:
        first = model.decoder(embeds, sight)
        close(first * sight.tokens[..., None], golden[f"{ratio}_train_logits_1st"])
        hits = (first.argmax(-1) == wanted) & sight.tokens
        assert hits.sum(1).tolist() == golden[f"{ratio}_same_num"].tolist()
        given = golden[f"{ratio}_embed_mask"] & sight.tokens
        assert torch.equal(glancing_mask(hits, counts, float(ratio[1:])).sum(1), given.sum(1))
        embeds = torch.where(given[..., None], model.decoder.embed(wanted), embeds)
        close(embeds * sight.tokens[..., None], golden[f"{ratio}_train_semantic_embeds"])
    conf = golden.config["model_conf"]
    entropy = smoothed_cross_entropy(model.decoder(embeds, sight), wanted, counts, conf["lsm_weight"])
    length = length_error(fired.total, counts)
    loss = entropy + conf["predictor_weight"] * length
    close(entropy[None], golden[f"{ratio}_loss_att"])
    close(length[None], golden[f"{ratio}_loss_pre"])
    close(loss[None], golden[f"{ratio}_loss"])
    loss.backward()
    names = golden.arrays["grad_names"].tolist()
    found = {key: model.get_parameter(key).grad for key in renamed({n: torch.zeros(0) for n in names})}
    norms = [0.0 if grad is None else float(grad.norm()) for grad in found.values()]
    torch.testing.assert_close(torch.tensor(norms).double(), golden[f"{ratio}_grad_norm"], atol=1e-5, rtol=2e-4)
    if ratio == "r0.75":
        given = {key.removeprefix("grad/"): golden[key] for key in golden.arrays if key.startswith("grad/")}
        for key, grad in renamed(given).items():
            close(found[key], grad, 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("run", ["a", "aT", "b", "c", "d", "e"])
def test_streams_are_the_reference_s_in_compat(streaming: Golden, run: str) -> None:
    settings = streaming.config["runs"][run]
    left, size, right = settings["chunk_size"]
    back, decoder_back = settings["encoder_chunk_look_back"], settings["decoder_chunk_look_back"]
    calls = settings["num_calls"]
    grid = Grid(left, size, right, calls if back < 0 else back, calls if decoder_back < 0 else decoder_back)
    model: Any = streaming.model
    module = model.encoder.at(grid, "reference")
    model.compat = "reference"
    decoder = model.greedy("nar", grid)
    model.compat = None
    state, after = module.init_state(1), decoder.init_state(1)
    for call in range(calls):
        x = streaming[f"{run}_{call}_feats"] if not settings["tail"][call] else torch.zeros(1, 0, module.encoder.in_dim)
        values = torch.zeros(1, size, module.encoder.in_dim)
        values[:, : x.shape[1]] = x
        chunk = Chunk(values, torch.tensor([x.shape[1]]), torch.tensor([call == calls - 1]))
        out, state = module.step(chunk, state)
        assert out.lengths.tolist() == [1], "a call of the reference's is a block"
        block = unpacked(out.values, grid.room)
        expected = streaming[f"{run}_{call}_encoder_out"]
        start, end = (0, int(block.end)) if not settings["tail"][call] else (left, int(block.end))
        close(block.rows[0, 0, start:end], expected[0])
        emitted, after = decoder.step(out, after)
        ids = streaming[f"{run}_{call}_ids"]
        kept = ids[~torch.isin(ids, torch.tensor(model.special))]
        assert emitted.values[0, : int(emitted.lengths), 0].tolist() == kept.tolist()
        if f"{run}_{call}_log_probs" in streaming:
            best = streaming[f"{run}_{call}_log_probs"][0].max(-1).values
            said = best[~torch.isin(ids, torch.tensor(model.special))]
            close(emitted.values[0, : int(emitted.lengths), 2], said)
        if call < calls - 1:
            key = f"{run}_{call}_cif_alphas"
            close(after.scores.cif.weight.float(), streaming[key][0])


@torch.no_grad()
def test_whole_context_is_not_of_a_model_for_streams(streaming: Golden) -> None:
    assert WHOLE not in streaming.model.contexts
    assert streaming.model.contexts[0][:3] == (0, 10, 5)
