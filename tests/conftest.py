"""What all tests share: one thread, no random numbers but seeded ones, no graphics."""

import logging
import os
import random
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is marked `soak`, unless ``-m`` names it; an ``-m`` in addopts would be gone with any other."""
    if "soak" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def seeds() -> int:
    """Every test starts from the same random state, whichever ran before it; the value is the seed."""
    seed = 1234
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (libraries under test use the global generator)
    torch.manual_seed(seed)
    return seed


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[logging.Logger]:
    """Hydra's logging, set up in a test, ends with it: its handler would write to a stream that pytest has closed."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)
