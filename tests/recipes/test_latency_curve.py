"""The curve of word error rates against latency has the means of both kinds of models."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.librispeech.latency_curve import main


def run(folder: Path, encoder: dict[str, Any], lines: list[dict[str, Any]], weight: float | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"model": {"encoder": encoder}, "task": {"algorithmic_weight": weight}})
    )
    base = {"split": "dev", "words": 100, "decoder": "rnnt"}
    scores = [base | line | {"mode": mode} for line in lines for mode in ("offline", "streaming")]
    (folder / "scores.json").write_text(json.dumps(scores))
    return folder


def test_a_sweep_is_drawn_beside_fixed_contexts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, (weight, mean) in enumerate([(0, 300.0), (1.5, 120.0)]):
        wait = {"mean": mean, "p50": mean, "p90": mean}
        run(tmp_path / "sweep" / str(i), {}, [{"latency_ms": 960.0, "wer": 0.1 + i / 100, "wait": wait}], weight)
    lines: list[dict[str, Any]] = [
        {"latency_ms": 1040.0, "wer": 0.1},
        {"latency_ms": 0.0, "wer": 0.2},
        {"latency_ms": None, "wer": 0.1},
    ]
    chunked = run(tmp_path / "chunked", {"style": "chunked_limited"}, lines)
    regular = run(tmp_path / "regular", {"style": "regular"}, [{"latency_ms": 240.0, "wer": 0.15}])
    picture = tmp_path / "curve.png"
    assert main([str(tmp_path / "sweep"), str(chunked), str(regular), "-o", str(picture)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[2:-1] == [
        "| dev | 100 | ANCAT, weight 0 | 300 | 960 | 10.00 |",
        "| dev | 100 | ANCAT, weight 1.5 | 120 | 960 | 11.00 |",
        "| dev | 100 | fixed context, 0 ms | 0 | 0 | 20.00 |",
        "| dev | 100 | fixed context, 1040 ms | 520 | 1040 | 10.00 |",
        "| dev | 100 | fixed context, 240 ms | 240 | 240 | 15.00 |",
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("words", "sentence"), [([], "there is no run in"), (["--decoder", "ctc"], "no stream was")])
def test_what_cannot_be_drawn_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    folder = run(tmp_path / "run", {}, [{"latency_ms": 0.0, "wer": 0.1}]) if words else tmp_path
    assert main([str(folder), *words]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("scores", ["no json", "[1]", '[{"mode": "streaming"}]', "[{}]"])
def test_a_damaged_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], scores: str) -> None:
    folder = run(tmp_path / "run", {}, [])
    (folder / "scores.json").write_text(scores)
    assert main([str(folder)]) == 2
    assert f"{folder} holds no run that can be read" in capsys.readouterr().err
    (folder / "config.yaml").unlink()
    assert main([str(folder)]) == 2


def test_runs_count_once_and_those_that_are_left_out_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = run(tmp_path / "sweep" / "0", {}, [{"latency_ms": 80.0, "wer": 0.1}])
    other = run(tmp_path / "nar", {}, [{"latency_ms": 80.0, "wer": 0.1, "decoder": "nar"}])
    assert main([str(one.parent), str(one), str(other), "-o", str(tmp_path / "c.png")]) == 0
    said = capsys.readouterr()
    assert said.out.count("fixed context, 80 ms") == 1
    assert f"left out: {other}" in said.err
    for name in ("no/c.png", "c.xyz"):
        assert main([str(one), "-o", str(tmp_path / name)]) == 2
        assert f"{name} cannot be written" in capsys.readouterr().err
