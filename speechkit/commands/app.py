"""The subcommands of `speechkit`: quick to start, for what one of them needs is imported when it runs."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from speechkit import __version__
from speechkit.commands import codec
from speechkit.commands.doctor import doctor
from speechkit.commands.export import export
from speechkit.commands.stream import stream
from speechkit.commands.transcribe import transcribe
from speechkit.errors import InputError
from speechkit.startup import CLOSED, INTERRUPTED, ctrl_c_raises, starting

PASSED_ON: dict[str, Any] = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
}

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="Train, evaluate and use speech and audio models, as streams or whole.",
)  # fmt: skip


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Bad input ends a command with one sentence and exit code 2 (SPEECHKIT_DEBUG=1 shows where), Ctrl-C with 130."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        try:
            ctrl_c_raises()
            return command(*args, **options)
        except InputError as error:
            if os.environ.get("SPEECHKIT_DEBUG", "0") not in ("", "0"):
                raise
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print(file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # whoever read the output has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(CLOSED) from None

    return run


def _hydra(name: str, context: typer.Context) -> None:
    """Runs a Hydra entry point, which reads its words from sys.argv."""
    import importlib

    before = sys.argv
    sys.argv = [f"speechkit {name}", *context.args]
    try:
        with starting():
            module = importlib.import_module(f"speechkit.{name}")
        module.main()
    finally:
        sys.argv = before


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command(**PASSED_ON)
@guarded
def train(context: typer.Context) -> None:
    """Train a recipe.

    speechkit train recipe=NAME [option=value ...]
    """
    _hydra("train", context)


@app.command("eval", **PASSED_ON)
@guarded
def evaluate(context: typer.Context) -> None:
    """Score a model on a corpus.

    speechkit eval model=FOLDER data.root=CORPUS [option=value ...]
    """
    _hydra("eval", context)


@app.command(**PASSED_ON)
@guarded
def serve(context: typer.Context) -> None:
    """Serve a recogniser to many streams.

    speechkit serve [model=FOLDER] [option=value ...]
    """
    _hydra("serve", context)


app.command()(guarded(transcribe))
app.command()(guarded(stream))
app.command()(guarded(export))

codecs = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Turn audio into tokens, and back.")
for part in (codec.encode, codec.decode, codec.info, codec.roundtrip):
    codecs.command()(guarded(part))
app.add_typer(codecs, name="codec")


@app.command(**PASSED_ON)
@guarded
def bench(context: typer.Context) -> None:
    """Measure speed and memory.

    Real-time factor, time per chunk, bytes per stream.
    """
    with starting():
        from speechkit.commands.bench import bench

    inner = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    inner.command()(guarded(bench))
    inner(context.args, prog_name="speechkit bench")


app.command()(guarded(doctor))
