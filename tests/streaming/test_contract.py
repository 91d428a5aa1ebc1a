"""The streaming contract, held by every streaming module: one line here for each."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from speechkit.asr.ancat import AncatEncoder, FixedContext
from speechkit.asr.ancat_stream import AncatStream
from speechkit.asr.blocks import Grid
from speechkit.asr.conformer import ConformerEncoder
from speechkit.asr.conformer_stream import ConformerStream
from speechkit.asr.ctc import CtcHead
from speechkit.asr.decoding.boosting import PhraseBooster
from speechkit.asr.decoding.greedy import CtcGreedy, RnntGreedy
from speechkit.asr.joiner import Joiner
from speechkit.asr.nemo_stream import NemoStream
from speechkit.asr.predictor import Predictor
from speechkit.features import LogMel
from speechkit.nn.subsampling import Subsampling
from speechkit.streaming.chain import Chain
from speechkit.streaming.state import Chunk, Streaming
from speechkit.streaming.stream import run
from speechkit.text import CharTokenizer
from tests.asr.small_paraformer import paraformer, said
from tests.asr.tiny import vary_gates
from tests.streaming.contract import CHECKS, Case

CHUNKED = [(6, 2), (6, 1), (6, 0), (0, 1)]
GRIDS = [(0, 3, 2, 2, 1), (2, 3, 1, 0, 0), (1, 2, 0, 1, 2)]
REGULAR = [(5, 0), (5, 2), (3, 1)]


def _random(module: nn.Module, std: float = 0.4) -> nn.Module:
    """Weights and running statistics large enough that every path matters, in double precision."""
    torch.manual_seed(7)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.3, 3.0)
    return module.double().eval()


def _encoder(style: str, contexts: list[tuple[int, int]], **options: Any) -> ConformerEncoder:
    encoder = ConformerEncoder(
        n_mels=8, dim=8, layers=2, heads=2, conv_kernel=3, subsampling_channels=3, contexts=contexts, style=style,
        **options,
    )  # fmt: skip
    _random(encoder)
    return encoder


def _log_mel(n_mels: int, **options: Any) -> LogMel:
    return LogMel(sample_rate=1000, n_mels=n_mels, n_fft=32, **options).double().eval()


def _front(**options: Any) -> Case:
    front = _log_mel(5, **options)
    return Case(front, lambda x, n: front(x[..., 0], n), dim=1, longest=203, multiples=(1, 4))


def _subsampling() -> Case:
    module = Subsampling(n_mels=6, dim=4, channels=3)
    _random(module)
    return Case(module, module, dim=6, longest=70, multiples=(1, 3))


def _layers(style: str, context: tuple[int, int], chunks: int = 1, **options: Any) -> Case:
    encoder = _encoder(style, [context], **options)
    stream = ConformerStream(encoder, context, chunks)

    def forward(x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return encoder.contextualize(x, lengths, context)

    return Case(stream, forward, dim=8, longest=23)


def _ancat_encoder(mode: str, **options: Any) -> AncatEncoder:
    """Schedulers that open about half of the gates, by what they hear."""
    encoder = AncatEncoder(
        n_mels=8, dim=8, layers=3, heads=2, conv_kernel=3, subsampling_channels=3, left=5, right=3, mode=mode, **options
    )
    _random(encoder)
    vary_gates(encoder)
    return encoder


def _ancat(mode: str, fixed: int | None = None, chunks: int = 1, **options: Any) -> Case:
    encoder = _ancat_encoder(mode, **options)
    context = encoder.adaptive if fixed is None else FixedContext(5, fixed)
    stream = AncatStream(encoder, context, chunks)
    return Case(stream, lambda x, n: encoder.contextualize(x, n, context), dim=8, longest=19)


def _ancat_recognizer() -> Case:
    encoder, front = _ancat_encoder("contiguous"), _log_mel(8)
    module = Chain(front, encoder.at(encoder.adaptive))
    return Case(module, lambda x, n: encoder(*front(x[..., 0], n)), dim=1, longest=500)


def _recognizer(style: str, context: tuple[int, int], length_rule: str = "floor") -> Case:
    encoder, front = _encoder(style, [context]), _log_mel(8, length_rule=length_rule)
    return Case(
        Chain(front, encoder.at(context)),
        lambda x, n: encoder(*front(x[..., 0], n), context),
        dim=1,
        longest=80 * 3 * (context[1] + 1) + 100,
    )


def _nemo(context: tuple[int, int]) -> Case:
    """NeMo's arithmetic, which is exact with a look-ahead."""
    encoder = _encoder("chunked_limited", [context])
    return Case(NemoStream(encoder, context), lambda x, n: encoder(x, n, context), dim=8, longest=90)


