"""The mean of checkpoints of several runs that began with the same weights, as a release folder.

    python -m recipes.speechocean.average RELEASE OUT CHECKPOINT...

Runs that share a start stay close enough for their weights to be averaged, which is better than each of them (Wortsman
et al. 2022, "Model soups").
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from speechkit import hub
from speechkit.checkpoints import mean, weights
from speechkit.release import build_model, check_tensors


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the release."""
    parser = argparse.ArgumentParser(description="The mean of checkpoints, as a release folder in half precision.")
    parser.add_argument("release", type=Path, help="of one of the runs: configuration and tokenizer are taken from it")
    parser.add_argument("out", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    chosen = parser.parse_args(arguments)
    release = hub.read(chosen.release)
    model = build_model(release)
    states = [{name.removeprefix("model."): value for name, value in weights(p).items()} for p in chosen.checkpoints]
    for path, state in zip(chosen.checkpoints, states, strict=True):
        check_tensors(state, {name: value.shape for name, value in model.state_dict().items()}, str(path))
    model.load_state_dict(mean(states))
    names = ", ".join(path.name for path in chosen.checkpoints)
    hub.save(chosen.out, release.config, model, release.tokenizer, f"# Mean of {names}\n", half=True)


if __name__ == "__main__":
    main()
