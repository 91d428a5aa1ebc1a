"""A codec's step recorded as CUDA graphs is the step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from speechkit.codecs.task import CodecTask
from tests.codecs import test_task as parts

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are recorded on a GPU")


@contextmanager
def exact() -> Iterator[None]:
    """Single precision, for tf32 adds its own noise."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def curve(
    graphs: bool, accelerator: str, twice: bool = False, **changes: Any
) -> tuple[CodecTask, list[dict[str, float]]]:
    """Through all phases: latents as they are, a codebook that begins, discriminators that join in."""
    arguments = {"quantization_start": 2, "discriminator_start": 5, "kinds": 2, "commitment_weight": 2.0, **changes}
    made = parts.task(graphs=graphs, **arguments)
    found = parts.Curve()
    for steps in (12, 20) if twice else (12,):
        trainer = Trainer(
            accelerator=accelerator, devices=1, max_steps=steps, logger=False, callbacks=[found],
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(made, parts.loader(steps))
    return made, found.steps


def moved(one: CodecTask, other: CodecTask) -> float:
    """How far the weights of two trainings are apart, as a share of how far one of them came from the start."""
    start = parts.task()
    apart = way = 0.0
    for name, value in start.named_parameters():
        mine, theirs = (dict(task.named_parameters())[name].detach().cpu() for task in (one, other))
        apart += float((mine - theirs).square().sum())
        way += float((mine - value.detach()).square().sum())
    return (apart / way) ** 0.5


def test_where_there_is_no_gpu_a_recipe_that_wants_graphs_trains_as_ever() -> None:
    one, other = curve(True, "cpu"), curve(False, "cpu")
    assert one[1] == other[1]
    assert moved(one[0], other[0]) == 0
    assert moved(one[0], parts.task()) == 1


@needs_gpu
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_recorded_steps_train_as_steps_that_are_not(twice: bool, autocast: bool) -> None:
    """As near as two trainings without graphs come to each other: a GPU adds in any order."""
    with exact():
        graphed, plain, again = (curve(graphs, "gpu", twice, autocast=autocast) for graphs in (True, False, False))
    for mine, expected in zip(graphed[1][:6], plain[1][:6], strict=True):
        assert mine == pytest.approx(expected, rel=0.05 if autocast else 1e-2, abs=1e-3)
    assert moved(graphed[0], plain[0]) < 3 * max(moved(again[0], plain[0]), 0.05)


@needs_gpu
def test_graphs_are_recorded_and_given_back() -> None:
    recorded = []
    made = parts.task(graphs=True, quantization_start=2, discriminator_start=5, kinds=2)

    class Look(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            recorded.append(len(made._graphs))

    Trainer(
        accelerator="gpu", devices=1, max_steps=20, logger=False, callbacks=[Look()], enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, enable_checkpointing=False,
    ).fit(made, parts.loader(20))  # fmt: skip
    assert max(recorded) == 2
    assert not made._graphs
