"""The mean of checkpoints of several runs that began with the same weights, as a release folder.

    python -m recipes.speechocean.average RELEASE OUT CHECKPOINT...

Runs that share a start stay close enough for their weights to be averaged, which is better than each of them (Wortsman
et al. 2022, "Model soups").
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from speechkit import hub
from speechkit.checkpoints import mean, weights
from speechkit.release import build_model, check_tensors
from speechkit.startup import status


def average(release: Path, out: Path, checkpoints: Sequence[Path]) -> None:
    """Writes the release `out`: configuration and tokenizer of `release`, and the mean of the checkpoints.

    Raises:
        InputError: something is not there, or is of another model.
    """
    found = hub.read(release)
    model = build_model(found)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    states = []
    for path in checkpoints:
        states.append({name.removeprefix("model."): value for name, value in weights(path).items()})
        check_tensors(states[-1], shapes, str(path))
    model.load_state_dict(mean(states))
    names = ", ".join(path.name for path in checkpoints)
    hub.save(out, found.config, model, found.tokenizer, f"# Mean of {names}\n", half=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="The mean of checkpoints, as a release folder in half precision.")
    parser.add_argument("release", type=Path, help="of one of the runs: configuration and tokenizer are taken from it")
    parser.add_argument("out", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    chosen = parser.parse_args(arguments)
    return status(lambda: average(chosen.release, chosen.out, chosen.checkpoints))


if __name__ == "__main__":
    sys.exit(main())
