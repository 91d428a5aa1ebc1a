"""What `speechkit bench` and the training benchmark report."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer
from typer.testing import CliRunner

from speechkit import hub
from speechkit.commands import bench
from speechkit.commands.untrained import VOCAB_SIZE, untrained
from speechkit.errors import InputError
from speechkit.streaming.state import leaves
from tests.asr import tiny
from tests.paths import ROOT


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(bench.bench)
    return made


def script(name: str) -> ModuleType:
    """A module of `benchmarks/`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_context_is_measured_whole_and_the_encoder_alone(app: typer.Typer, tmp_path: Path) -> None:
    folder = tiny.release(tmp_path / "model")
    result = CliRunner().invoke(app, ["--model", str(folder), "--seconds", "0.2", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    costs = found["costs"]
    assert [(cost["context"], cost["part"]) for cost in costs] == [
        ([4, 1], "encoder"), ([4, 1], "all"), ([4, 0], "encoder"), ([4, 0], "all"),
    ]  # fmt: skip
    assert [cost["audio_ms"] for cost in costs] == [160, 160, 80, 80]
    for cost in costs:
        assert cost["calls"] == bench.FEWEST_CALLS
        for times in (cost["cpu_ms"], cost["wall_ms"]):
            assert 0 < times["best"] <= times["p50"] <= times["p95"] <= times["p99"]
        assert cost["ratio"] == pytest.approx(cost["cpu_ms"]["p50"] / found["matmul_ms"], rel=0.9)
    model = hub.load(folder).model
    state = leaves(model.encoder.at((4, 1)).init_state(1))
    assert costs[0]["state_bytes"] == sum(leaf.nbytes for leaf in state)
    assert found["threads"] == 1


def test_a_table_names_what_was_measured(app: typer.Typer, tmp_path: Path) -> None:
    folder = tiny.release(tmp_path / "model")
    words = ["--model", str(folder), "--seconds", "0", "--contexts", "4,0", "--batch", "2"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "matmul_ms" in result.output
    rows = [line.split() for line in result.output.splitlines() if line.strip().startswith("4,")]
    assert [row[:4] for row in rows] == [["4,0", "80", "encoder", "torch"], ["4,0", "80", "all", "torch"]]


def test_the_state_is_counted_per_stream(tmp_path: Path) -> None:
    transcriber = hub.load(tiny.release(tmp_path / "model"))
    one, eight = (bench.measure("encoder", {"torch": transcriber}, (4, 1), 0, batch)[0] for batch in (1, 8))
    assert eight.state_bytes == one.state_bytes > 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--contexts", "70"], "--contexts takes pairs such as '70,13 70,1', got '70'"),
        (["--contexts", "5,1"], "left context divisible by right + 1"),
    ],
)
def test_contexts_that_cannot_be_are_refused(app: typer.Typer, tmp_path: Path, words: list[str], sentence: str) -> None:
    folder = tiny.release(tmp_path / "model")
    result = CliRunner().invoke(app, ["--model", str(folder), "--seconds", "0", *words])
    assert isinstance(result.exception, InputError)
    assert sentence in str(result.exception)


@pytest.mark.parametrize("text", ["", "-1,-1", "70,-1", "70", "a,b"])
def test_what_is_no_limited_context_is_refused(text: str) -> None:
    model = tiny.recognizer(tiny.configuration())
    with pytest.raises(InputError, match=r"--contexts takes (limited )?pairs such as '70,13 70,1', got '.*'"):
        bench.parse_contexts(text, model)


def test_a_model_with_full_context_has_no_chunks(tmp_path: Path) -> None:
    folder = tiny.release(tmp_path / "model", [[-1, -1]])
    with pytest.raises(InputError, match="no chunks to measure"):
        bench.parse_contexts(None, hub.load(folder).model)


@pytest.mark.parametrize(("size", "millions"), [("14m", 14), ("32m", 32), ("114m", 114)])
def test_the_sizes_are_the_published_ones(size: str, millions: int) -> None:
    with torch.device("meta"):
        model = untrained(bench.RECIPE, bench.of_size(size))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=1)
    assert model.contexts == [(70, 13), (70, 6), (70, 1), (70, 0)]


def test_unknown_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="--size must be one of 14m, 32m, 114m, got '7b'"):
        bench.of_size("7b")


def test_training_throughput_is_measured_on_a_cpu_too() -> None:
    throughput = script("training_throughput")
    small = ["model.encoder.dim=8", "model.encoder.layers=1", "model.encoder.heads=2"]
    small += ["model.encoder.subsampling_channels=4", "model.predictor.dim=8", "model.joiner.dim=8"]
    words = ["--device", "cpu", "--batch-seconds", "2", "--utterance-seconds", "1", "--shapes", "2", "--warm-up", "1"]
    found = throughput.run(throughput.parse([*words, "--steps", "2", "--precision", "fp32", "--override", *small]))
    assert set(found["stages_ms"]) == set(throughput.STAGES)
    assert sum(found["stages_ms"].values()) == pytest.approx(found["step_ms"], rel=0.3)
    assert found["audio_hours_per_hour"] == pytest.approx(1.9 / found["step_ms"] * 1000, rel=0.25)
    joint = 3 * 2 * 8 * (VOCAB_SIZE + 1) * 12 * 4  # dim, vocabulary, steps, tokens: at least that
    assert joint < 1e12 * found["model_tflop_per_step"] < 100 * joint
