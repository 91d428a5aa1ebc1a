"""Token files: what is written comes back, however it is cut, and whatever is damaged is refused with its sentence."""

import io
import random
import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from speechkit.codecs.bits import pack, packed_bytes, unpack
from speechkit.codecs.codec import Codec
from speechkit.codecs.container import TokenHeader, TokenReader, TokenWriter
from speechkit.codecs.fingerprint import fingerprint
from speechkit.codecs.token_header import HEAD, MAGIC, UNKNOWN, model_name
from speechkit.errors import InputError
from tests.codecs import tiny

HOP = 6


def header(sizes: Sequence[int] = (1024,), samples: int | None = None, model: str = "tiny") -> TokenHeader:
    return TokenHeader(model, bytes(range(16)), 24_000, HOP, tuple(sizes), samples)


def random_codes(sizes: Sequence[int], frames: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.stack([draw.integers(0, size, frames) for size in sizes], axis=1)


def written(codes: np.ndarray, head: TokenHeader, cut: int | None = None, frames: int = 256, missing: int = 0) -> bytes:
    """A file of codes that came in pieces of up to `cut`, and of samples that lack so many of a whole hop."""
    file = io.BytesIO()
    writer = TokenWriter(file, head, frames)
    random.seed(0)
    start = 0
    while start < len(codes):
        size = len(codes) if cut is None else random.randint(0, cut)
        writer.write(codes[start : start + size])
        start += size
    writer.end(len(codes) * HOP - missing)
    return file.getvalue()


def read(data: bytes) -> tuple[TokenReader, np.ndarray]:
    reader = TokenReader(io.BytesIO(data), "a.skc")
    blocks = list(reader.blocks())
    return reader, np.concatenate(blocks) if blocks else np.zeros((0, len(reader.header.sizes)), np.int64)


def forged(*parts: bytes) -> bytes:
    """Parts with the checksums that make them look right."""
    data, crc = b"", 0
    for part in parts:
        crc = zlib.crc32(part, crc)
        data += part + struct.pack("<I", crc)
    return data


def refusal(data: bytes) -> str:
    """The sentence with which a file is refused."""
    with pytest.raises(InputError) as refused:
        read(data)
    sentence = str(refused.value)
    assert sentence.startswith("a.skc ")
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("sizes", [(2,), (5,), (1024,), (4096,), (6561,), (1024, 1024, 5), (1 << 20, 2)])
@pytest.mark.parametrize("frames", [1, 7, 256, 65535])
def test_codes_come_back_however_they_were_cut(sizes: tuple[int, ...], frames: int) -> None:
    codes = random_codes(sizes, 1000)
    whole = written(codes, header(sizes), None, frames, missing=2)
    assert whole == written(codes, header(sizes), 40, frames, missing=2)
    reader, found = read(whole)
    assert np.array_equal(found, codes)
    assert (reader.header, reader.samples, reader.frames) == (header(sizes), 5998, 1000)
    assert reader.bytes == len(whole)


@pytest.mark.parametrize("size", [2, 5, 1024, 4096, 6561])
def test_a_code_takes_as_many_bits_as_its_codebook_needs(size: int) -> None:
    codes = random_codes([size], 801)
    data = pack(codes, [size])
    assert len(data) == packed_bytes(801, [size]) == -(-801 * (size - 1).bit_length() // 8)
    assert np.array_equal(unpack(data, 801, [size]), codes)


def test_the_bytes_are_those_of_the_format_page() -> None:
    data = written(np.array([[1], [2], [3]]), header((5,), model="a"), missing=1)
    head = HEAD.pack(MAGIC, 1, 1, 24_000, HOP, UNKNOWN, bytes(range(16))) + struct.pack("<I", 5) + b"\x01a"
    block = b"B\x03\x00" + bytes([0b001_010_01, 0b1_0000000])
    end = b"E" + struct.pack("<QQ", 3, 17)
    assert data == forged(head, block, end)


def test_a_file_may_hold_nothing_and_may_know_its_length() -> None:
    reader, codes = read(written(random_codes([5], 0), header((5,))))
    assert (reader.samples, len(codes)) == (0, 0)
    data = written(random_codes([5], 9), header((5,), samples=50), missing=4)
    assert TokenReader(io.BytesIO(data), "a.skc").samples == 50
    assert read(data)[0].samples == 50
    with pytest.raises(InputError, match="its header says 50 samples, its end 54"):
        written(random_codes([5], 9), header((5,), samples=50))


def test_a_block_is_there_before_the_next_is_written() -> None:
    file = io.BytesIO()
    writer = TokenWriter(file, header(), frames=10)
    writer.write(np.arange(25))
    blocks = TokenReader(io.BytesIO(file.getvalue()), "a.skc").blocks()
    assert [next(blocks).tolist() for _ in range(2)] == [[[i + 10 * n] for i in range(10)] for n in range(2)]
    with pytest.raises(InputError, match="a.skc is cut off or damaged: it ends after 20 codes, without an end mark"):
        next(blocks)


@pytest.mark.parametrize(
    ("codes", "sentence"),
    [
        ([5], "must be from 0 to 4, got 5 to 5"),
        ([-1], "got -1 to -1"),
        ([[1, 2]], r"\(frames, 1\), got \(1, 2\)"),
    ],
)
def test_a_writer_takes_only_its_codebook_s_codes(codes: list[object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        TokenWriter(io.BytesIO(), header((5,))).write(np.array(codes))
    with pytest.raises(InputError, match="100 samples cannot be 0 codes of 6 samples"):
        TokenWriter(io.BytesIO(), header((5,))).end(100)


# Damage


SMALL = written(random_codes([6561], 40), header((6561,)), frames=16, missing=3)


def test_every_truncation_is_refused() -> None:
    for length in range(len(SMALL)):
        sentence = refusal(SMALL[:length])
        assert sentence == "a.skc is empty (0 bytes)" if length == 0 else "is cut off or damaged: it ends" in sentence


def test_every_flipped_bit_is_refused() -> None:
    for at in range(8 * len(SMALL)):
        data = bytearray(SMALL)
        data[at // 8] ^= 1 << at % 8
        sentence = refusal(bytes(data))
        said = r"is (cut off or )?damaged|is no token file|is a token file of version \d+, this"
        assert re.search(said, sentence), (at, sentence)


def test_blocks_that_are_lost_or_exchanged_are_noticed() -> None:
    codes = random_codes([6561], 48)
    data = written(codes, header((6561,)), frames=16)
    size = 3 + packed_bytes(16, [6561]) + 4
    start = len(data) - 21 - 3 * size
    first, second = data[start : start + size], data[start + size : start + 2 * size]
    for changed in (first, second + first, first + first):
        assert "is damaged after" in refusal(data[:start] + changed + data[start + 2 * size :])


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"RIFF\0\0\0\0WAVEfmt ", "a.skc is no token file (.skc)"),
        (b"PK\x03\x04", "a.skc is no token file (.skc)"),
        (MAGIC + b"\x02", "a.skc is a token file of version 2, this version of speechkit reads 1"),
        (SMALL + b"\0", "a.skc goes on after its end mark: something else was appended to it"),
        (SMALL + SMALL, "a.skc goes on after its end mark: something else was appended to it"),
    ],
)
def test_what_is_no_token_file_is_said(data: bytes, sentence: str) -> None:
    assert refusal(data) == sentence


def forged_header(
    codebooks: int = 1, rate: int = 24_000, hop: int = HOP, samples: int = UNKNOWN, sizes: Sequence[int] = (5,)
) -> bytes:
    head = HEAD.pack(MAGIC, 1, codebooks, rate, hop, samples, bytes(16))
    return head + struct.pack(f"<{len(sizes)}I", *sizes) + b"\x01a"


BAD_BLOCK = b"B" + struct.pack("<H", 2) + pack(np.array([[4], [6]]), [5])


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([forged_header(0, sizes=())], "describes no codec: its number for codebooks must be from 1 to 64, got 0"),
        ([forged_header(65, sizes=[5] * 65)], "its number for codebooks must be from 1 to 64, got 65"),
        ([forged_header(sizes=[2**32 - 1])], "codes of a codebook must be from 2 to 1048576, got 4294967295"),
        ([forged_header(sizes=[1])], "codes of a codebook must be from 2 to 1048576, got 1"),
        ([forged_header(rate=0)], "rate must be from 4000 to 384000, got 0"),
        ([forged_header(hop=2**32 - 1)], "hop must be from 1 to 65536, got 4294967295"),
        ([forged_header()[:-1] + b"\x07"], "its model must have a printable name"),
        ([forged_header(), BAD_BLOCK], "holds the code 6 after 0 codes, where its codebook ends at 4"),
        ([forged_header(), b"B\0\0"], "a block says that it holds 0 codes, more than one may or none"),
        ([forged_header(2, sizes=[2**20] * 2), b"B\xff\xff"], "a block says that it holds 65535 codes, more than one"),
        ([forged_header(), b"E" + struct.pack("<QQ", 2**63, 9)], "says that it holds 9223372036854775808 codes, and"),
        ([forged_header(), b"E" + struct.pack("<QQ", 0, 9)], "is damaged: 9 samples cannot be 0 codes of 6 samples"),
        ([forged_header(samples=2**63), b"E" + bytes(16)], "its header says 9223372036854775808 samples, its end 0"),
        ([forged_header(), b"X"], "neither codes nor an end mark follow"),
    ],
)  # fmt: skip
def test_a_forged_file_is_refused(parts: list[bytes], sentence: str) -> None:
    assert sentence in refusal(forged(*parts))


