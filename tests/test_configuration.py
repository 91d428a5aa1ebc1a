"""How recipes are composed: the mini block, the words over it, and refusals."""

import errno
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError

from speechkit import audio
from speechkit.configuration import adapted, check, entry_point, options
from speechkit.errors import InputError


@pytest.fixture
def composed() -> Callable[..., tuple[DictConfig, list[str]]]:
    """A recipe as `train` gets it, and what is said of it."""

    def compose(*words: str, recipe: str = "librispeech_conformer", gpu: bool = True) -> tuple[DictConfig, list[str]]:
        with hydra.initialize_config_module("speechkit.conf", version_base="1.3"):
            config = hydra.compose("train", [f"recipe={recipe}", *words], return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            plain = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
            return adapted(plain, gpu)

    return compose


def test_without_a_corpus_the_mini_block_applies_and_is_printed(
    composed: Callable[..., tuple[DictConfig, list[str]]],
) -> None:
    config, notes = composed()
    assert config.data.train == ["train-mini"]
    assert config.model.encoder.dim == config.mini.model.encoder.dim
    assert config.trainer.max_steps == config.mini.trainer.max_steps
    assert notes[0].startswith("no data.root given")
    assert any(re.fullmatch(r"\s+max_steps: \d+", line) for line in notes)


def test_help_without_a_recipe_says_how_to_name_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train", "--help"])
    entry_point("train")(lambda config: None)()
    said = capsys.readouterr().out
    assert said.startswith("speechkit train recipe=NAME [option=value ...]\n")
    assert "librispeech_conformer" in said


def test_a_word_that_is_no_option_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["eval", "model=x", "foo"])
    with pytest.raises(SystemExit) as stopped:
        entry_point("eval")(lambda config: None)()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: 'foo' is no option: options are name=value\n"


def test_the_lines_about_a_block_say_what_applies(composed: Callable[..., tuple[DictConfig, list[str]]]) -> None:
    config, notes = composed("trainer.max_steps=7", "data.batch_seconds=9")
    assert config.trainer.max_steps == 7
    assert any(re.fullmatch(r"\s+max_steps: 7", line) for line in notes)
    assert any(re.fullmatch(r"\s+batch_seconds: 9", line) for line in notes)


def _within(part: Any, whole: Any) -> bool:
    """Whether every value of a part of a configuration is the whole one's."""
    if not isinstance(part, DictConfig):
        return bool(part == whole)
    return all(_within(value, whole[name]) for name, value in part.items())


@pytest.mark.parametrize("recipe", options("recipe"))
@pytest.mark.parametrize("words", [[], ["data=mini"]])
def test_every_recipe_runs_on_the_embedded_corpus(
    composed: Callable[..., tuple[DictConfig, list[str]]], recipe: str, words: list[str]
) -> None:
    config, notes = composed(*words, recipe=recipe)
    assert notes[0].startswith("no data.root given")
    assert config.data.train == ["train-mini"]
    assert config.data.test == ["test-mini", "test-mini-noisy", "test-mini-long"]
    assert _within(config.mini.model.encoder, config.model.encoder)


def test_with_a_corpus_it_does_not(composed: Callable[..., tuple[DictConfig, list[str]]]) -> None:
    config, notes = composed("data.root=/corpus")
    assert notes == []
    assert config.data.train == ["train-clean-100", "train-clean-360", "train-other-500"]
    assert config.optim.scheduler._target_ == "speechkit.schedule.Noam"
    assert config.trainer.precision == "bf16-mixed"


def test_without_a_gpu_the_cpu_block_applies(composed: Callable[..., tuple[DictConfig, list[str]]]) -> None:
    config, notes = composed("data.root=/corpus", gpu=False)
    assert notes[0].startswith("no GPU")
    assert config.trainer.precision == "32-true"
    assert config.data.batch_seconds == config.cpu.data.batch_seconds
    assert composed("data.root=/corpus", "data.batch_seconds=7", gpu=False)[0].data.batch_seconds == 7


def test_words_of_the_command_line_win(composed: Callable[..., tuple[DictConfig, list[str]]]) -> None:
    config, _ = composed("trainer.max_steps=7", "model.encoder.dim=48", "+trainer.limit_val_batches=2")
    assert (config.trainer.max_steps, config.model.encoder.dim) == (7, 48)
    assert config.trainer.limit_val_batches == 2
    assert config.optim.scheduler.steps == 7
    assert config.trainer.precision == config.mini.trainer.precision


