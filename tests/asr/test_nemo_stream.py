"""NeMo's streaming arithmetic, where it is exact and where it is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from speechkit.asr.conformer import ConformerEncoder
from speechkit.asr.nemo_stream import CacheAwareEncoder, NemoStream
from speechkit.streaming.stream import run
from tests.streaming.contract import CHECKS, Case

MELS = 12


def encoder(style: str = "chunked_limited", causal: bool = True) -> ConformerEncoder:
    contexts = [[8, 3], [8, 1], [8, 0]]
    built = ConformerEncoder(
        MELS,
        dim=8,
        layers=2,
        heads=2,
        conv_kernel=3,
        subsampling_channels=4,
        contexts=contexts,
        style=style,
        causal=causal,
    )
    for convolution in (*built.subsampling.strided, *built.subsampling.pointwise):
        torch.nn.init.uniform_(convolution.bias, -0.3, 0.3)  # as after training: NeMo's error is that of relu(bias)
    return built.double().eval()


def stepped(stream: CacheAwareEncoder, mel: Tensor) -> Tensor:
    """(frames, n_mels) -> (steps, dim), chunk by chunk as NeMo's simulator goes."""
    cache, outputs = stream.initial(1), []
    pieces = list(stream.pieces(mel[None], torch.tensor([len(mel)])))
    for i, (piece, lengths, first) in enumerate(pieces):
        out, steps, cache = stream.step(piece, lengths, cache, first, keep_all=i == len(pieces) - 1)
        outputs.append(out[0, : int(steps[0])])
    return torch.cat(outputs)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("right", [1, 3])
def test_with_look_ahead_the_stream_is_exact(check: Callable[[Case], None], right: int) -> None:
    module = encoder()

    def forward(x: Tensor, lengths: Tensor) -> Any:
        return module(x, lengths, (8, right))

    check(Case(NemoStream(module, (8, right)), forward, MELS, longest=160))


@torch.no_grad()
@pytest.mark.parametrize("right", [1, 3])
def test_simulated_chunks_are_exact_with_look_ahead(right: int) -> None:
    module, mel = encoder(), torch.randn(161, MELS, dtype=torch.double)
    whole = module(mel[None], torch.tensor([len(mel)]), (8, right))[0][0]
    torch.testing.assert_close(stepped(CacheAwareEncoder(module, (8, right)), mel), whole, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_without_look_ahead_the_stream_is_off_until_the_left_context_has_passed() -> None:
    module, mel = encoder(), torch.randn(481, MELS, dtype=torch.double)
    whole = module(mel[None], torch.tensor([len(mel)]), (8, 0))[0][0]
    reference = stepped(CacheAwareEncoder(module, (8, 0)), mel)
    streamed = run(NemoStream(module, (8, 0)), [mel])[0]
    torch.testing.assert_close(streamed, reference, rtol=1e-9, atol=1e-9)
    error = (reference - whole).abs().amax(1)
    assert error[0] < 1e-9
    assert error[1] > 1e-6
    assert error[-1] < 1e-9
    exact = run(module.at((8, 0)), [mel])[0]
    torch.testing.assert_close(exact, whole, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("right", [1, 3])
def test_with_regular_attention_the_stream_is_off_until_the_left_context_has_passed(right: int) -> None:
    module, mel = encoder("regular"), torch.randn(481, MELS, dtype=torch.double)
    whole = module(mel[None], torch.tensor([len(mel)]), (8, right))[0][0]
    stream = CacheAwareEncoder(module, (8, right))
    error = (stepped(stream, mel)[: len(whole)] - whole).abs().amax(1)
    assert error[1] > 1e-6
    assert error[40 : len(whole) - stream.cache_drop - 1].max() < 1e-9


@torch.no_grad()
def test_padded_chunks_have_one_size_and_come_seven_frames_later() -> None:
    module, mel = encoder(), torch.randn(160, MELS, dtype=torch.double)
    stream = CacheAwareEncoder(module, (8, 0), pad_and_drop=True)
    sizes = {piece.shape[1] for piece, _, _ in stream.pieces(mel[None], torch.tensor([len(mel)]))}
    assert sizes == {17}
    before = stepped(stream, mel)
    assert len(before) == 20
    changed = mel.clone()
    changed[8 * 5 + 7] += 1
    first = (stepped(stream, changed) - before).abs().amax(1).gt(0).nonzero()[0]
    assert int(first) == 5


@torch.no_grad()
def test_an_idle_row_keeps_its_place() -> None:
    module, mel = encoder(), torch.randn(2, 25, MELS, dtype=torch.double)
    stream = CacheAwareEncoder(module, (8, 1))
    out, steps, cache = stream.step(mel, torch.tensor([25, 0]), stream.initial(2))
    assert steps.tolist() == [2, 0]
    assert torch.isfinite(out).all()
    assert cache.length.tolist() == [2, 2]  # as in NeMo, whose rows advance together


def test_what_cannot_stream_says_so() -> None:
    with pytest.raises(ValueError, match="streams causal encoders with a limited right context"):
        CacheAwareEncoder(encoder(causal=False), (8, 1))
    with pytest.raises(ValueError, match="limited right context"):
        CacheAwareEncoder(encoder(), (8, -1))
    with pytest.raises(ValueError, match="chunked_limited"):
        NemoStream(encoder("regular"), (8, 1))
