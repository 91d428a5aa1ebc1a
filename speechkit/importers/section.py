"""One section of a configuration that others published: typed values, interpolations, and what is refused by name."""

import re
from collections.abc import Mapping
from typing import Any

from speechkit.errors import InputError

LARGEST = 1_000_000_000


class Section:
    """One section of a configuration: values by key, interpolations followed, what cannot be honoured refused."""

    def __init__(self, source: str, root: Mapping[str, Any], path: str = "") -> None:
        self.source, self.root, self.path = source, root, path
        value = self._look(path) if path else root
        self.values: Mapping[str, Any] = value if isinstance(value, Mapping) else {}

    def __bool__(self) -> bool:
        return bool(self.values)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def at(self, key: str) -> "Section":
        """An inner section, empty where there is none."""
        return Section(self.source, self.root, f"{self.path}.{key}" if self.path else key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, `default` where it is missing or null."""
        value = self._follow(self.values.get(key))
        return default if value is None else value

    def integer(self, key: str, default: int | None = None, largest: int = 1 << 32) -> int:
        """A whole number of at least 1."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= largest or value % 1:
            raise self.refusal(key, value, f"it must be a whole number from 1 to {largest}")
        return int(value)

    def number(self, key: str, default: float) -> float:
        """A number of at most `LARGEST` either way."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST <= value <= LARGEST:
            raise self.refusal(key, value, f"it must be a number from {-LARGEST} to {LARGEST}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, value, "it must be true or false")
        return value

    def only(self, key: str, *honoured: Any) -> Any:
        """The value of a key, the first of `honoured` where it is missing; anything else is refused."""
        value = self.get(key, honoured[0])
        if value not in honoured:
            names = " or ".join("none" if choice is None else str(choice) for choice in honoured)
            raise self.refusal(key, value, f"speechkit honours {names}")
        return value

    def refusal(self, key: str, value: Any, reason: str) -> InputError:
        """The error that names a key and its value."""
        name = f"{self.path}.{key}" if self.path else key
        return InputError(f"{self.source} has {name}: {value!r:.100}, which cannot be honoured: {reason}")

    def _follow(self, value: Any, depth: int = 8) -> Any:
        """The value that an interpolation ``${model.x.y}`` points at."""
        if not isinstance(value, str) or not depth:
            return value
        match = re.fullmatch(r"\$\{([\w.]+)\}", value)
        return self._follow(self._look(match[1].removeprefix("model.")), depth - 1) if match else value

    def _look(self, path: str) -> Any:
        value: Any = self.root
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value