@pytest.mark.parametrize(
    "words", [["model=s3_small", "model.encoder.dim=48"], ["model.encoder.dim=48", "model=s3_small"]]
)
def test_words_of_the_command_line_win_in_any_order(
    composed: Callable[..., tuple[DictConfig, list[str]]], words: list[str]
) -> None:
    assert composed(*words, recipe="librispeech_s3")[0].model.encoder.dim == 48


def test_a_head_can_be_left_out(composed: Callable[..., tuple[DictConfig, list[str]]]) -> None:
    assert composed("model.ctc=null", "job.ctc=false")[0].model.ctc is None
    config, _ = composed("model.predictor=null", "model.joiner=null")
    assert config.model.predictor is None
    assert config.model.joiner is None


def test_a_part_of_another_class_replaces_what_was_there(
    composed: Callable[..., tuple[DictConfig, list[str]]],
) -> None:
    config, _ = composed()
    assert config.optim.scheduler._target_ == "speechkit.schedule.WarmupCosine"
    assert set(config.optim.scheduler) == set(config.mini.optim.scheduler)  # nothing of Noam's is left


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["recipe=librispeech_conformer", "model.encoder.dim=8", "job.sizes=3"], "job.sizes"),
        (["recipe=librispeech_conformer", "job.size=8", "trainer.size=3"], "trainer.size"),
        (["recipe=librispeech_conformer", "data.tets=[a,b]"], "data.tets"),
    ],
)
def test_the_option_that_is_named_is_the_wrong_one(words: list[str], option: str) -> None:
    with pytest.raises(InputError, match=f"there is no option '{option}'"):
        check("train", words)


def test_a_recipe_must_be_named() -> None:
    with pytest.raises(InputError, match="name a recipe: recipe=NAME with one of .*librispeech_conformer"):
        check("train", [])


@pytest.mark.parametrize("recipe", options("recipe"))
def test_every_recipe_composes_in_full(recipe: str, composed: Callable[..., tuple[DictConfig, list[str]]]) -> None:
    for words in ([], ["data.root=/corpus"]):
        config, _ = composed("vocab_size=9", *words, recipe=recipe)
        assert config.name == recipe
        assert OmegaConf.to_container(config.model, resolve=True)
        assert OmegaConf.to_container(config.optim, resolve=True)


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (InputError("no, it is not"), 2, "error: no, it is not\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
        (ConfigAttributeError("no such key\n    full_key: a.b"), 2, "error: no such key\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_what_stops_a_command_is_one_sentence(
    raised: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @entry_point("eval")
    def main(config: DictConfig) -> None:
        raise raised

    monkeypatch.setattr("sys.argv", ["eval"])
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    assert capsys.readouterr().err == said


def test_a_developer_can_see_where_it_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    @entry_point("eval")
    def main(config: DictConfig) -> None:
        raise InputError("no, it is not")

    monkeypatch.setattr("sys.argv", ["eval"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    with pytest.raises(InputError, match="no, it is not"):
        main()


@pytest.mark.parametrize("word", ["model=null", "model=", "model=5"])
def test_a_group_without_a_name_is_refused(word: str) -> None:
    with pytest.raises(InputError, match=r"there is no model '(null|5|)'; there are: .*streaming_conformer"):
        check("train", ["recipe=librispeech_conformer", word])


def test_rooms_and_noise_are_chosen_by_name(
    composed: Callable[..., tuple[DictConfig, list[str]]], tmp_path: Path
) -> None:
    assert instantiate(composed("data.root=/corpus")[0].data.transform).noise is None
    config, _ = composed("data.root=/corpus", "noise=generated", "reverb=rooms", "data.transform.noise.snr_db=[0,10]")
    augmenter = instantiate(config.data.transform)
    assert augmenter.noise.snr_db == (0.0, 10.0)
    wave = np.random.default_rng(0).standard_normal(16000).astype(np.float32) / 10
    assert np.isfinite(augmenter(wave, np.random.default_rng(1))).all()
    audio.write(tmp_path / "hiss.wav", wave, 16000)
    config, _ = composed("data.root=/corpus", "noise=recordings", f"data.transform.noise.folder={tmp_path}")
    assert [path.name for path in instantiate(config.data.transform).noise.files] == ["hiss.wav"]
