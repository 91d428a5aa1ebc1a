"""Error rates that training logs, of scripts with and without spaces."""

from types import SimpleNamespace
from typing import cast

import jiwer
import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from speechkit.asr.task import TextTask
from speechkit.data.collate import Batch, Item, collate
from speechkit.token_list import ListTokenizer

TEXTS = ["今天天气很好", "我们去 new york"]
SAID = dict(zip(TEXTS, ["今天天汽很好", "我去 new york"], strict=True))


class Said(TextTask):
    """Says what it was told to."""

    def __init__(self) -> None:
        super().__init__(ListTokenizer(["a"]), torch.optim.SGD, None, ["first", "second"], 0)
        self.scale = torch.nn.Parameter(torch.ones(()))

    @property
    def rate(self) -> int:
        return 16_000

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.count_edits("first", batch, [SAID[text] for text in batch.texts])
        self.count_edits("second", batch, list(batch.texts))


def batch(*texts: str) -> Batch:
    return collate([Item(torch.zeros(4).numpy(), [0], text, text) for text in texts])


def test_characters_count_where_a_text_has_no_spaces() -> None:
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    loader: DataLoader[Batch] = DataLoader([batch(text) for text in TEXTS], batch_size=None)  # type: ignore[arg-type]
    logged = trainer.validate(Said(), loader, verbose=False)[0]
    said = [SAID[text] for text in TEXTS]
    assert logged["val/wer"] == pytest.approx(jiwer.wer(TEXTS, said)) == pytest.approx(2 / 4)
    assert logged["val/cer"] == pytest.approx(jiwer.cer(TEXTS, said)) == pytest.approx(2 / 18)
    assert logged["val/cer_first"] == logged["val/cer"]
    assert logged["val/cer_second"] == 0


def test_processes_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    task, trainer = Said(), SimpleNamespace(world_size=2)
    task.trainer = cast("Trainer", trainer)
    monkeypatch.setattr(task, "all_gather", lambda own: torch.stack([own, torch.tensor([3, 10]).to(own)]))
    task.validation_step(batch(TEXTS[0]), 0)
    assert float(task.error_rate("first", "cer")) == pytest.approx((1 + 3) / (6 + 10))
    assert float(task.error_rate("first", "wer")) == pytest.approx((1 + 3) / (1 + 10))
