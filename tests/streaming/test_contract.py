"""The streaming contract, held by every streaming module: one line here for each."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from speechkit.asr.conformer import ConformerEncoder
from speechkit.asr.conformer_stream import ConformerStream
from speechkit.asr.ctc import CtcHead
from speechkit.asr.decoding.greedy import CtcGreedy, RnntGreedy
from speechkit.asr.joiner import Joiner
from speechkit.asr.predictor import Predictor
from speechkit.features import LogMel
from speechkit.nn.subsampling import Subsampling
from speechkit.streaming.chain import Chain
from tests.streaming.contract import CHECKS, Case

CHUNKED = [(6, 2), (6, 1), (6, 0), (0, 1)]
REGULAR = [(5, 0), (5, 2), (3, 1)]


def _random(module: nn.Module) -> nn.Module:
    """Weights large enough that every path matters, in double precision."""
    torch.manual_seed(7)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module.double().eval()


def _encoder(style: str, contexts: list[tuple[int, int]]) -> ConformerEncoder:
    encoder = ConformerEncoder(
        n_mels=8, dim=8, layers=2, heads=2, conv_kernel=3, subsampling_channels=3, contexts=contexts, style=style
    )
    _random(encoder)
    return encoder


def _front(length_rule: str) -> Case:
    front = LogMel(sample_rate=1000, n_mels=5, n_fft=32, length_rule=length_rule).double().eval()
    return Case(front, lambda x, n: front(x[..., 0], n), dim=1, longest=203, multiples=(1, 4))


def _subsampling() -> Case:
    module = Subsampling(n_mels=6, dim=4, channels=3)
    _random(module)
    return Case(module, module, dim=6, longest=70, multiples=(1, 3))


def _layers(style: str, context: tuple[int, int], chunks: int = 1) -> Case:
    encoder = _encoder(style, [context])
    stream = ConformerStream(encoder, context, chunks)

    def forward(x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return encoder.contextualize(x, lengths, context)

    return Case(stream, forward, dim=8, longest=23)


def _recognizer(style: str, context: tuple[int, int], length_rule: str = "floor") -> Case:
    encoder = _encoder(style, [context])
    front = LogMel(sample_rate=1000, n_mels=8, n_fft=32, length_rule=length_rule).double().eval()
    return Case(
        Chain(front, encoder.at(context)),
        lambda x, n: encoder(*front(x[..., 0], n), context),
        dim=1,
        longest=80 * 3 * (context[1] + 1) + 100,
    )


def _ctc() -> Case:
    head = CtcHead(4, vocab_size=3)
    _random(head)
    greedy = CtcGreedy(head)
    return Case(greedy, lambda x, n: greedy(x, n)[:2], dim=4, longest=17, multiples=(1, 4), dense=False)


def _rnnt() -> Case:
    predictor, joiner = Predictor(3, dim=4, layers=2, dropout=0.0), Joiner(4, 4, 6, vocab_size=3, dropout=0.0)
    _random(predictor)
    _random(joiner)
    joiner.out.bias.data[-1] += 1.0  # or every frame would hit the symbol limit
    greedy = RnntGreedy(predictor, joiner, max_symbols=3)
    return Case(greedy, lambda x, n: greedy(x, n)[:2], dim=4, longest=17, multiples=(1, 4), dense=False)


CASES: dict[str, Callable[[], Case]] = {
    "log-mel floor": lambda: _front("floor"),
    "log-mel floor+1": lambda: _front("floor+1"),
    "subsampling": _subsampling,
    **{f"layers chunked {c}": lambda c=c: _layers("chunked_limited", c) for c in CHUNKED},  # type: ignore[misc]
    **{f"layers regular {c}": lambda c=c: _layers("regular", c) for c in REGULAR},  # type: ignore[misc]
    "layers chunked, three chunks a call": lambda: _layers("chunked_limited", (6, 1), 3),
    "layers regular, three steps a call": lambda: _layers("regular", (4, 2), 3),
    **{f"recogniser chunked {c}": lambda c=c: _recognizer("chunked_limited", c) for c in CHUNKED},  # type: ignore[misc]
    "recogniser regular (5, 2)": lambda: _recognizer("regular", (5, 2)),
    "recogniser floor+1": lambda: _recognizer("chunked_limited", (6, 2), "floor+1"),
    "greedy CTC": _ctc,
    "greedy transducer": _rnnt,
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_contract(name: str, check: Callable[[Case], None]) -> None:
    check(CASES[name]())
