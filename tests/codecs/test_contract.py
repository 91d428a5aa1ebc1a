"""The streaming contract for the parts of codecs: one line for each."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from speechkit.codecs.codebook import Codebook
from speechkit.codecs.quantizers import FiniteScalarQuantizer, VectorQuantizer
from speechkit.codecs.s3_causal import CausalS3Tokenizer, RunningFloor
from speechkit.codecs.s3_causal_layers import CausalConvolution, CausalS3Encoder
from speechkit.codecs.seanet import SeanetEncoder, SkipLstm
from speechkit.codecs.vocos import VocosDecoder
from speechkit.codecs.wavtokenizer import WavTokenizer
from speechkit.nn.istft import InverseStft
from speechkit.streaming.chain import Chain
from tests.streaming.contract import CHECKS, Case


def randomized(module: Any, std: float = 0.4) -> Any:
    """Weights large enough that every path matters, in double precision."""
    torch.manual_seed(7)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.double().eval()


def encoder(causal: bool, chunks: int = 1, strides: tuple[int, ...] = (2, 3), longest: int = 150) -> Case:
    module = randomized(SeanetEncoder(dim=4, filters=2, strides=strides, causal=causal))
    return Case(module.streaming(chunks), lambda x, n: module(x[..., 0], n), dim=1, longest=longest)


def decoder(lookahead: int, chunks: int = 1) -> Case:
    module = randomized(
        VocosDecoder(3, dim=4, inner=6, layers=2, hop=4, n_fft=16, groups=2, left=5, lookahead=lookahead), std=0.3
    )

    def forward(x: torch.Tensor, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        samples, lengths = module(x, n)
        return samples.unflatten(1, (-1, 4)), lengths // 4

    return Case(Chain(*module.streaming(), chunks=chunks), forward, dim=3, longest=40)


def tokens(module: Any) -> Case:
    """Samples to codes of a model with `encoding` and its whole counterpart."""
    s3 = isinstance(module, CausalS3Tokenizer)

    def forward(x: torch.Tensor, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes, counts = whole(module, x[..., 0], n)
        return codes[..., None].double(), counts

    class Doubled:
        """Codes as numbers that can be compared with others."""

        def __init__(self) -> None:
            self.inner = module.encoding()
            self.chunk, self.first = self.inner.chunk, self.inner.first
            self.stride, self.lookahead = self.inner.stride, self.inner.lookahead

        def init_state(self, batch: int) -> Any:
            return self.inner.init_state(batch)

        def step(self, x: Any, state: Any) -> Any:
            y, state = self.inner.step(x, state)
            return y._replace(values=y.values.double()), state

    return Case(Doubled(), forward, dim=1, longest=9000 if s3 else 100)


def whole(module: Any, wave: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of recordings that are heard at once."""
    if isinstance(module, WavTokenizer):
        return module.encode(wave, lengths)
    quantized, counts = module(wave, lengths)
    return quantized.codes, counts


def codec() -> WavTokenizer:
    """A tiny causal one."""
    return randomized(
        WavTokenizer(
            SeanetEncoder(dim=3, filters=2, strides=(2, 2), causal=True),
            VectorQuantizer(Codebook(5, 3)),
            VocosDecoder(3, dim=4, inner=6, layers=1, hop=4, n_fft=16, groups=2, left=5),
        )
    )


def s3_encoder(context: tuple[int, int], chunks: int = 1, strides: tuple[int, int] = (2, 2), memory: int = 4) -> Case:
    module = randomized(
        CausalS3Encoder(mels=3, dim=8, heads=2, layers=2, strides=strides, memory=memory, context=context)
    )
    return Case(module.streaming(chunks), module, dim=3, longest=90)


def s3_convolution(stride: int) -> Case:
    module = randomized(CausalConvolution(3, 4, stride))
    return Case(module, module, dim=3, longest=30, multiples=(1, 3))


def s3_tokens() -> CausalS3Tokenizer:
    """A tiny causal one."""
    encoder = CausalS3Encoder(mels=8, dim=8, heads=2, layers=1, memory=3, context=(4, 1))
    module = randomized(CausalS3Tokenizer(encoder, FiniteScalarQuantizer(8, [3, 3])))
    nn.init.normal_(module.encoder.stem[1].conv.weight, std=2.0)
    return module


def floor() -> Case:
    module = RunningFloor(1.0).double()
    return Case(module, module, dim=3, longest=30, multiples=(1, 4))


def lstm() -> Case:
    module = randomized(SkipLstm(3, 2))

    def forward(x: torch.Tensor, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, counts = module(x.transpose(1, 2), n)
        return y.transpose(1, 2), counts

    return Case(module, forward, dim=3, longest=30, multiples=(1, 4))


def istft(lookahead: int) -> Case:
    module = InverseStft(16, 4, lookahead).double()
    return Case(module, module, dim=18, longest=23, multiples=(1, 3))


CASES: dict[str, Callable[[], Case]] = {
    "encoder as published": lambda: encoder(False),
    "encoder as published, three latents a call": lambda: encoder(False, 3),
    "encoder as published, odd strides": lambda: encoder(False, strides=(5, 3)),
    "encoder as published, its strides": lambda: encoder(False, strides=(2, 4, 5, 8), longest=2500),
    "encoder, causal": lambda: encoder(True),
    "encoder, causal, three latents a call": lambda: encoder(True, 3),
    "LSTM": lstm,
    **{f"inverse transform, look-ahead {n}": lambda n=n: istft(n) for n in range(4)},  # type: ignore[misc]
    "decoder, causal": lambda: decoder(2),
    "decoder, causal, four latents a call": lambda: decoder(2, 4),
    "decoder, causal, no look-ahead": lambda: decoder(0),
    "samples to codes": lambda: tokens(codec()),
    "running floor": floor,
    "S3 convolution, stride 1": lambda: s3_convolution(1),
    "S3 convolution, stride 2": lambda: s3_convolution(2),
    "S3 encoder, causal": lambda: s3_encoder((6, 2)),
    "S3 encoder, causal, no look-ahead": lambda: s3_encoder((5, 0)),
    "S3 encoder, causal, no past": lambda: s3_encoder((0, 2), memory=1),
    "S3 encoder, causal, 50 a second, three chunks a call": lambda: s3_encoder((4, 1), 3, (1, 2)),
    "samples to S3 codes": lambda: tokens(s3_tokens()),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_contract(name: str, check: Callable[[Case], None]) -> None:
    random.seed(0)
    torch.manual_seed(0)
    check(CASES[name]())