def _ctc(dim: int = 4, boosted: bool = False) -> CtcGreedy:
    head = CtcHead(dim, vocab_size=3)
    _random(head)
    return CtcGreedy(head, _booster() if boosted else None)


def _rnnt(dim: int = 4, boosted: bool = False) -> RnntGreedy:
    predictor, joiner = Predictor(3, dim=4, layers=2, dropout=0.0), Joiner(dim, 4, 6, vocab_size=3, dropout=0.0)
    _random(nn.ModuleList([predictor, joiner]), std=1.0)
    joiner.out.bias.data = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.double)  # some blanks, no token always
    return RnntGreedy(predictor, joiner, max_symbols=3, booster=_booster() if boosted else None)


def _booster() -> PhraseBooster:
    return PhraseBooster(CharTokenizer(" ab"), ["ab a", "ba", "bb"], weight=1.0)


def _greedy(greedy: CtcGreedy | RnntGreedy) -> Case:
    return Case(greedy, lambda x, n: greedy(x, n)[:2], dim=4, longest=17, multiples=(1, 4), dense=False)


def _transcription(greedy: CtcGreedy | RnntGreedy, context: tuple[int, int]) -> Case:
    """Samples to tokens, the decoder's first layer centred on what the encoder gives, or it would repeat itself."""
    encoder, front = _encoder("chunked_limited", [context]), _log_mel(8)
    layer = greedy.head.out if isinstance(greedy, CtcGreedy) else greedy.joiner.encoder
    with torch.no_grad():
        steps = encoder(*front(torch.randn(1, 4000, dtype=torch.double), torch.tensor([4000])), context)[0][0]
        layer.weight.mul_(4 / steps.std(0))
        layer.bias.sub_(layer(steps).mean(0))
    return Case(
        Chain(front, encoder.at(context), greedy),
        lambda x, n: greedy(*encoder(*front(x[..., 0], n), context))[:2],
        dim=1,
        longest=900,
        dense=False,
    )


