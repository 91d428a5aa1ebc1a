"""The mean of checkpoints becomes a release."""

from pathlib import Path

import pytest
import torch

import speechkit
from recipes.speechocean.average import main
from speechkit import hub
from speechkit.text import CharTokenizer
from tests.asr.tiny import SYMBOLS, configuration, recognizer


def test_the_mean_of_checkpoints_is_a_release_that_loads(tmp_path: Path) -> None:
    config = configuration()
    models = [recognizer(config, seed) for seed in (1, 2)]
    base = hub.save(tmp_path / "base", config, models[0], CharTokenizer(SYMBOLS), "# One")
    paths = [tmp_path / f"{i}.ckpt" for i in range(2)]
    for path, model in zip(paths, models, strict=True):
        torch.save({"state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}}, path)
    main([str(base), str(tmp_path / "mean"), *map(str, paths)])
    found = speechkit.load(tmp_path / "mean")
    for name, value in found.model.state_dict().items():
        expected = (models[0].state_dict()[name] + models[1].state_dict()[name]) / 2
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-3)
    assert found.tokenizer.pieces == SYMBOLS
    assert "0.ckpt, 1.ckpt" in (tmp_path / "mean" / "README.md").read_text()


def test_checkpoints_of_another_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configuration()
    base = hub.save(tmp_path / "base", config, recognizer(config), CharTokenizer(SYMBOLS), "# One")
    torch.save({"state_dict": {"model.w": torch.zeros(1)}}, tmp_path / "other.ckpt")
    assert main([str(base), str(tmp_path / "mean"), str(tmp_path / "other.ckpt")]) == 2
    assert "other.ckpt are not of the model" in capsys.readouterr().err
