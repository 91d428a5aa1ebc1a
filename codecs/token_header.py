"""What a token file says before its codes: which codec they are of, and how they are laid out."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from speechkit.codecs.bits import frame_bits
from speechkit.codecs.codec import Codec
from speechkit.codecs.s3 import SpeechTokenizer
from speechkit.errors import InputError
from speechkit.reader import RATES

MAGIC = b"\x89SKC\r\n\x1a\n"  # no text, and damaged by whatever changes the ends of lines
VERSION = 1
HEAD = struct.Struct("<8sBBIIQ16s")  # magic, version, codebooks, rate, hop, samples, hash
FIXED = HEAD.size
UNKNOWN = (1 << 64) - 1  # samples, where the header was written before they were known
NAME_BYTES = 255
SHOWN = 12  # digits of the hash, in messages
LIMITS = {"codebooks": (1, 64), "codes of a codebook": (2, 1 << 20), "rate": RATES, "hop": (1, 1 << 16)}


@dataclass(frozen=True)
class TokenHeader:
    """Of a token file.

    Args:
        model: what the codec is called.
        weights: its hash, 16 bytes; see `fingerprint`.
        rate: of its waves, Hz.
        hop: samples of a code.
        sizes: how many codes each of its codebooks has.
        samples: that the codes were made of; None where the end mark will say it.

    Raises:
        InputError: no codec has such numbers.
    """

    model: str
    weights: bytes
    rate: int
    hop: int
    sizes: tuple[int, ...]
    samples: int | None = None

    def __post_init__(self) -> None:
        values = [("codebooks", len(self.sizes)), ("rate", self.rate), ("hop", self.hop)]
        for what, value in [*values, *(("codes of a codebook", size) for size in self.sizes)]:
            least, most = LIMITS[what]
            if not least <= value <= most:
                raise InputError(f"its number for {what} must be from {least} to {most}, got {value}")
        if self.samples is not None and not 0 <= self.samples < UNKNOWN:
            raise InputError(f"its number of samples must be from 0 to 2^64 - 2, got {self.samples}")
        if len(self.weights) != 16 or len(self.model.encode()) > NAME_BYTES or not self.model.isprintable():
            raise InputError(f"its model must have a printable name and a hash of 16 bytes, got {self.model!r:.60}")

    @classmethod
    def of(cls, codec: Codec | SpeechTokenizer, model: str, codebooks: int | None = None) -> Self:
        """Of a codec that is called so, with all of its codebooks or the first ones.

        Signs that cannot be printed become question marks.

        Raises:
            InputError: the codec has not so many codebooks.
        """
        codec.check_codebooks(codebooks)
        name = "".join(sign if sign.isprintable() else "?" for sign in model)
        name = name.encode()[:NAME_BYTES].decode(errors="ignore")
        return cls(
            name, codec.model.fingerprint(), codec.rate, codec.hop, (codec.size,) * (codebooks or codec.codebooks)
        )

    @property
    def hash(self) -> str:
        """The beginning of the weights' hash, hexadecimal."""
        return self.weights.hex()[:SHOWN]

    @property
    def bits_per_second(self) -> float:
        """Of the codes alone."""
        return frame_bits(self.sizes) * self.rate / self.hop

    def check_model(self, other: "TokenHeader", name: str) -> None:
        """Raises InputError, which names both, where the tokens `name` with this header are of another codec.

        They may be of fewer of its codebooks.
        """
        theirs = other.weights, other.rate, other.hop, other.sizes[: len(self.sizes)]
        if (self.weights, self.rate, self.hop, self.sizes) != theirs:
            raise InputError(
                f"{name} holds tokens of the codec {self.model} ({self.hash}), not of {other.model} ({other.hash}): "
                f"name {self.model} with --model"
            )

    def check_total(self, frames: int, samples: int) -> None:
        """Raises InputError where so many samples are not so many codes, up to one, or the header says otherwise."""
        if not (frames - 1) * self.hop <= samples <= (frames + 1) * self.hop:
            raise InputError(f"{samples} samples cannot be {frames} codes of {self.hop} samples")
        if self.samples not in (None, samples):
            raise InputError(f"its header says {self.samples} samples, its end {samples}")

    def pack(self) -> bytes:
        """Bytes, without the checksum."""
        samples = UNKNOWN if self.samples is None else self.samples
        head = HEAD.pack(MAGIC, VERSION, len(self.sizes), self.rate, self.hop, samples, self.weights)
        name = self.model.encode()
        return head + struct.pack(f"<{len(self.sizes)}I", *self.sizes) + bytes([len(name)]) + name

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """What `pack` gave.

        Raises:
            InputError: no codec has such numbers.
        """
        _, _, codebooks, rate, hop, samples, weights = HEAD.unpack_from(data)
        sizes = struct.unpack_from(f"<{codebooks}I", data, FIXED)
        model = data[FIXED + 4 * codebooks + 1 :].decode(errors="replace")
        return cls(model, weights, rate, hop, sizes, None if samples == UNKNOWN else samples)


def model_name(path: str | Path) -> str:
    """What a codec is called that was loaded from a folder, a file or a hub id: the last part of it.

    All runs call the folder of theirs ``release``: those go by their run's.
    """
    found = Path(path).expanduser().resolve()
    return found.parent.name or found.name if found.name == "release" else found.name
