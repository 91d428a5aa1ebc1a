"""The context mask is the rule of its style, written down query by query."""

import itertools
from collections.abc import Callable

import pytest
import torch

from speechkit.nn.masks import check_context, context_mask, valid_mask

LIMITS = [-1, 0, 1, 2, 3, 6]


def _regular(query: int, key: int, left: int, right: int) -> bool:
    return (left < 0 or key >= query - left) and (right < 0 or key <= query + right)


def _chunked(query: int, key: int, left: int, right: int) -> bool:
    """Without a limit to the right all is one chunk, and the left limit counts steps."""
    if right < 0:
        return left < 0 or key >= query - left
    size = right + 1
    start = query - query % size
    return (left < 0 or key >= start - left // size * size) and key < start + size


@pytest.mark.parametrize(("style", "rule"), [("regular", _regular), ("chunked_limited", _chunked)])
@pytest.mark.parametrize("context", list(itertools.product(LIMITS, LIMITS)))
def test_the_mask_is_the_rule(style: str, rule: Callable[..., bool], context: tuple[int, int]) -> None:
    position = torch.arange(15)
    expected = torch.tensor([[rule(query, key, *context) for key in range(15)] for query in range(15)])
    assert torch.equal(context_mask(position, position, context, style), expected)


@pytest.mark.parametrize("style", ["regular", "chunked_limited"])
@pytest.mark.parametrize("context", [(4, 1), (2, 0), (-1, 1), (3, -1)])
def test_rows_at_any_place_see_their_part_of_the_whole(style: str, context: tuple[int, int]) -> None:
    """Streams ask for the mask of a window, which may begin before their start."""
    starts = torch.tensor([0, 3, 8])
    query, key = starts[:, None] + torch.arange(3), starts[:, None] + torch.arange(-4, 5)
    whole = context_mask(torch.arange(20), torch.arange(-4, 20), context, style)
    expected = torch.stack([whole[start : start + 3, start : start + 9] for start in starts.tolist()])
    assert torch.equal(context_mask(query, key, context, style), expected)


def test_valid_entries_come_first() -> None:
    assert valid_mask(torch.tensor([0, 2, 3]), 3).tolist() == [[False] * 3, [True, True, False], [True] * 3]


@pytest.mark.parametrize(
    ("context", "style", "message"),
    [
        ((4, 2), "chunked_limited", r"divisible by right \+ 1, got \[4, 2\]"),
        ((-2, 0), "regular", r"-1 for no limit, got \[-2, 0\]"),
        ((0, -2), "chunked_limited", r"-1 for no limit, got \[0, -2\]"),
        ((1 << 40, 0), "regular", r"up to 100000, -1 for no limit, got \[1099511627776, 0\]"),
        ((4, 1), "global", "one of regular, chunked_limited, got 'global'"),
    ],
)
def test_contexts_that_are_no_grid_are_refused(context: tuple[int, int], style: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_context(context, style)
