"""ANCAT: gates, what they are at their ends, and that outputs of a stream come exactly when their paths allow."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechkit.asr.ancat import AncatEncoder, FixedContext, Gating, Scheduler
from speechkit.asr.ancat_latency import algorithmic_loss, arrivals
from speechkit.asr.ancat_stream import AncatStream
from speechkit.asr.conformer import ConformerEncoder
from speechkit.nn.attention import MASKED
from speechkit.nn.gates import gate_bias
from speechkit.streaming.state import Chunk, leaves, size_bytes
from speechkit.streaming.stream import Stream
from tests.asr.tiny import vary_gates

SIZES: dict[str, Any] = {"n_mels": 8, "dim": 8, "layers": 3, "heads": 2, "conv_kernel": 3, "subsampling_channels": 3}


def ancat(mode: str = "free", right: int = 3, **options: Any) -> AncatEncoder:
    """Random weights, double precision, gates of both kinds that depend on what is heard."""
    torch.manual_seed(5)
    encoder = AncatEncoder(**{**SIZES, **options}, left=5, right=right, mode=mode)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    encoder.double().eval()
    vary_gates(encoder)
    return encoder


def conformer(encoder: AncatEncoder, right: int) -> ConformerEncoder:
    """The Conformer of the same weights with a fixed look-ahead in each layer."""
    other = ConformerEncoder(**SIZES, contexts=[(5, right)], style="regular").double().eval()
    other.load_state_dict({k: v for k, v in encoder.state_dict().items() if not k.startswith("schedulers.")})
    return other


def sound() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 330, 8, dtype=torch.double), torch.tensor([330, 170, 9])


def heard() -> tuple[Tensor, Tensor]:
    """Subsampled features, which vary more."""
    return torch.randn(2, 60, 8, dtype=torch.double), torch.tensor([60, 41])


@pytest.mark.parametrize("right", [0, 2, 3])
def test_fixed_gates_are_the_conformer_of_that_look_ahead(right: int) -> None:
    encoder = ancat()
    features, lengths = sound()
    expected, counts = conformer(encoder, right)(features, lengths)
    found, steps = encoder(features, lengths, FixedContext(5, right))
    assert torch.equal(counts, steps)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("mode", ["free", "contiguous"])
@pytest.mark.parametrize(("logit", "right"), [(-5.0, 0), (5.0, 3)])
def test_schedulers_that_always_say_the_same_are_fixed_gates(mode: str, logit: float, right: int) -> None:
    encoder = ancat(mode)
    for scheduler in encoder.schedulers:
        nn.init.zeros_(scheduler.out.weight)  # type: ignore[union-attr, arg-type]
        nn.init.constant_(scheduler.out.bias, logit)  # type: ignore[union-attr, arg-type]
    features, lengths = sound()
    torch.testing.assert_close(encoder(features, lengths)[0], encoder(features, lengths, FixedContext(5, right))[0])


@pytest.mark.parametrize("mode", ["free", "contiguous"])
def test_gates_of_the_random_encoders_are_of_both_kinds(mode: str) -> None:
    """Else the tests here would compare little."""
    encoder = ancat(mode)
    for layer in encoder.schedule(*heard(), encoder.adaptive).gates[:, 0]:
        assert 0.1 < layer.mean() < 0.9
        assert layer.std(0).min() > 0.1


def test_contiguous_gates_have_no_holes_and_free_ones_do() -> None:
    for mode, holes in (("contiguous", False), ("free", True)):
        encoder = ancat(mode)
        gates = encoder.schedule(*heard(), encoder.adaptive).gates
        assert bool((gates[..., 1:] > gates[..., :-1]).any()) is holes


@pytest.mark.parametrize("mode", ["free", "contiguous"])
def test_outputs_come_in_the_call_of_their_arrival_time(mode: str) -> None:
    encoder = ancat(mode)
    x, lengths = heard()[0][:1], torch.tensor([60])
    with torch.no_grad():
        steps, _, gates = encoder.schedule(x, lengths, encoder.adaptive)
        expected = arrivals(gates, lengths)[-1, 0].long().tolist()
        module = AncatStream(encoder, encoder.adaptive)
        state, came, values = module.init_state(1), [], []
        for i in range(60):
            last = torch.tensor([i == 59])
            y, state = module.step(Chunk(x[:, i : i + 1], torch.tensor([1]), last), state)
            came += [i] * int(y.lengths)
            values.append(y.values[0, : int(y.lengths)])
    assert came == expected
    assert len({a - i for i, a in enumerate(expected)}) > 3
    torch.testing.assert_close(torch.cat(values), steps[0], atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_a_long_stream_holds_what_a_short_one_holds() -> None:
    encoder = ancat()
    stream = Stream(encoder.at(encoder.adaptive))
    stream.push(torch.randn(20, 8, dtype=torch.double))
    size, sizes = size_bytes(stream.state), [leaf.shape for leaf in leaves(stream.state)]
    for _ in range(5):
        stream.push(torch.randn(200, 8, dtype=torch.double))
    assert size_bytes(stream.state) == size
    assert [leaf.shape for leaf in leaves(stream.state)] == sizes


@pytest.mark.parametrize("mode", ["free", "contiguous"])
@pytest.mark.parametrize("hard", [False, True])
def test_recognition_and_latency_both_reach_every_scheduler(mode: str, hard: bool) -> None:
    for part in ("steps", "latency"):
        encoder = ancat(mode).train()
        features, lengths = sound()
        steps, counts, gates = encoder.gated(features, lengths, Gating(0.7, hard=hard))
        loss = steps.square().sum() if part == "steps" else algorithmic_loss(arrivals(gates, counts)[-1], counts, 9)
        loss.backward()
        for scheduler in encoder.schedulers:
            gradient = scheduler.out.weight.grad  # type: ignore[union-attr]
            assert isinstance(gradient, Tensor)
            assert gradient.isfinite().all()
            assert gradient.any()


@pytest.mark.parametrize("mode", ["free", "contiguous"])
def test_hard_training_computes_what_inference_computes(mode: str) -> None:
    encoder, (x, lengths) = ancat(mode), heard()
    gatings = Gating(0.3, hard=True), None
    trained, used = (encoder.schedule(x, lengths, encoder.adaptive, gating) for gating in gatings)
    torch.testing.assert_close(trained.gates, used.gates.double())
    torch.testing.assert_close(trained.steps, used.steps, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["free", "contiguous"])
def test_closed_gates_know_what_opening_them_would_change(mode: str) -> None:
    """With all gates shut, the gradient of a hard gate's logit is the output's derivative by the gate, times g'."""
    encoder, (x, lengths) = ancat(mode, right=1, layers=1), heard()
    scheduler: Any = encoder.schedulers[0]
    nn.init.zeros_(scheduler.out.weight)
    nn.init.constant_(scheduler.out.bias, -1.0)
    encoder.schedule(x, lengths, encoder.adaptive, Gating(hard=True)).steps.square().sum().backward()
    gradient = float(scheduler.out.bias.grad)

    def loss(gate: float) -> float:
        bias = [torch.full((*x.shape[:2], 1), gate, dtype=torch.double)]
        encoder.gate = lambda *_: lambda *_: (bias[0].log(), bias[0])  # type: ignore[method-assign]
        with torch.no_grad():
            return float(encoder.schedule(x, lengths, encoder.adaptive).steps.square().sum())

    soft = float(torch.tensor(-1.0).sigmoid())
    slope = (loss(2e-5) - loss(1e-9)) / 2e-5
    assert gradient == pytest.approx(slope * soft * (1 - soft), rel=1e-2)


