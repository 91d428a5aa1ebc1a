"""The codec that comes along: what `speechkit codec` takes where no model is named."""

from pathlib import Path

import numpy as np
import pytest
import torch

import speechkit
from speechkit import audio, hub
from speechkit.codecs.codec import Codec
from tests.paths import DATA, needs_data

RECORDINGS = DATA / "asr" / "test-l2"


@pytest.fixture(scope="module")
def codec() -> Codec:
    loaded = speechkit.load("codec")
    assert isinstance(loaded, Codec)
    return loaded


def test_it_is_small_and_says_what_it_was_made_of() -> None:
    folder = hub.default("codec")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 30e6
    config = (folder / "config.yaml").read_text()
    assert not any(str(Path(part)) in config for part in ("/tmp", "/home", "/root", "/work"))
    card = (folder / "README.md").read_text()
    assert all(word in card for word in ("Licence", "LibriSpeech", "LJ Speech", "speechocean762", "test-l2", "seconds"))


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "codec").mkdir()
    with pytest.raises(speechkit.hub.InputError, match="codec"):
        speechkit.load("codec")


@needs_data
@pytest.mark.parametrize(("codebooks", "least"), [(1, 0.65), (2, 0.75), (8, 0.83)])
def test_real_speech_comes_back_intelligible_and_streams_to_the_same_sound(
    codec: Codec, codebooks: int, least: float
) -> None:
    stoi = pytest.importorskip("pystoi", reason="intelligibility needs pystoi: pip install 'speechkit[metrics]'").stoi
    found = []
    for file in sorted(RECORDINGS.rglob("*.flac"))[::55]:
        wave = torch.from_numpy(audio.read(file, codec.rate))
        codes = codec.encode(wave, codebooks=codebooks)
        whole = codec.decode(codes)[0]
        streamed = torch.cat(list(codec.decode_stream(codec.encode_stream(wave.split(1234), codebooks=codebooks))))
        found.append(stoi(wave.numpy(), whole.numpy(), codec.rate))
        torch.testing.assert_close(streamed[: len(whole)], whole, atol=2e-4, rtol=0)
    assert np.mean(found) > least
