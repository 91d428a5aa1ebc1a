"""`python -m speechkit.train recipe=NAME`: data, training, scores and a release folder."""

if __name__ == "__main__":  # Ctrl-C while all of this is imported
    from speechkit.startup import begin

    begin()

import json
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_class
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from speechkit import hub
from speechkit.builder import target
from speechkit.checkpoints import averaged, first_rank_first, last_checkpoint, weights, writable
from speechkit.configuration import adapted, entry_point
from speechkit.construction import building, built, check_types, made_for, refusal
from speechkit.errors import InputError
from speechkit.files import replace
from speechkit.release import API, build_model, check_tensors
from speechkit.startup import INTERRUPTED, TERMINATED

OPTIONS: dict[str, Any] = {"seed": int, "out": str, "resume": str | None, "init": str | None}
RELEASED = ("name", "seed", "vocab_size", "model", "job", "task", "optim", "trainer")  # the rest is of one machine
console = Console()


class Stages:
    """Wall and CPU seconds of the parts of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times one stage and says that it begins."""
        console.print(f"[bold]{name}[/bold]")
        wall, cpu = time.monotonic(), time.process_time()
        yield
        self.seconds[name] = (time.monotonic() - wall, time.process_time() - cpu)

    def table(self) -> Table:
        """Seconds per stage."""
        table = Table("stage", "wall s", "CPU s (main process)", title="Time")
        for name, (wall, cpu) in self.seconds.items():
            table.add_row(name, f"{wall:.1f}", f"{cpu:.1f}")
        return table


@entry_point("train")
def main(config: DictConfig) -> None:
    """Composes a recipe and runs it."""
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's use of PyTorch, which no user can change
    warnings.filterwarnings("ignore", "You have overridden `on_before_batch_transfer`")  # meant so
    warnings.filterwarnings("ignore", ".*no pre-optimization state was saved")  # where two optimizers take turns
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_of_use)
    console.quiet = rank_zero_only.rank > 0  # type: ignore[attr-defined]
    config, notes = adapted(config, torch.cuda.is_available())
    _alone(config.trainer)
    if int(os.environ.get("WORLD_SIZE") or 1) > 1 and not os.environ.get("SPEECHKIT_RUN"):
        _same_folder(HydraConfig.get().overrides.task)
    _check(config)
    with _run_folder(config) as out:
        for note in notes:
            console.print(note, highlight=False)
        train(config, out)
    if config.data.root is None:
        console.print("this was the embedded corpus; for a real one add data.root=/path/to/corpus")


@contextmanager
def _run_folder(config: DictConfig) -> Iterator[Path]:
    """The folder of a run, which the processes that Lightning starts inherit; of a sweep's run one inside `out`."""
    inherited, job = os.environ.get("SPEECHKIT_RUN"), HydraConfig.get()
    sweep = job.mode == RunMode.MULTIRUN
    if sweep and config.resume:
        raise InputError("a sweep begins new runs: go on with one of its runs without -m")
    own = Path(config.out, str(job.job.num)) if sweep else Path(config.out)
    if not inherited and not config.resume and (any(own.glob("checkpoints/*.ckpt")) or (own / "release").exists()):
        raise InputError(f"{own} holds a run: resume={own} goes on with it, another out=FOLDER begins a new one")
    out = writable(Path(inherited or config.resume or own))
    os.environ["SPEECHKIT_RUN"] = config.out = str(out)
    try:
        yield out
    finally:
        if not inherited:  # the next run of a sweep is in this process
            del os.environ["SPEECHKIT_RUN"]


def _alone(trainer: DictConfig) -> None:
    """A recipe's way to synchronise processes would cost a single one a good part of its time."""
    devices = torch.cuda.device_count() if trainer.get("devices", "auto") in ("auto", -1, "-1") else trainer.devices
    several = int(os.environ.get("WORLD_SIZE") or 1) > 1 or trainer.get("num_nodes", 1) > 1
    if str(trainer.get("strategy")).startswith("ddp") and devices in (0, 1, "1") and not several:
        trainer.strategy = "auto"