@pytest.mark.parametrize(
    "data",
    [
        forged(forged_header(255, sizes=[2**20] * 255)),
        forged(forged_header(64, sizes=[2**20] * 64, samples=UNKNOWN - 1)) + b"B\xff\xff",
        forged(forged_header()) + b"B\xff\xff" + bytes(99),
        forged(forged_header(), b"E" + b"\xfe" * 16),
    ],
)
def test_a_declared_length_takes_no_memory(data: bytes) -> None:
    tracemalloc.start()
    refusal(data)
    assert tracemalloc.get_traced_memory()[1] < 300_000
    tracemalloc.stop()


class Endless(io.RawIOBase):
    """A file that is longer than memory: counts what was written."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: object) -> int:
        self.written += len(data)  # type: ignore[arg-type]
        return len(data)  # type: ignore[arg-type]


def test_writing_and_reading_take_no_more_memory_for_longer_files() -> None:
    def peak(work: Callable[[], object]) -> int:
        tracemalloc.start()
        work()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    codes = random_codes([4096], 1000)

    def write(times: int) -> None:
        writer = TokenWriter(Endless(), header((4096,)))  # type: ignore[arg-type]
        for _ in range(times):
            writer.write(codes)

    assert peak(lambda: write(300)) < peak(lambda: write(30)) + 20_000
    short, long = (written(np.tile(codes, (times, 1)), header((4096,))) for times in (30, 300))

    def walk(data: bytes) -> None:
        for _ in TokenReader(io.BytesIO(data), "a.skc").blocks():
            pass

    assert peak(lambda: walk(long)) < peak(lambda: walk(short)) + 20_000 + len(long) - len(short)


# Which codec


def test_the_hash_is_of_names_and_numbers() -> None:
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(3)}
    same = fingerprint({"a": torch.tensor(3), "b": torch.arange(6.0).view(3, 2).clone().view(2, 3)})
    assert fingerprint(tensors) == same
    assert len(same) == 16
    assert fingerprint({**tensors, "b": torch.arange(6.0).view(2, 3) + 1e-6}) != same
    assert fingerprint({"c": tensors["b"], "a": tensors["a"]}) != same
    assert fingerprint({"a": torch.ones(2, dtype=torch.bfloat16)}) != fingerprint({"a": torch.ones(2)})


def test_tokens_of_another_model_are_refused_with_both_names() -> None:
    another = tiny.codec()
    another.decoder.head.out.bias.data[0] += 1e-3
    one, other = TokenHeader.of(Codec(tiny.codec()), "one"), TokenHeader.of(Codec(another), "other")
    assert (one.rate, one.hop, one.sizes) == (24_000, 6, (16,))
    one.check_model(TokenHeader.of(Codec(tiny.codec()), "renamed"), "a.skc")
    with pytest.raises(InputError) as refused:
        one.check_model(other, "a.skc")
    said = rf"a\.skc holds tokens of the codec one \({one.hash}\), not of other \({other.hash}\): name one with --model"
    assert re.fullmatch(said, str(refused.value))


def test_names_fit_and_can_be_printed() -> None:
    codec = Codec(tiny.codec())
    assert TokenHeader.of(codec, "é" * 200).model == "é" * 127
    assert TokenHeader.of(codec, "a\x1b[2J\udce9").model == "a?[2J?"
    assert model_name("/models/wavtokenizer-75/") == "wavtokenizer-75"
    assert model_name("org/name") == "name"
    data = written(random_codes([16], 3), TokenHeader.of(codec, "é" * 200))
    assert read(data)[0].header == TokenHeader.of(codec, "é" * 200)
