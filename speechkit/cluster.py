"""The server as a Ray Serve deployment: `serve run speechkit.cluster:app model=FOLDER replicas=4` (extra: ray).

Each replica has a model of its own. A stream stays on the replica that it came to, for a websocket is one request.
"""

import os
from typing import Any

from ray import serve

from speechkit.errors import InputError
from speechkit.serve import load, tokens
from speechkit.streaming.pool import ThreadPool
from speechkit.streaming.server.app import Application
from speechkit.streaming.server.auth import Auth
from speechkit.streaming.server.limits import Limits
from speechkit.streaming.server.live import describe
from speechkit.streaming.server.metrics import Metrics

OPTIONS = {
    "model": None,
    "replicas": "2",
    "streams": "8",
    "threads": "1",
    "device": "cpu",
    "gpus": "0",
    "tokens": None,
}


def app(options: dict[str, str]) -> Any:
    """The application for ``serve run`` and ``serve.run``.

    Args:
        options: ``model`` (as of `speechkit serve`), ``replicas``, ``streams`` and ``threads`` of each, ``device``,
            ``gpus`` of each, ``tokens`` (a file, else the variable SPEECHKIT_TOKENS).

    Raises:
        InputError: there is no such option, or a number is none.
    """
    unknown = options.keys() - OPTIONS.keys()
    if unknown:
        raise InputError(f"there is no option {sorted(unknown)[0]}: there are {', '.join(OPTIONS)}")
    chosen: dict[str, Any] = OPTIONS | options
    try:
        replicas, streams, threads = (int(chosen[name]) for name in ("replicas", "streams", "threads"))
        gpus = float(chosen["gpus"])
    except ValueError as error:
        raise InputError(f"replicas, streams, threads and gpus must be numbers: {error}") from None
    limits, known = Limits(streams=streams), tokens(chosen["tokens"])

    def build() -> Any:  # Ray takes nothing but a plain function for one that builds
        return replica(chosen["model"], chosen["device"], threads, limits, known)

    deployment: Any = serve.deployment(
        serve.ingress(build)(),
        name="speechkit",
        num_replicas=replicas,
        max_ongoing_requests=streams + 16,  # so that it is the replica that says it is full, and answers /health then
        ray_actor_options={"num_cpus": threads, "num_gpus": gpus},
    )
    return deployment.bind()


def replica(model: str | None, device: str, threads: int, limits: Limits, known: list[str]) -> Any:
    """The ASGI application of one replica, which loads its model."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    engine, metrics = load(model, device, None, None, threads), Metrics()
    pool = ThreadPool(engine, meter=metrics)
    return Application(pool, describe(engine, model), limits, Auth(known), metrics).app
