"""The `speechkit` command, from the moment on at which Ctrl-C can be heard."""

from speechkit.startup import begin, ctrl_c_raises, printing


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits: 0, 2 for bad input, 130 for Ctrl-C."""
    begin()
    try:
        from speechkit.commands.app import app

        with printing():
            app(arguments, prog_name="speechkit")
    finally:
        ctrl_c_raises()  # where no command did, as for --help
