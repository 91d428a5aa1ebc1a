"""Train, stream, export and serve speech and audio models."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechkit.hub import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

# In a checkout codecs/, streaming/ and conf/ lie beside this package; in a wheel they lie inside it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "codecs").is_dir() and (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))


def __getattr__(name: str) -> Any:
    """`speechkit.load`, imported when first used: `import speechkit` alone must not import torch."""
    if name == "load":
        from speechkit.hub import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
