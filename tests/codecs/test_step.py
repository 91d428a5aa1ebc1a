"""A codec's step recorded as CUDA graphs is the step."""

import pytest
import torch
from lightning import Trainer

from speechkit.codecs.task import CodecTask
from tests.codecs import test_task as parts

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are recorded on a GPU")


def curve(graphs: bool, accelerator: str) -> tuple[CodecTask, list[dict[str, float]]]:
    """Through all phases: latents as they are, a codebook that begins, discriminators that join in."""
    made = parts.task(graphs=graphs, continuous_steps=2, alone_steps=5, kinds=2, commitment_weight=2.0)
    found = parts.Curve()
    trainer = Trainer(
        accelerator=accelerator, devices=1, max_steps=12, logger=False, callbacks=[found], enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(made, parts.loader(12))
    return made, found.steps


def test_where_there_is_no_gpu_a_recipe_that_wants_graphs_trains_as_ever() -> None:
    one, other = curve(True, "cpu"), curve(False, "cpu")
    assert one[1] == other[1]
    for name, tensor in one[0].state_dict().items():
        assert torch.equal(tensor, other[0].state_dict()[name]), name


@needs_gpu
def test_recorded_steps_give_the_losses_and_weights_of_steps_that_are_not() -> None:
    one, other = curve(True, "gpu"), curve(False, "gpu")
    assert one[0]._graphs
    for mine, expected in zip(one[1], other[1], strict=True):
        assert mine == pytest.approx(expected, rel=2e-2, abs=1e-3)
    for name, tensor in one[0].model.state_dict().items():
        torch.testing.assert_close(tensor, other[0].model.state_dict()[name], rtol=0.1, atol=5e-3, msg=name)
