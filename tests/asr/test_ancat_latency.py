"""Arrival times, losses and figures of adaptive look-ahead, against the obvious loops in double precision."""

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from speechkit.asr.ancat import Gating, Scheduler
from speechkit.asr.ancat_latency import (
    algorithmic_loss,
    arrivals,
    backlog,
    compute_loss,
    connection_penalty,
    measure,
)

CASES = 3000


def batches(soft: bool, size: int = 50) -> Iterator[tuple[Tensor, Tensor]]:
    """Random gates (layers, batch, steps, right) and lengths, 0 among them: `CASES` rows together."""
    for _ in range(CASES // size):
        layers, steps, right = random.randint(1, 3), random.randint(1, 9), random.randint(1, 4)
        gates = torch.rand(layers, size, steps, right, dtype=torch.double)
        gates = gates if soft else (gates < random.random()).double()
        yield gates, torch.randint(0, steps + 1, (size,))


def slow_arrivals(gates: Tensor, length: int) -> list[list[float]]:
    """The recursion of one row, step by step."""
    before: list[float] = [float(i) for i in range(length)]
    found = []
    for layer in gates.tolist():
        now: list[float] = []
        for i in range(length):
            b = before[i]
            for r, g in enumerate(layer[i], 1):
                if i + r < length:
                    b = g * max(b, before[i + r]) + (1 - g) * b
            now.append(max([b, *now[-1:]]))
        found.append(now)
        before = now
    return found


def last_dependency(gates: Tensor, length: int, layer: int, i: int) -> int:
    """The latest input that output i of a layer depends on, by following every connection down to the inputs."""
    reached, stack = {(layer, i)}, [(layer, i)]
    while stack:
        at, j = stack.pop()
        if at < 0:
            continue
        ahead = [j + r for r in range(1, gates.shape[2] + 1) if j + r < length and gates[at, j, r - 1] > 0]
        for node in [(at, k) for k in range(j)] + [(at - 1, k) for k in [j, *ahead]]:
            if node not in reached:
                reached.add(node)
                stack.append(node)
    return max(j for at, j in reached if at < 0)


def slow_backlog(arrival: list[list[float]], length: int, capacity: float) -> list[float]:
    """One row's work by the dense triangular kernel, and the recursion of what waits."""
    found, waiting = [], 0.0
    for t in range(length):
        work = sum(max(0.0, 1 - abs(t - a)) for layer in arrival for a in layer)
        waiting = max(0.0, waiting + work - capacity)
        found.append(waiting)
    return found


@pytest.mark.parametrize("soft", [True, False])
def test_arrivals_and_backlog_equal_the_loops(soft: bool) -> None:
    for gates, lengths in batches(soft):
        capacity = random.uniform(0.3, 1.5) * len(gates)
        arrival = arrivals(gates, lengths)
        waiting = backlog(arrival, lengths, capacity)
        total_wait, total_backlog = 0.0, 0.0
        for row, length in enumerate(lengths.tolist()):
            slow = slow_arrivals(gates[:, row], length)
            torch.testing.assert_close(
                arrival[:, row, :length], torch.tensor(slow, dtype=torch.double).view(len(gates), length)
            )
            expected = slow_backlog(slow, length, capacity)
            torch.testing.assert_close(
                waiting[row, :length], torch.tensor(expected, dtype=torch.double), atol=1e-9, rtol=1e-9
            )
            total_wait += sum(max(0.0, a - i - 0.5) for i, a in enumerate(slow[-1]))
            total_backlog += sum(expected)
        count = max(1, int(lengths.sum()))
        assert float(algorithmic_loss(arrival[-1], lengths, 8, free=0.5)) == pytest.approx(total_wait / count / 8)
        assert float(compute_loss(arrival, lengths, capacity)) == pytest.approx(total_backlog / count / capacity)


def test_hard_arrivals_are_the_last_inputs_that_outputs_depend_on() -> None:
    for gates, lengths in batches(soft=False):
        arrival = arrivals(gates, lengths)
        for row, length in list(enumerate(lengths.tolist()))[:20]:
            for layer in range(len(gates)):
                found = [last_dependency(gates[:, row], length, layer, i) for i in range(length)]
                assert arrival[layer, row, :length].tolist() == found


def test_losses_have_the_gradients_of_their_values() -> None:
    lengths = torch.tensor([6, 4, 0])
    gates = (0.1 + 0.8 * torch.rand(2, 3, 6, 3, dtype=torch.double)).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: arrivals(g, lengths), gates)
    assert torch.autograd.gradcheck(lambda g: algorithmic_loss(arrivals(g, lengths)[-1], lengths, 6, 0.3), gates)
    assert torch.autograd.gradcheck(lambda g: compute_loss(arrivals(g, lengths), lengths, 1.7), gates)
    assert torch.autograd.gradcheck(lambda g: connection_penalty(g, lengths), gates)


def test_rows_do_not_depend_on_the_length_of_the_batch() -> None:
    gates = torch.rand(3, 1, 7, 2, dtype=torch.double)
    lengths = torch.tensor([5])
    short, padded = gates[:, :, :5], torch.nn.functional.pad(gates, (0, 0, 0, 40), value=1.0)
    for loss in (
        lambda g: algorithmic_loss(arrivals(g, lengths)[-1], lengths, 6),
        lambda g: compute_loss(arrivals(g, lengths), lengths, 2.0),
        lambda g: connection_penalty(g, lengths),
    ):
        torch.testing.assert_close(loss(short), loss(padded))
        torch.testing.assert_close(loss(short), loss(gates))