@pytest.mark.parametrize("mode", ["free", "contiguous"])
def test_soft_gates_become_hard_as_the_temperature_falls(mode: str) -> None:
    scheduler = Scheduler(8, 4, mode)
    logits = torch.randn(2, 50, 4, dtype=torch.double) * 3
    _, gates = scheduler.soft(logits, Gating(1e-4))
    torch.testing.assert_close(gates, scheduler.hard(logits).double(), atol=1e-3, rtol=0)


def test_gates_of_an_open_phase_are_the_whole_look_ahead() -> None:
    encoder, (x, lengths) = ancat(dropout=0.0, attention_dropout=0.0).train(), heard()
    found = encoder.schedule(x, lengths, encoder.adaptive, Gating(open=True))
    fixed = encoder.schedule(x, lengths, FixedContext(5, 3))
    torch.testing.assert_close(found.gates, fixed.gates.double())
    found.steps.sum().backward()
    gradients = [parameter.grad for parameter in encoder.schedulers.parameters()]
    assert all(x is not None and not x.any() for x in gradients)


def test_noise_opens_gates_with_their_probability() -> None:
    scheduler = Scheduler(8, 1, "free")
    logits = torch.full((1, 20_000, 1), 1.0)
    _, gates = scheduler.soft(logits, Gating(0.5, noise=1.0, hard=True))
    assert gates.mean() == pytest.approx(float(torch.tensor(1.0).sigmoid()), abs=0.02)