def _check(config: DictConfig) -> None:
    """Refuses what can be seen to be wrong before anything is done."""
    check_types(_chosen(config), OPTIONS)
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed must be a whole number from 0 to {2**32 - 1}, got {config.seed}")
    if not config.out:
        raise InputError("name the folder of the run: out=FOLDER")
    if config.resume and not (Path(config.resume) / "config.yaml").is_file():
        raise InputError(f"there is no run to go on with in {config.resume}: it holds no config.yaml")


def _of_use(record: logging.LogRecord) -> bool:
    """Whether a line of Lightning says something of this run: no advertisement, no default, not the absence of TPUs."""
    noise = ("\N{ELECTRIC LIGHT BULB} Tip:", "TPU available: False", "`weights_only` was not set")
    return not record.getMessage().startswith(noise)


def _same_folder(words: Sequence[str]) -> None:
    """Processes that torchrun starts at different seconds would each name a folder of their own."""
    if not any(word.startswith(("out=", "resume=")) for word in words):
        raise InputError("several processes share one run folder: name it with out=FOLDER")


def train(config: DictConfig, out: Path) -> None:
    """Runs a composed recipe; everything that it writes goes to `out`."""
    stages = Stages()
    torch.set_float32_matmul_precision("high")  # tf32 on GPUs
    seed_everything(config.seed, verbose=False)
    trainer = built(config, "trainer", callbacks=_values(config, "callbacks"), logger=_values(config, "logger"))
    with stages("data"), first_rank_first(out):
        job = built(config, "job")
        start = _start(config, job)  # first: the data has the model's rate
        data = built(config, "data")
        data.prepare_data()
        config.merge_with(job.prepare(data, out))
    if config.resume:
        _check_same_model(config, out)
    with building("task"):
        task = built(config, "task")(model=start or built(config, "model"), **job.task_arguments())
    size = sum(p.numel() for p in task.parameters())
    console.print(f"{config.name}: {size / 1e6:.2f} M parameters, run folder {out}")
    chosen = _chosen(config)
    OmegaConf.save(chosen, out / "config.yaml", resolve=True)
    with stages("training"):
        _fit(trainer, task, data, out, bool(config.resume))
    with stages("averaging"):
        averaged(trainer, task, data)
    if not trainer.is_global_zero:
        return
    _check_finite(task.model)
    task.to(trainer.strategy.root_device).eval()
    release = out / "release"
    resolved: dict[str, Any] = OmegaConf.to_container(chosen, resolve=True)  # type: ignore[assignment]
    released = {key: resolved[key] for key in RELEASED if resolved[key] is not None}
    job.release(release, released, task.model, [])  # an interrupted evaluation does not cost the model
    with stages("evaluation"):
        scores = job.evaluate(task.model, data, list(dict.fromkeys([*data.valid, *data.test])))
    job.release(release, released, task.model, scores)
    replace(out / "scores.json", json.dumps([score.as_dict() for score in scores], indent=1).encode())
    console.print(job.table(scores), stages.table())
    console.print("\n".join([f"release folder: {release}", *job.uses(release)]), soft_wrap=True)


