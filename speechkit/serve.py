"""`python -m speechkit.serve [model=FOLDER]`: a recogniser for many streams at once, over websockets and HTTP."""

if __name__ == "__main__":  # Ctrl-C while all of this is imported
    from speechkit.startup import begin

    begin()

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from speechkit.commands.loading import recogniser, use_threads
from speechkit.configuration import entry_point, rename_words
from speechkit.construction import built, check_types
from speechkit.errors import InputError
from speechkit.streaming import capacity
from speechkit.streaming.engine import Engine
from speechkit.streaming.pool import Pool, ThreadPool
from speechkit.streaming.processes import ProcessPool
from speechkit.streaming.server.app import Application
from speechkit.streaming.server.auth import Auth
from speechkit.streaming.server.limits import Limits
from speechkit.streaming.server.live import describe
from speechkit.streaming.server.log import set_up
from speechkit.streaming.server.metrics import Metrics
from speechkit.streaming.server.run import Address, check_certificate, serve

LEVELS = ("debug", "info", "warning", "error")
LOCAL = ("127.0.0.1", "localhost", "::1")
OPTIONS: dict[str, Any] = {
    "release": str | None, "second_model": str | None, "device": str, "decoder": str | None,
    "latency_ms": float | None, "host": str, "port": int, "certificate": str | None, "key": str | None,
    "tokens": str | None, "log": str, "log_text": bool, "workers": int, "threads": int | None, "batch": int,
    "wait_ms": float,
}  # fmt: skip


def load(
    release: str | None,
    device: str,
    decoder: str | None,
    latency_ms: float | None,
    threads: int,
    log: str = "info",
    second_model: str | None = None,
) -> Engine:
    """The engine of a worker, whose log is set up too.

    Raises:
        InputError: there is no such model, decoder or look-ahead, or the second model cannot be beside it.
    """
    set_up(log)
    use_threads(threads)
    second = None if second_model is None else recogniser(second_model, device)
    engine = Engine(recogniser(release, device), decoder, latency_ms, second)
    engine.warm()
    return engine


@entry_point("serve")
def _main(config: DictConfig) -> None:
    if not OmegaConf.is_dict(config.limits):
        raise InputError(f"limits are set one by one, as in limits.streams=8, got limits={config.limits}")
    measured = config.limits.get("streams", 1) is None
    if measured:
        config.limits.streams = 1  # until there is a model to measure
    check_types(config, OPTIONS)
    if config.log not in LEVELS:
        raise InputError(f"log must be one of {', '.join(LEVELS)}, got {config.log}")
    if (config.certificate is None) != (config.key is None):
        raise InputError("TLS takes both certificate=FILE and key=FILE")
    limits: Limits = built(config, "limits")
    auth = Auth(tokens(config.tokens))
    address = Address(config.host, config.port, config.certificate, config.key)
    check_certificate(address)
    threads = config.threads or max(1, (os.cpu_count() or 1) // max(1, config.workers))
    loading = functools.partial(
        load,
        config.release,
        config.device,
        config.decoder,
        config.latency_ms,
        threads,
        config.log,
        config.second_model,
    )
    engine, metrics = loading(), Metrics()
    model = describe(engine, config.release)
    if measured:
        limits = dataclasses.replace(
            limits, streams=capacity.streams(engine, max(1, config.batch)) * max(1, config.workers)
        )
    pool: Pool
    if config.workers:
        del engine  # each process has its own
        pool = ProcessPool(config.workers, loading, config.batch, config.wait_ms, metrics)
    else:
        pool = ThreadPool(engine, config.batch, config.wait_ms, metrics)
    application = Application(pool, model, limits, auth, metrics)
    application.hall.log_text = config.log_text
    notes = [f"at most {limits.streams} streams, as measured just now: limits.streams=N sets it"] * measured
    serve(application.app, application.hall, address, limits, notes + warnings(address, auth))


def tokens(file: str | None) -> list[str]:
    """The bearer tokens of a file, or of the environment.

    Raises:
        InputError: the file cannot be read or has none.
    """
    if file is None:
        return [token.strip() for token in os.environ.get("SPEECHKIT_TOKENS", "").split(",") if token.strip()]
    try:
        found = [line.strip() for line in Path(file).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the tokens cannot be read from {file}: {getattr(error, 'strerror', None) or error}"
        ) from None
    if not found:
        raise InputError(f"{file} holds no token")
    return found


def warnings(address: Address, auth: Auth) -> list[str]:
    """What is open to the world."""
    if address.host in LOCAL:
        return []
    if auth.open:
        return ["warning: other machines may use this server without a token: tokens=FILE asks for one"]
    if address.certificate is None:
        return ["warning: tokens and audio cross the network unencrypted: TLS in front, or certificate=FILE key=FILE"]
    return []


def main() -> None:
    """Serves a model."""
    rename_words(model="release")
    _main()


if __name__ == "__main__":
    main()
