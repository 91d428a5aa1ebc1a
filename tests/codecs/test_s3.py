"""S3 tokenizers: rows that do not depend on one another, recordings of any length, and what is refused."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechkit.builder import build
from speechkit.codecs.codebook import Codebook
from speechkit.codecs.quantizers import FiniteScalarQuantizer, VectorQuantizer
from speechkit.codecs.s3 import S3Tokenizer, SpeechTokenizer, TokenEmbedding, WhisperMel
from speechkit.codecs.s3_layers import S3Encoder
from speechkit.errors import InputError
from tests.paths import ROOT

KINDS = ("v1", "v1_25hz", "v2", "v3")
HOP = 160
each_kind = pytest.mark.parametrize("kind", KINDS)


def tiny(kind: str, restore: bool = False, **options: Any) -> S3Tokenizer:
    """64 channels, one head, random weights; those of `kind` otherwise."""
    torch.manual_seed(0)
    first = kind.startswith("v1")
    encoder = S3Encoder(
        mels=20,
        dim=64,
        heads=1,
        layers=3 if kind == "v3" else 2,
        strides=(1, 2) if kind == "v1" else (2, 2),
        memory=0 if first else 7,
        positions=1500 if first else None,
    )
    book = VectorQuantizer(Codebook(32, 64), normalize=True)
    model = S3Tokenizer(encoder, book if first else FiniteScalarQuantizer(64, [3] * 4, restore=restore), **options)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    torch.nn.init.normal_(encoder.stem.conv2.weight, std=1.0)
    return model.eval()


def noise(frames: int, seed: int = 0) -> Tensor:
    """Samples of so many frames, and a few that fill no frame: noise, and a tone that changes 20 times a second."""
    torch.manual_seed(seed)
    count = frames * HOP + 7
    pitch = (3.0 * torch.rand(count // 800 + 1, dtype=torch.double)).repeat_interleave(800)[:count]
    return 0.02 * torch.randn(count, dtype=torch.double) + 0.3 * torch.sin(pitch.cumsum(0))


def encoded(model: S3Tokenizer, *waves: Tensor) -> list[list[int]]:
    codes, counts = model.encode(pad_sequence(list(waves), batch_first=True), torch.tensor([len(w) for w in waves]))
    return [row[:count].tolist() for row, count in zip(codes, counts.tolist(), strict=True)]


@each_kind
@torch.no_grad()
def test_a_row_has_the_codes_that_it_has_alone(kind: str) -> None:
    """Beside rows of other lengths, shorter than a transform and longer than a window among them."""
    model = tiny(kind).double()
    waves = [noise(frames, seed) for seed, frames in enumerate((97, 3211, 30, 1, 0, 220, 96, 98))]
    assert encoded(model, *waves) == [encoded(model, wave)[0] for wave in waves]
    assert len(set(encoded(model, waves[0])[0])) > 3


@each_kind
def test_what_lies_behind_a_row_changes_nothing(kind: str) -> None:
    model = tiny(kind).double()
    wave = noise(90)
    behind = torch.cat([wave, torch.full((5000,), torch.nan, dtype=torch.double)])[None]
    codes, counts = model.encode(behind, torch.tensor([len(wave)]))
    assert codes[0].tolist() == encoded(model, wave)[0]
    assert counts.tolist() == [codes.shape[1]]


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 2999, 3000, 3001, 5201, 5300, 5450, 5599, 5600, 5601, 8000])
@pytest.mark.parametrize(("kind", "stride"), [("v1", 2), ("v2", 4)])
def test_no_code_is_lost(kind: str, stride: int, frames: int) -> None:
    (codes,) = encoded(tiny(kind), noise(frames).float())
    assert len(codes) == -(-frames // stride)


@pytest.mark.parametrize(
    ("frames", "count"), [(5201, 1251), (5300, 1275), (5450, 1326), (5599, 1400), (8000, 1950), (8200, 2050)]
)
def test_the_reference_loses_codes_behind_the_last_whole_window(frames: int, count: int) -> None:
    """Specification of the codecs, 2.5; those before them are the same."""
    reference, exact = tiny("v2", compat="reference"), tiny("v2")
    wave = noise(frames).float()
    (lossy,), (whole,) = encoded(reference, wave), encoded(exact, wave)
    assert len(lossy) == count
    assert lossy[:1250] == whole[:1250]


@each_kind
@torch.no_grad()
def test_each_window_gives_what_is_nearest_to_its_middle(kind: str) -> None:
    """Three windows, each encoded by itself."""
    model = tiny(kind).double()
    wave = noise(2 * 2600 + 700)
    stride = model.encoder.stride
    mel, _ = model.front(wave[None], torch.tensor([len(wave)]))
    parts = [mel[:, first : first + 3000] for first in (0, 2600, 5200)]
    rows = [model.quantizer.encode(model.encoder(x, torch.tensor([x.shape[1]]))[0])[0].tolist() for x in parts]
    half, step = 200 // stride, 3000 // stride
    assert encoded(model, wave)[0] == rows[0][:-half] + rows[1][half : step - half] + rows[2][half:]


def test_memory_is_bounded_by_the_windows_of_a_call() -> None:
    wave = noise(14_000).float()
    few, sizes = tiny("v2", windows=2), []

    def note(_: object, inputs: tuple[Tensor, ...], __: object) -> None:
        sizes.append(len(inputs[0]))

    few.encoder.register_forward_hook(note)
    assert encoded(few, wave) == encoded(tiny("v2"), wave)
    assert sizes == [2, 2, 2]


@torch.no_grad()
def test_features_are_mirrored_at_the_ends_and_held_to_eighty_decibels() -> None:
    """`torch.stft` on the whole, though frames come in blocks."""
    wave = noise(6100)
    front = WhisperMel(24).double()
    spectrum = torch.stft(wave, 400, HOP, window=torch.hann_window(400).double(), return_complex=True)[:, :-1]
    decades = (spectrum.abs().square().t() @ front.bank).clamp(min=1e-10).log10()
    expected = (decades.clamp(min=decades.max() - 8) + 4) / 4
    found, counts = front(wave[None], torch.tensor([len(wave)]))
    torch.testing.assert_close(found[0], expected)
    assert counts.tolist() == [6100]


@pytest.mark.parametrize(
    ("wave", "lengths", "sentence"),
    [
        (torch.tensor([[0.1, torch.nan]]), None, "the wave contains NaN or Inf"),
        (torch.tensor([0.1, torch.inf]), None, "the wave contains NaN or Inf"),
        (torch.zeros(1, 2, 320), None, r"must be \(samples,\) or \(batch, samples\), got \(1, 2, 320\)"),
        (torch.zeros(()), None, r"must be \(samples,\) or \(batch, samples\), got \(\)"),
        (torch.zeros(0), None, r"must hold samples, got \(1, 0\)"),
        (torch.zeros(2, 0), None, r"must hold samples, got \(2, 0\)"),
        (torch.zeros(0, 320), None, r"must hold samples, got \(0, 320\)"),
        (torch.zeros(320, dtype=torch.int16), None, "of real numbers, got .* of torch.int16"),
        (torch.zeros(2, 320), torch.tensor([320]), r"must be 2 whole numbers, got \(1,\)"),
        (torch.zeros(1, 320), torch.tensor([1.0]), r"must be 1 whole numbers, got \(1,\) of torch.float32"),
        (torch.zeros(1, 320), torch.tensor([321]), r"must be from 0 to 320 samples, got \[321\]"),
        (torch.zeros(1, 320), torch.tensor([-1]), r"must be from 0 to 320 samples, got \[-1\]"),
    ],
)
def test_what_is_no_wave_is_refused_in_one_sentence(wave: Tensor, lengths: Tensor | None, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as refusal:
        SpeechTokenizer(tiny("v2")).encode(wave, lengths)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"heads": 3}, "even multiple of heads"),
        ({"heads": 0}, "cannot be built"),
        ({"memory": 4}, "odd number of steps"),
        ({"strides": [2]}, "two positive numbers"),
        ({"strides": [3, 2]}, "must divide 200"),
        ({"positions": 70}, "a window needs 750 positions"),
        ({"epsilons": [1e-5]}, "must be two numbers"),
        ({"dim": "64"}, "needs dim to be int"),
    ],
)
def test_configurations_of_no_tokenizer_are_refused(change: dict[str, Any], sentence: str) -> None:
    at = "speechkit.codecs."
    encoder = {"_target_": at + "s3_layers.S3Encoder", "dim": 64, "heads": 1, "layers": 1, **change}
    quantizer = {"_target_": at + "quantizers.FiniteScalarQuantizer", "dim": 64, "levels": [3], "restore": False}
    with pytest.raises(InputError, match=sentence):
        build({"_target_": at + "s3.S3Tokenizer", "encoder": encoder, "quantizer": quantizer})


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_training_reaches_every_weight(kind: str) -> None:
    model = tiny(kind, restore=True).train()
    wave = pad_sequence([noise(60).float(), noise(40).float()], batch_first=True)
    quantized, counts = model(wave, torch.tensor([wave.shape[1], 40 * HOP]))
    assert counts.tolist() == [-(-60 // model.encoder.stride), -(-40 // model.encoder.stride)]
    (quantized.values.square().mean() + quantized.loss).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_tokens_become_vectors_up_to_each_rows_end() -> None:
    torch.manual_seed(0)
    embedding = TokenEmbedding(6, 3)
    found = embedding(torch.tensor([[1, 5, 2], [4, -1, 99]]), torch.tensor([3, 1]))
    table = embedding.table.weight
    assert torch.equal(found[0], table[[1, 5, 2]])
    assert torch.equal(found[1], torch.stack([table[4], torch.zeros(3), torch.zeros(3)]))


def test_the_page_shows_how_tokens_become_features_that_are_learned() -> None:
    page = (ROOT / "docs" / "codecs.md").read_text()
    (example,) = [text for text in re.findall(r"^```python\n(.*?)^```", page, re.S | re.M) if "TokenEmbedding" in text]
    tokenizer = SpeechTokenizer(tiny("v2"))
    codes, counts = tokenizer.encode(pad_sequence([noise(60).float(), noise(21).float()], batch_first=True))
    names: dict[str, Any] = {"tokenizer": tokenizer, "codes": codes, "counts": counts}
    exec(example, names)
    assert names["features"].shape == (*codes.shape, 512)
    names["features"].sum().backward()
    assert names["embedding"].table.weight.grad.any(1).nonzero().flatten().tolist() == codes.unique().tolist()


def test_a_tokenizer_says_what_it_gives() -> None:
    tokenizer = SpeechTokenizer(tiny("v1"))
    assert (tokenizer.rate, tokenizer.size, tokenizer.codes_per_second) == (16_000, 32, 50)
    assert tokenizer.encoding_latency_s is None
    codes, counts = tokenizer.encode(noise(10).float())
    assert (tuple(codes.shape), counts.tolist()) == ((1, 5), [5])