def _chosen(config: DictConfig) -> DictConfig:
    """Without the blocks of which `adapted` took what applies."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key not in ("cpu", "mini")])


def _start(config: DictConfig, job: Any) -> Any:
    """The model of `init`, whose configuration and tokenizer the run then has; None where there is no `init`."""
    if config.init is None:
        return None
    release = hub.read(config.init)
    theirs, ours = (str(api).rpartition(".")[2] for api in (release.config.get("api") or API, job.api))
    if theirs != ours:
        raise InputError(
            f"{config.name} cannot begin with {config.init}: that is a {theirs}, and the recipe trains a {ours}"
        )
    if hasattr(job, "adopt"):  # models that may also begin with those of another kind
        release = job.adopt(release, config.model)
    found, trained = target(release.config["model"].get("_target_")), _trained(str(config.task["_target_"]))
    if not issubclass(found, trained):
        raise InputError(
            f"{config.name} cannot begin with {config.init}: that is a {found.__name__}, and the recipe trains a "
            f"{trained.__name__}"
        )
    release.config["model"] = _with_own_options(release.config["model"])
    config.model = release.config["model"]
    if release.tokenizer is not None:
        job.tokenizer = release.tokenizer
    if any(release.training.values()):
        job.published = release.training
    return build_model(release).train()


def _trained(task: str) -> type:
    """The kind of model that a task trains, as its annotation says."""
    hint = get_type_hints(get_class(task).__init__).get("model")  # type: ignore[misc]
    return hint if isinstance(hint, type) else object


def _check_same_model(config: DictConfig, out: Path) -> None:
    """Refuses to go on with a run as another model, whose sizes may even fit."""
    try:
        before = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"the run in {out} cannot be gone on with: its config.yaml is damaged") from error
    found = _difference(before, {"model": OmegaConf.to_container(config.model, resolve=True)}, "")
    if found:
        raise InputError(f"the run in {out} has another model: {found}; init=RELEASE begins a new run with its weights")


def _difference(before: Any, now: Any, name: str) -> str | None:
    """The first value that both configurations have and that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        inner = (_difference(before[key], now[key], f"{name}.{key}".lstrip(".")) for key in before if key in now)
        return next((found for found in inner if found), None)
    return None if before == now or not name else f"{name} is {before} there and {now} here"


def _check_finite(model: torch.nn.Module) -> None:
    """Refuses to release what no command would load."""
    if not all(bool(x.isfinite().all()) for x in model.parameters()):
        raise InputError("the training diverged: weights are NaN or Inf, and no release was written; try a lower rate")


def _with_own_options(model: dict[str, Any]) -> dict[str, Any]:
    """The model of a release with what the command line says of it, such as its dropout."""
    words = [word.lstrip("+") for word in HydraConfig.get().overrides.task]
    if any(word.startswith("model=") for word in words):
        raise InputError("the model of init=... has its sizes: leave model=... out (model.option=... can stay)")
    own = OmegaConf.from_dotlist([word for word in words if word.startswith("model.")])
    found = OmegaConf.create({"model": model})
    OmegaConf.set_struct(found, True)
    found.merge_with(own)
    merged: dict[str, Any] = OmegaConf.to_container(found.model)  # type: ignore[assignment]
    return merged


def _fit(trainer: Trainer, task: LightningModule, data: Any, out: Path, resume: bool) -> None:
    """Trains; Ctrl-C and SIGTERM leave a checkpoint and the exit codes that shells have for them."""
    code = INTERRUPTED
    try:
        trainer.fit(task, datamodule=data, ckpt_path=_resumed(out, task) if resume else None, weights_only=True)
        if not trainer.interrupted:
            trainer.save_checkpoint(out / "checkpoints" / "last.ckpt")  # also of runs that end before the first was due
    except (KeyboardInterrupt, SystemExit) as error:
        if not trainer.interrupted:
            raise
        if isinstance(error, SIGTERMException):
            code = TERMINATED
    except OSError as error:
        raise InputError(f"training stopped: {error}; the checkpoints written before are whole") from error
    except (ValueError, TypeError, MisconfigurationException) as error:
        part = None if isinstance(error, InputError) else made_for(error)
        if part is None:
            raise
        raise refusal(part, error) from error
    if trainer.interrupted:
        if trainer.is_global_zero:
            words = [word for word in sys.argv[1:] if not word.startswith(("resume=", "out="))]
            again = shlex.join(["python", "-m", "speechkit.train", *words, f"resume={out}"])
            console.print(f"interrupted at step {trainer.global_step}; go on with: {again}", soft_wrap=True)
        sys.exit(code)


def _resumed(out: Path, task: LightningModule) -> Path | None:
    """The checkpoint to go on from, which must be of this very model."""
    path = last_checkpoint(out)
    if path is None:
        console.print(f"{out} holds no checkpoint yet: training begins at step 0", soft_wrap=True)
    else:
        check_tensors(weights(path), {name: value.shape for name, value in task.state_dict().items()}, str(path))
    return path


def _values(config: DictConfig, group: str) -> list[Any]:
    return [built(config, f"{group}.{name}") for name, item in (config[group] or {}).items() if item is not None]


if __name__ == "__main__":
    main()