def path_gradient(gates: Tensor) -> Tensor:
    """d algorithmic loss / d gates."""
    gates = gates.requires_grad_()
    lengths = torch.tensor([gates.shape[2]])
    algorithmic_loss(arrivals(gates, lengths)[-1], lengths, 1).backward()
    assert gates.grad is not None
    return gates.grad


def test_a_connection_that_a_longer_path_hides_costs_nothing() -> None:
    """Step 0 of layer 0 waits for step 3, so that in layer 1 nothing is won by not waiting for steps 1 to 3."""
    gates = torch.zeros(2, 1, 8, 3, dtype=torch.double)
    gates[0, 0, 0, 2] = 1.0
    gates[1, 0, 0, :3] = torch.tensor([0.5, 0.5, 0.5])
    gradient = path_gradient(gates)
    assert gradient[0, 0, 0, 2] > 0
    assert not gradient[1, 0, 0, :3].any()
    naive = gates.detach().requires_grad_()
    connection_penalty(naive, torch.tensor([8])).backward()
    assert naive.grad is not None
    assert (naive.grad[1, 0, 0] > 0).all()


def test_of_two_open_connections_only_the_longer_is_charged() -> None:
    gates = torch.zeros(1, 1, 8, 3, dtype=torch.double)
    gates[0, 0, 2] = torch.tensor([1.0, 0.0, 1.0])
    gradient = path_gradient(gates)
    assert gradient[0, 0, 2, 0] == 0
    assert gradient[0, 0, 2, 2] > 0


def test_a_step_that_those_before_it_hold_up_may_wait_for_nothing() -> None:
    gates = torch.zeros(1, 1, 8, 3, dtype=torch.double)
    gates[0, 0, 0, 2] = 1.0  # until 3, and steps 1 and 2 with it
    gates[0, 0, 1, 1] = 1.0  # until 3 as well
    gradient = path_gradient(gates)
    assert gradient[0, 0, 1, 1] == 0
    assert gradient[0, 0, 0, 2] > 0
    assert arrivals(gates.detach(), torch.tensor([8]))[0, 0].tolist() == [3, 3, 3, 3, 4, 5, 6, 7]


def test_waits_add_up_over_layers_and_end_with_the_utterance() -> None:
    lengths = torch.tensor([7])
    gates = torch.ones(3, 1, 7, 2)
    assert arrivals(gates, lengths)[-1, 0].tolist() == [6, 6, 6, 6, 6, 6, 6]
    gates = torch.ones(3, 1, 20, 2)
    assert arrivals(gates, torch.tensor([20]))[-1, 0, :14].tolist() == [float(i + 6) for i in range(14)]


def test_measured_latency_and_what_remains_at_the_end() -> None:
    lengths = torch.tensor([20, 0])
    still = measure(torch.zeros(2, 2, 20, 3), lengths, capacity=2.0)
    assert still == (0, 0, 0, 0)
    waiting = measure(torch.ones(2, 2, 20, 3), lengths, capacity=4.0)
    assert waiting.p50 == waiting.p90 == 6
    assert waiting.mean == pytest.approx((14 * 6 + 5 + 4 + 3 + 2 + 1) / 20)
    # At the last input: 7 outputs of the second layer and 4 of the first, of which the device does 4 in that step.
    assert waiting.end == pytest.approx((7 + 4 - 4) / 4)
    assert measure(torch.zeros(2, 1, 5, 1), torch.tensor([0]), 1.0) == (0, 0, 0, 0)


def test_a_burst_costs_a_slow_device_more_than_a_fast_one() -> None:
    lengths = torch.tensor([20])
    arrival = arrivals(torch.ones(2, 1, 20, 3), lengths)
    slow, fast = (float(compute_loss(arrival, lengths, capacity)) for capacity in (2.5, 8.0))
    assert slow > fast > 0
    with pytest.raises(ValueError, match="capacity must be over 0"):
        backlog(arrival, lengths, 0.0)


def test_a_hard_gate_that_costs_a_slow_device_is_pushed_shut() -> None:
    gates = torch.zeros(1, 1, 8, 2, dtype=torch.double)
    gates[0, 0, 0, 1] = gates[0, 0, 1, 0] = 1.0  # three steps at time 2
    closed = gates.clone()
    closed[0, 0, 0, 1] = 0.0
    gates.requires_grad_()
    lengths = torch.tensor([8])
    loss = compute_loss(arrivals(gates, lengths), lengths, 1.2)
    loss.backward()
    assert loss.item() > float(compute_loss(arrivals(closed, lengths), lengths, 1.2))
    assert gates.grad is not None
    assert gates.grad.isfinite().all()
    assert float(gates.grad[0, 0, 0, 1]) > 0


@pytest.mark.parametrize("real_time_factor", [0.25, 0.8])
def test_descent_on_the_compute_loss_of_hard_gates_lowers_it(real_time_factor: float) -> None:
    torch.manual_seed(1)
    layers, steps, right = 3, 40, 4
    lengths, capacity, scheduler = torch.tensor([steps]), layers / real_time_factor, Scheduler(8, right)
    logits = (torch.randn(layers, 1, steps, right) + 0.7).requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.05)
    losses = []
    for _ in range(300):
        gates = torch.stack([scheduler.soft(x, Gating(0.1, 0.0, False, True))[1] for x in logits])
        loss = compute_loss(arrivals(gates, lengths), lengths, capacity)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
