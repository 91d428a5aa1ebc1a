"""AISHELL-1's folders become manifests that the recipe's data find."""

from pathlib import Path

import numpy as np
import pytest

from recipes.aishell.prepare import main, prepare
from speechkit import audio
from speechkit.data.manifest import find
from speechkit.errors import InputError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    lines = []
    for number, split in enumerate(("train", "dev", "test"), 2):
        folder = tmp_path / "wav" / split / f"S000{number}"
        folder.mkdir(parents=True)
        for i in range(3):
            audio.write(folder / f"BAC009S000{number}W{i}.wav", np.random.default_rng(i).normal(0, 0.1, 1600))
            if i:
                lines.append(f"BAC009S000{number}W{i} 甚至 出现 交易 几乎 停滞\n")
    (tmp_path / "transcript").mkdir()
    (tmp_path / "transcript" / "aishell_transcript_v0.8.txt").write_text("".join(lines), encoding="utf-8")
    return tmp_path


def test_manifests_have_what_has_a_transcript(corpus: Path) -> None:
    assert prepare(corpus) == {"train-aishell": 2, "dev-aishell": 2, "test-aishell": 2}
    found = find("dev-aishell", corpus, corpus)
    assert [(one.id, one.speaker) for one in found] == [("BAC009S0003W1", "S0003"), ("BAC009S0003W2", "S0003")]
    assert found[0].text == "甚至 出现 交易 几乎 停滞"
    assert found[0].seconds == pytest.approx(0.1)


def test_other_folders_are_one_sentence(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path_factory.mktemp("empty"))]) == 2
    assert "is no AISHELL-1" in capsys.readouterr().err
    for path in (corpus / "wav" / "dev").rglob("*.wav"):
        path.unlink()
    with pytest.raises(InputError, match="holds no recording"):
        prepare(corpus)
