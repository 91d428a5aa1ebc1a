"""espeak-ng's C API through ctypes: text in, waveform out, hundreds of English voices and no model to download."""

import contextlib
import ctypes
import os
import shutil
import tempfile
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from speechkit.errors import InputError

# espeak-ng's speak_lib.h
_RETRIEVAL = 2  # AUDIO_OUTPUT_SYNCHRONOUS: audio goes to the callback alone, within espeak_Synth
_RATE, _PITCH, _RANGE = 1, 3, 4
_CHARS_UTF8 = 1
_POS_CHARACTER = 1
_SEED = 1

SHAVIAN = "en-shaw"  # reads another alphabet


class _VoiceInfo(ctypes.Structure):
    """espeak_VOICE."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("reserved", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """One synthesiser; not thread safe.

    The phase of its flutter runs on from utterance to utterance in a variable that nothing resets. Each instance
    therefore loads a copy of the library of its own: the same calls after construction give the same samples.

    Raises:
        InputError: the extra `mini` (espeakng-loader) is missing, or the library does not start.
    """

    def __init__(self) -> None:
        loader = _loader()
        self._library = _private_copy(Path(loader.get_library_path()))
        self._library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_VoiceInfo))
        self._libc = ctypes.CDLL(None) if os.name == "posix" else None
        unsigned, size = ctypes.c_uint, ctypes.c_size_t
        self._library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, size, unsigned, ctypes.c_int, unsigned, unsigned, ctypes.c_void_p, ctypes.c_void_p)
        ]
        data = str(loader.get_data_path())
        self.sample_rate: int = self._library.espeak_Initialize(_RETRIEVAL, 0, os.fsencode(data), 0)
        if self.sample_rate <= 0:
            raise InputError(f"espeak-ng did not start with its data folder {data}")
        self._pieces: list[bytes] = []
        self._callback = _Callback(self._take)  # kept: ctypes does not hold it for the library
        self._library.espeak_SetSynthCallback(self._callback)
        self._accents = self._list_accents()
        self._variants = self._list_variants()
        self._voice = ""

    def accents(self) -> list[str]:
        """The English accents that read the Latin alphabet, such as ``en-us``, sorted."""
        return sorted(self._accents)

    def variants(self) -> list[str]:
        """The voices that every accent can have, such as ``f1``, sorted."""
        return list(self._variants)

    def voices(self) -> list[str]:
        """Every accent with every variant, such as ``en-us+f1``, sorted."""
        return [f"{accent}+{variant}" for accent in self.accents() for variant in self._variants]

    def say(self, text: str, voice: str, rate: int = 175, pitch: int = 50, pitch_range: int = 50) -> NDArray[np.int16]:
        """Speaks a text.

        Args:
            text: English; digits and abbreviations are read out.
            voice: an accent, with or without a variant: ``en-us``, ``en-gb-scotland+f3``.
            rate: words per minute, 80 to 450.
            pitch: 0 to 100, in the voice's own range.
            pitch_range: 0 (monotone) to 100.

        Returns:
            (samples,) int16 at `sample_rate`.

        Raises:
            InputError: no such voice, or espeak-ng refuses the text.
        """
        self._select(voice)
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, int(value), 0)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))  # breath; otherwise seeded with the time of day
        if self._libc is not None:
            self._libc.srand(_SEED)  # some of the Klatt voices
        self._pieces.clear()
        data = text.encode()
        status = self._library.espeak_Synth(data, len(data) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
        if status != 0:
            raise InputError(f"espeak-ng cannot read {text!r}: status {status}")
        return np.frombuffer(b"".join(self._pieces), dtype=np.int16)

    def close(self) -> None:
        """Frees what the library holds; the instance cannot be used afterwards."""
        if self._library is not None:
            self._library.espeak_Terminate()
            self._library = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            self._pieces.append(ctypes.string_at(samples, count * 2))
        return 0  # go on

    def _select(self, voice: str) -> None:
        if voice == self._voice:
            return
        accent, plus, variant = voice.partition("+")
        if accent not in self._accents or (plus and variant not in self._variants):
            raise InputError(f"espeak-ng has no English voice {voice!r}; accents: {', '.join(self.accents())}")
        # By file, for the name `en-gb` is ambiguous to it.
        if self._library.espeak_SetVoiceByName(f"{self._accents[accent]}{plus}{variant}".encode()) != 0:
            raise InputError(f"espeak-ng cannot load the voice {voice!r}")
        self._voice = voice

    def _list(self, language: bytes | None) -> list[tuple[str, str]]:
        """(language, file) of each voice."""
        wanted = None if language is None else ctypes.byref(_VoiceInfo(languages=language))
        found = self._library.espeak_ListVoices(wanted)
        voices: list[tuple[str, str]] = []
        while found[len(voices)]:
            voice = found[len(voices)].contents
            # The first byte of a language is its priority.
            voices.append(((voice.languages or b" ")[1:].decode(), os.fsdecode(voice.identifier or b"")))
        return voices

    def _list_accents(self) -> dict[str, str]:
        english = {lang: file for lang, file in self._list(None) if lang == "en" or lang.startswith("en-")}
        english.pop(SHAVIAN, None)
        return english

    def _list_variants(self) -> list[str]:
        return sorted(file.replace("\\", "/").rpartition("/")[2] for _, file in self._list(b"variant"))


def _loader() -> ModuleType:
    try:
        import espeakng_loader
    except ImportError:
        raise InputError(
            "synthetic speech needs espeak-ng, which is not installed: pip install 'speechkit[mini]'"
        ) from None
    return espeakng_loader


def _private_copy(path: Path) -> Any:
    """Loads a copy under another name: the same file twice would be one library with one state."""
    with tempfile.TemporaryDirectory(prefix="speechkit-espeak-", ignore_cleanup_errors=True) as folder:
        copy = Path(folder) / path.name
        # Where temporary files may not be executed, the original has to do; its state is then shared within a process.
        with contextlib.suppress(OSError):
            shutil.copyfile(path, copy)
            return ctypes.CDLL(str(copy))
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise InputError(f"espeak-ng's library does not load: {error}") from None
