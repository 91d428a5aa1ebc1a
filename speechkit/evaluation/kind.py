"""What `speechkit eval` asks of whoever scores a kind of model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from rich.console import RenderableType

from speechkit.data.module import SpeechDataModule


class Score(Protocol):
    """What was found out on a split, or a part of that."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        ...


class Evaluation(Protocol):
    """Scores one model. Its constructor takes the model, the device where it is, and its `options` by their names.

    Attributes:
        options: of the configuration, and what they may be.
        rate: at which it wants sound, Hz.
        skipped: of each split, a sentence for every recording that could not be used.
    """

    options: ClassVar[Mapping[str, Any]]
    skipped: dict[str, list[str]]

    @property
    def rate(self) -> int: ...

    def about(self) -> dict[str, Any]:
        """What else is to be known of the scores, for JSON."""
        ...

    def scored(self, data: SpeechDataModule, split: str, limit: int | None) -> Iterator[Sequence[Any]]:
        """Scores of a split, the first recordings of it; what was given is kept, also where the rest then fails.

        Raises:
            InputError: the split cannot be used.
        """
        ...

    def table(self, scores: Sequence[Any]) -> RenderableType:
        """Of all splits, for the terminal."""
        ...

    def pictures(self, scores: Sequence[Any]) -> dict[str, bytes]:
        """Names of files and what they hold."""
        ...


def listed(value: Any) -> list[Any] | None:
    """A list, also of a word alone."""
    return None if value is None else [value] if isinstance(value, str) else list(value)