def test_a_soft_gate_multiplies_the_weight_of_its_connection() -> None:
    gates = torch.rand(1, 4, 2, dtype=torch.double)
    position = torch.arange(4)
    distance = (position - position[:, None])[None]
    bias = gate_bias(gates.log(), distance, torch.ones(1, 1, 4, dtype=torch.bool), left=1)
    scores = torch.randn(1, 1, 4, 4, dtype=torch.double)
    weights = (scores + bias).softmax(-1)[0, 0]
    for i in range(4):
        mask = [0.0] * 4
        for j in range(4):
            mask[j] = 1.0 if -1 <= j - i <= 0 else float(gates[0, i, j - i - 1]) if 1 <= j - i <= 2 else 0.0
        expected = scores[0, 0, i].exp() * torch.tensor(mask, dtype=torch.double)
        torch.testing.assert_close(weights[i], expected / expected.sum())


def test_closed_gates_exclude_exactly() -> None:
    scheduler = Scheduler(8, 2, "free")
    log, _ = scheduler.soft(torch.full((1, 1, 2), -1e9), Gating(0.1))
    assert log.min() == MASKED
    assert torch.tensor([3.0, 900.0 + MASKED]).softmax(0)[1] == 0


def test_training_begins_open_and_half_precision_keeps_times_exact() -> None:
    encoder = AncatEncoder(**SIZES, right=2, openness=0.9)
    features, lengths = torch.randn(1, 3000, 8), torch.tensor([3000])
    assert encoder.gated(features, lengths, Gating()).gates[..., 0].mean() > 0.75
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        gates = encoder.gated(features, lengths, Gating()).gates
        used = encoder.gated(features, lengths).gates
    assert gates.dtype == used.dtype == torch.float32
    assert arrivals(torch.zeros_like(gates), torch.tensor([376]))[-1, 0].tolist() == list(range(376))


def test_only_schedulers_are_new() -> None:
    ours, theirs = ancat().state_dict(), ConformerEncoder(**SIZES).state_dict()
    assert {k: v.shape for k, v in ours.items() if not k.startswith("schedulers.")} == {
        k: v.shape for k, v in theirs.items()
    }


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "wild"}, "mode must be one of contiguous, free, got 'wild'"),
        ({"right": 0}, "at least one step to wait for and one unit, got 0 and 64"),
        ({"scheduler_dim": 0}, "at least one step to wait for and one unit, got 3 and 0"),
        ({"openness": 1.0}, "openness must lie between 0 and 1, got 1.0"),
        ({"left": -1}, "limited left context, got -1"),
        ({"right": -1}, "at least one step"),
    ],
)
def test_values_that_cannot_be_are_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        AncatEncoder(**{**SIZES, "left": 5, "right": 3, **options})


def test_a_context_that_was_not_trained_is_refused() -> None:
    encoder = ancat()
    for context in ((5, 2), FixedContext(-1, 0)):
        with pytest.raises(ValueError, match=r"trained for the context \[5, 3\]|a fixed context must be limited"):
            encoder(*sound(), context)
    with pytest.raises(ValueError, match="at least one step a call, got 0"):
        encoder.at(encoder.adaptive, 0)
