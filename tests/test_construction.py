"""What the configuration describes is built, or refused by the name of the option."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from speechkit.construction import built, check_types, made_for
from speechkit.errors import InputError


class Part:
    """Takes all kinds of options."""

    def __init__(
        self,
        count: int = 1,
        weight: float = 1.0,
        name: str = "a",
        on: bool = False,
        limit: int | None = None,
        names: Sequence[str] = (),
        sizes: list[int] | None = None,
        grids: Sequence[Sequence[int]] = (),
        kind: Literal["x", "y"] = "x",
        inner: "Part | None" = None,
        anything: Any = None,
        call: Callable[[], int] | None = None,
    ) -> None:
        if count < 0:
            raise ValueError(f"first line\na count should be at least 0, got {count}")
        if weight == 0:
            raise ZeroDivisionError
        self.inner = inner


PART = {"_target_": "tests.test_construction.Part"}


@pytest.mark.parametrize(
    "options",
    [
        {"count": 3, "weight": 2, "name": "b", "on": True, "limit": None, "names": ["a"], "sizes": [1, 2], "kind": "y"},
        {"count": 1e4, "weight": float("inf"), "limit": 5, "names": "alone", "sizes": None},
        {"inner": None, "anything": [{"a": 1}], "unknown": 3},
        {"inner": {**PART, "count": 2}, "count": "${number}"},
        {"inner": "${other}", "anything": "${missing}"},
    ],
)
def test_what_a_class_takes_passes(options: dict[str, Any]) -> None:
    config = OmegaConf.create({"part": {**PART, **options}, "other": PART, "number": 4, "missing": "???"})
    check_types(config, {"number": int})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"count": "many"}, "part.count must be a whole number, got 'many'"),
        ({"count": 1.5}, "part.count must be a whole number, got 1.5"),
        ({"count": True}, "part.count must be a whole number, got True"),
        ({"count": None}, "part.count must be a whole number, got null"),
        ({"count": [1]}, "part.count must be a whole number, got [1]"),
        ({"weight": float("nan")}, "part.weight must be a number, got nan"),
        ({"name": 5}, "part.name must be a text, got 5"),
        ({"on": 1}, "part.on must be true or false, got 1"),
        ({"limit": "no"}, "part.limit must be a whole number or null, got 'no'"),
        ({"names": 5}, "part.names must be a list of texts, got 5"),
        ({"grids": [[1], ["a"]]}, "part.grids must be a list of lists of whole numbers, got [[1], ['a']]"),
        ({"sizes": ["a"]}, "part.sizes must be a list of whole numbers or null, got ['a']"),
        ({"inner": 3}, "part.inner must be null, got 3"),
        ({"inner": {**PART, "on": "maybe"}}, "part.inner.on must be true or false, got 'maybe'"),
        ({"count": "${number}"}, "number must be a whole number, got 'four'"),
        ({"inner": "${other}"}, "other.count must be a whole number, got 'all'"),
    ],
)
def test_what_it_does_not_take_is_named(options: dict[str, Any], sentence: str) -> None:
    config = OmegaConf.create({"part": {**PART, **options}, "other": {**PART}, "number": "four"})
    if "${other}" in options.values():
        config.other.count = "all"
    with pytest.raises(InputError) as refused:
        check_types(config, {})
    assert str(refused.value) == sentence


def test_options_of_no_class_are_checked_too() -> None:
    with pytest.raises(InputError, match="beam must be a whole number, got 'wide'"):
        check_types(OmegaConf.create({"beam": "wide"}), {"beam": int})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"inner": {**PART, "count": -1}}, "part.inner cannot be built as configured: a count .* at least 0, got -1"),
        ({"weight": 0}, "part cannot be built as configured: ZeroDivisionError"),
        ({"_target_": "tests.nowhere.Part"}, "part cannot be built as configured: ImportError: .*'nowhere'"),
    ],
)
def test_the_part_that_cannot_be_built_is_named(options: dict[str, Any], sentence: str) -> None:
    config = OmegaConf.create({"part": {**PART, **options}})
    with pytest.raises(InputError, match=sentence) as refused:
        built(config, "part")
    assert "\n" not in str(refused.value)
    assert refused.value.__cause__ is not None


def test_a_part_is_built_with_what_is_given() -> None:
    inner = Part()
    assert built(OmegaConf.create({"part": PART}), "part", inner=inner).inner is inner


def test_only_what_is_made_before_training_is_of_the_configuration() -> None:
    def configure_optimizers() -> None:
        int("a")

    def training_step() -> None:
        int("b")

    for raising, expected in ((configure_optimizers, "optim"), (training_step, None)):
        with pytest.raises(ValueError) as raised:
            raising()
        assert made_for(raised.value) == expected
