"""Learning rates against their formulas."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from speechkit.schedule import Noam, WarmupCosine


def rates(make: Callable[..., LRScheduler], lr: float, count: int, **arguments: float) -> list[float]:
    """The learning rate of each step."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = make(optimizer, **arguments)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_noam_is_the_paper_s_formula() -> None:
    found = rates(Noam, 5.0, 400, dim=512, warmup=100, min_lr=0.0)
    for step in range(1, 400):
        assert found[step] == pytest.approx(5.0 * 512**-0.5 * min(step**-0.5, step * 100**-1.5))
    assert max(found) == pytest.approx(found[100])


def test_noam_does_not_fall_below_its_least_rate() -> None:
    found = rates(Noam, 5.0, 300, dim=512, warmup=10, min_lr=0.02)
    assert found[-1] == pytest.approx(0.02)
    assert found[1] < 0.02 + 0.01  # the rise starts low all the same


def test_the_published_peak_is_reached() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=5.0)
    schedule = Noam(optimizer, dim=512, warmup=10000)
    assert 5.0 * schedule.lr_lambdas[0](10000) == pytest.approx(2.2e-3, rel=0.01)


def test_warmup_rises_in_a_line_and_falls_along_a_cosine() -> None:
    found = rates(WarmupCosine, 1.0, 121, steps=110, warmup=10, floor=0.1)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[60] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert found[110:] == pytest.approx([0.1] * 11)
    assert all(a >= b for a, b in zip(found[10:], found[11:], strict=False))


def test_a_schedule_goes_on_where_it_was_saved() -> None:
    def make() -> tuple[torch.optim.Optimizer, LRScheduler]:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, WarmupCosine(optimizer, steps=50, warmup=5)

    optimizer, schedule = make()
    for _ in range(20):
        optimizer.step()
        schedule.step()
    other_optimizer, other = make()
    other_optimizer.load_state_dict(optimizer.state_dict())
    other.load_state_dict(schedule.state_dict())
    for o, s in ((optimizer, schedule), (other_optimizer, other)):
        o.step()
        s.step()
    assert optimizer.param_groups[0]["lr"] == other_optimizer.param_groups[0]["lr"]