def _blocks(*grid: int) -> Case:
    """Paraformer's encoder on a grid, packed blocks out."""
    encoder: Any = paraformer((grid,)).encoder

    def forward(x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = encoder.blocks(x, lengths, Grid(*grid))
        return blocks.packed(), (blocks.last.int().argmax(1) + 1) * (lengths > 0)

    return Case(encoder.at(Grid(*grid)), forward, dim=16, longest=31)


def _paraformer(*grid: int, kind: str = "sanm", hop: int = 20) -> Case:
    """Samples to tokens, block by block, against training's pass over all blocks at once."""
    model, at = paraformer((grid,), kind), Grid(*grid)

    def forward(x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, counts = model.front(x[..., 0], lengths)
        return said(model, features, counts, at)

    module = Chain(model.streaming(at), model.greedy("nar", at))
    return Case(module, forward, dim=1, longest=hop * 30, dense=False)


CASES: dict[str, Callable[[], Case]] = {
    "log-mel floor": lambda: _front(length_rule="floor"),
    "log-mel floor+1": lambda: _front(length_rule="floor+1"),
    "log-mel with mean and deviation": lambda: _front(mean=-6.0, deviation=3.0),
    "subsampling": _subsampling,
    **{f"layers chunked {c}": lambda c=c: _layers("chunked_limited", c) for c in CHUNKED},  # type: ignore[misc]
    **{f"layers regular {c}": lambda c=c: _layers("regular", c) for c in REGULAR},  # type: ignore[misc]
    "layers chunked, three chunks a call": lambda: _layers("chunked_limited", (6, 1), 3),
    "layers regular, three steps a call": lambda: _layers("regular", (4, 2), 3),
    "layers with batch norm": lambda: _layers("chunked_limited", (6, 1), conv_norm="batch_norm"),
    "layers without biases and scale": lambda: _layers("chunked_limited", (6, 1), bias=False, xscale=False),
    "layers regular without biases": lambda: _layers("regular", (3, 1), bias=False),
    "ANCAT free": lambda: _ancat("free"),
    "ANCAT contiguous": lambda: _ancat("contiguous"),
    "ANCAT contiguous, three steps a call": lambda: _ancat("contiguous", chunks=3),
    "ANCAT with batch norm": lambda: _ancat("free", conv_norm="batch_norm"),
    "ANCAT, all gates closed": lambda: _ancat("free", fixed=0),
    "ANCAT, all gates open": lambda: _ancat("free", fixed=3),
    "ANCAT recogniser": _ancat_recognizer,
    **{f"recogniser chunked {c}": lambda c=c: _recognizer("chunked_limited", c) for c in CHUNKED},  # type: ignore[misc]
    "recogniser regular (5, 2)": lambda: _recognizer("regular", (5, 2)),
    "recogniser floor+1": lambda: _recognizer("chunked_limited", (6, 2), "floor+1"),
    "NeMo (6, 2)": lambda: _nemo((6, 2)),
    "NeMo (6, 1)": lambda: _nemo((6, 1)),
    "greedy CTC": lambda: _greedy(_ctc()),
    "greedy CTC boosted": lambda: _greedy(_ctc(boosted=True)),
    "greedy transducer": lambda: _greedy(_rnnt()),
    "greedy transducer boosted": lambda: _greedy(_rnnt(boosted=True)),
    "samples to tokens, CTC": lambda: _transcription(_ctc(8), (6, 1)),
    "samples to tokens, transducer": lambda: _transcription(_rnnt(8), (6, 1)),
    **{f"Paraformer's blocks {g}": lambda g=g: _blocks(*g) for g in GRIDS},  # type: ignore[misc]
    **{f"samples to tokens, Paraformer {g}": lambda g=g: _paraformer(*g) for g in GRIDS},  # type: ignore[misc]
    "samples to tokens, Paraformer with a Conformer": lambda: _paraformer(0, 3, 0, 2, 1, kind="conformer", hop=80),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_contract(name: str, check: Callable[[Case], None]) -> None:
    check(CASES[name]())


@torch.no_grad()
@pytest.mark.parametrize("make", [_ctc, _rnnt])
def test_decoding_cases_emit_and_phrases_matter(make: Callable[..., CtcGreedy | RnntGreedy]) -> None:
    """Else the contract would compare little."""
    x, lengths = torch.randn(8, 17, 4, dtype=torch.double), torch.full((8,), 17)
    plain, boosted = make()(x, lengths), make(boosted=True)(x, lengths)
    assert plain.lengths.float().mean() > 3
    assert not torch.equal(plain.values[..., 0], boosted.values[..., 0])


@pytest.mark.parametrize("name", [name for name in CASES if "to tokens" in name])
def test_transcription_cases_emit(name: str) -> None:
    case = CASES[name]()
    tokens = case.expected(torch.randn(4000, 1, dtype=torch.double))
    assert len(tokens) > 2
    assert len(tokens[:, 0].unique()) > 1


@pytest.mark.parametrize("name", ["layers chunked (6, 2)", "layers regular (3, 1)", "NeMo (6, 1)"])
def test_more_room_than_a_module_takes_is_refused(name: str) -> None:
    """What does not fit would be lost without a word."""
    case = CASES[name]()
    module: Streaming[Any] = case.module
    x = torch.zeros(1, module.chunk + 1, case.dim, dtype=torch.double)
    wide = Chunk(x, torch.tensor([1]), torch.tensor([False]))
    with pytest.raises(ValueError, match=f"at most {module.chunk} inputs a call, got a chunk with room for"):
        module.step(wide, module.init_state(1))
    with pytest.raises(ValueError, match=f"at most {module.chunk} inputs a call"):
        run(module, [torch.zeros(50, case.dim, dtype=torch.double)], chunks=2)
