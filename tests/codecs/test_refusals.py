"""Sizes and options that make no sense are refused in a sentence, by whoever takes them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from speechkit.builder import shapes
from speechkit.codecs.codebook import Codebook
from speechkit.codecs.codec import Codec, Codes
from speechkit.codecs.discriminators import DacDiscriminator, MultiPeriod, MultiResolution
from speechkit.codecs.losses import Discriminators, MelLoss
from speechkit.codecs.quantizers import FiniteScalarQuantizer, ResidualQuantizer
from speechkit.codecs.task import CodecTask
from speechkit.codecs.vocos import VocosDecoder
from speechkit.errors import InputError
from speechkit.metrics.audio import si_sdr_db
from speechkit.release import build
from speechkit.streaming.stream import Stream
from tests.codecs.test_task import CONFIG, batch


def task(**options: Any) -> CodecTask:
    discriminators = Discriminators(
        MultiPeriod([2], [2, 2], kinds=2),
        MultiResolution([[64, 16]], 2, kinds=2),
        DacDiscriminator([3], [2, 2], [64], 2),
    )
    mel = options.pop("mel", MelLoss(6000, 64, 16, 10))
    return CodecTask(build(CONFIG), torch.optim.SGD, discriminators, mel, **{"kinds": 2, **options})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Codebook(8, 4, decay=1.0), "decay must be from 0 to under 1"),
        (lambda: ResidualQuantizer(Codebook(8, 4), 65), "from 2 to 64 codebooks"),
        (lambda: ResidualQuantizer(Codebook(8, 4), 2, dropout=7), "a share from 0 to 1"),
        (lambda: MelLoss(n_mels=0), "must be at least 1"),
        (lambda: VocosDecoder(dim=32, left=-1), "left must be a number of latents"),
        (lambda: VocosDecoder(dim=32, left=10**9), "left must be a number of latents up to"),
        (lambda: VocosDecoder(dim=32, groups=-1), "must be at least 1"),
        (lambda: VocosDecoder(n_fft=10**9, hop=10**9), "at most 65536"),
        (lambda: FiniteScalarQuantizer(4, [3] * 64), "at most 1048576 codes"),
        (lambda: Codebook(8, 4, threshold=5.0), "threshold must be from 0 to 1"),
        (lambda: Codebook(8, 4, kmeans=-1), "number of iterations"),
        (lambda: build({**CONFIG, "rate": 0}), "samples a second"),
        (lambda: task(kinds=3), "kinds must be from 1 to 2"),
        (lambda: task(discriminator_start=-1), "fewer than 0"),
    ],
)
def test_options_out_of_range(make: Callable[[], object], said: str) -> None:
    with pytest.raises((ValueError, InputError), match=said):
        make()


def test_crops_that_are_too_short_for_a_spectrum() -> None:
    with pytest.raises(InputError, match=r"data\.crop_seconds must be 0\.053 or more"):
        task(mel=MelLoss(6000, 640, 16, 10)).on_before_batch_transfer(batch(0), 0)
    task().on_before_batch_transfer(batch(0), 0)


@pytest.mark.parametrize(("part", "sizes"), [("decoder", {"layers": 10**9}), ("encoder", {"lstm_layers": 10**9})])
def test_a_network_of_any_number_of_parts_is_not_built(part: str, sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="more than|cannot be built"):
        shapes({**CONFIG, part: {**CONFIG[part], **sizes}})


def test_a_stream_that_has_ended_takes_nothing_more() -> None:
    stream = Stream(build(CONFIG).encoding())
    with pytest.raises(InputError, match=r"takes \(time, dim\)"):
        stream.push(torch.zeros(1, 100, 1))
    stream.push(torch.zeros(100, 1))
    assert stream.flush()
    assert stream.flush() == []
    with pytest.raises(InputError, match="has ended"):
        stream.push(torch.zeros(100, 1))


def test_a_single_sample_has_no_ratio() -> None:
    one = torch.ones(1).numpy()
    assert si_sdr_db(one, one) is None


def test_codes_that_are_none_are_refused() -> None:
    codec = Codec(build(CONFIG))
    values, lengths = torch.zeros(1, 5, dtype=torch.int64), torch.tensor([5])
    for odd in (values.float(), values.bool(), values.short(), values.to(torch.uint8)):
        with pytest.raises(InputError, match="codes must be int64 or int32"):
            codec.decode(odd)
        with pytest.raises(InputError, match="codes must be int64 or int32"):
            list(codec.decode_stream([odd[0]]))
    for counts, samples in (([6], [30]), ([-1], [0]), ([5], [31]), ([5], [-1]), ([5, 5], [30, 30])):
        with pytest.raises(InputError, match="each of 1 rows needs a length from 0 to 5 codes"):
            codec.decode(Codes(values, torch.tensor(counts), torch.tensor(samples)))
    assert codec.decode(Codes(values.int(), lengths, 6 * lengths)).shape == (1, 30)
