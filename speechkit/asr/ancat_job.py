"""What training an ANCAT needs around its task beyond that of any recogniser: a Conformer's weights to begin with."""

import inspect
from collections.abc import Mapping
from typing import Any

from speechkit.asr.ancat import AncatEncoder
from speechkit.asr.conformer import ConformerEncoder
from speechkit.asr.job import RecognitionJob
from speechkit.errors import InputError
from speechkit.release import Release, build

OWN = ("left", "right", "mode", "scheduler_dim", "openness")  # what the recipe says; the rest is the Conformer's


class AncatJob(RecognitionJob):
    """As `RecognitionJob`; a run may also begin with a streaming Conformer, to which schedulers are added."""

    def adopt(self, release: Release, model: Mapping[str, Any]) -> Release:
        """A release as a run begins with it: an ANCAT as it is, a causal Conformer with schedulers that begin open.

        Only the schedulers' tensors are made; whatever else is missing or surplus is refused when the model is built.

        Args:
            release: what ``init`` names.
            model: the recipe's section of that name.

        Raises:
            InputError: the release has no Conformer, or one that cannot stream.
        """
        theirs = release.config["model"].get("encoder") or {}
        ancat, conformer = (f"{kind.__module__}.{kind.__qualname__}" for kind in (AncatEncoder, ConformerEncoder))
        if theirs.get("_target_") == ancat:
            return release
        if theirs.get("_target_") != conformer or not theirs.get("causal", True):
            raise InputError(
                f"an ANCAT can only begin with a causal Conformer or another ANCAT: {release.source} is none"
            )
        taken = [name for name in inspect.signature(AncatEncoder).parameters if name not in OWN]
        encoder = {name: theirs[name] for name in taken if name in theirs}
        encoder |= {"_target_": ancat, **{name: model["encoder"][name] for name in OWN}}
        adaptive = build(encoder)
        fresh = {f"encoder.{name}": x for name, x in adaptive.state_dict().items() if name.startswith("schedulers.")}
        config = {**release.config, "model": {**release.config["model"], "encoder": encoder}}
        return release._replace(config=config, tensors={**release.tensors, **fresh})
