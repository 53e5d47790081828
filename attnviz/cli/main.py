"""The group of commands: loads the one that is called, and turns errors into exit codes.

Nothing heavy is imported here: `attnviz --help` and completion must answer at once.
"""

import gc
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import NoReturn

import click

from attnviz.cli.signals import TerminationError, raise_on_signals
from attnviz.cli.streams import prepare_streams, send_to_nowhere
from attnviz.errors import (
    AttnvizError,
    InputError,
    ModelError,
    OutputError,
    explain_missing_packages,
    is_panic,
    list_missing_packages,
)
from attnviz.escape import escape

COMMANDS = {
    "show": "Draw the attention of a model on a text.",
    "inspect": (
        "Measure what each head does with a text: how widely, how far, and where to it attends."
    ),
    "explain": "Compute the attention of one query of one head step by step, in real numbers.",
    "attribute": (
        "Rank tokens by how much they matter for a prediction, and check that against the model."
    ),
    "intervene": (
        "Change attention in a run of a model, and show maps and predictions before and after."
    ),
    "heads": "Find what each head is: induction, previous token, sink and others.",
    "capture": (
        "Run a model once and keep its attention in a file, to be drawn and questioned later."
    ),
    "export": (
        "Write a report: a figure of every layer and head, a page, data, and a gallery of them."
    ),
    "compare": "Compare two models, two texts or two captures, word by word and head by head.",
    "check": ("Check bounds on attention: a line for each, exit code 1 if one does not hold."),
    "models": "List the models that --model takes.",
    "train": "Train a small language model made of our own attention layer.",
    "help": "Explain the options that many commands share: figures, models; or a command.",
}
QUIET = re.compile("--quiet|-[a-zA-Z]*q[a-zA-Z]*")  # -q may stand among other letters
FAULT, INTERRUPTED, BROKEN_PIPE = 70, 130, 141  # those of signals are in signals.py


class Commands(click.Group):
    """A group whose commands are imported when they are called, and listed without."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command and return it; None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        from attnviz.progress import begin_step

        with begin_step("starting attnviz"):
            command: click.Command = import_module(f"attnviz.cli.{cmd_name}").command
        return command

    def resolve_command(
        self,
        ctx: click.Context,
        args: list[str],
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that arguments name, as click does, which returns it with its arguments.

        For an unknown name, the error suggests similar ones from the table of commands.
        """
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            raise click.exceptions.NoSuchCommand(name, possibilities=list(COMMANDS), ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands in the help, from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        """Run a command, and show on a terminal what it does if that takes long.

        Returns an exit code of its own if the reader of stdout went away.
        """
        from attnviz.cli.progress import show_progress

        try:
            is_quiet = any(map(QUIET.fullmatch, sys.argv))
            with nullcontext() if is_quiet else show_progress():
                return super().invoke(ctx)
        except BrokenPipeError as error:
            abandon_stdout(error)
            return BROKEN_PIPE

    def main(  # type: ignore[override]  # click's has more arguments, which nobody gives
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        **_: object,
    ) -> NoReturn:
        """Run the command line and exit with a code; an error is printed as one line on stderr.

        args: those of the command line; None for the arguments of the process.
        """

        def call() -> object:
            with raise_on_signals():
                return super(Commands, self).main(args, prog_name, standalone_mode=False)

        collect_rarely()
        prepare_streams()
        sys.exit(run_command(call))


def collect_rarely() -> None:
    """Let Python look for cycles of objects less often than it does by itself.

    It looks after every 700 new objects. To import transformers makes a million, which all stay: so
    looking takes a sixth of the time.
    """
    gc.set_threshold(100_000, 50, 100)


def run_command(command: Callable[[], object]) -> int:
    """Run a command and return the exit code of the process, also for every kind of error.

    An error is printed as one line on stderr. The command may return an exit code itself; anything
    else that it returns means 0.
    """
    try:
        if sys.stdout is None:
            raise OutputError("stdout is closed: there is nowhere to write to")
        code = command()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        return complain(error, error.format_message(), error.exit_code)
    except (AttnvizError, TerminationError) as error:
        return complain(error, str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        return complain(error, "interrupted", INTERRUPTED)
    except BrokenPipeError as error:
        abandon_stdout(error)
        return BROKEN_PIPE
    except MemoryError as error:
        return complain(
            error,
            "out of memory: choose fewer layers or heads, or a shorter text",
            InputError.exit_code,
        )
    except OSError as error:
        abandon_stdout(error)
        return complain(
            error,
            f"{error.filename or 'output'}: {error.strerror or error}",
            OutputError.exit_code,
        )
    except BaseException as error:
        return complain_of_other(error)


def complain_of_other(error: BaseException) -> int:
    """Print an error of no class that is expected, and return the exit code.

    It is a fault of ours, unless a package that is not installed is imported, or a library in Rust
    gives up. What asks Python itself to end goes on.
    """
    if is_panic(error):
        return complain(error, f"a file cannot be used: {error}", ModelError.exit_code)
    if not isinstance(error, Exception):
        raise error
    if isinstance(error, ModuleNotFoundError):
        package = str(error.name).partition(".")[0]
        if list_missing_packages(package):
            message = f"this needs {explain_missing_packages([package])}"
            return complain(error, message, ModelError.exit_code)
    description = f"{type(error).__name__}: {error} (see it with --debug)"
    return complain(error, f"a fault of attnviz: {description}", FAULT)


def abandon_stdout(error: OSError) -> None:
    """Send the rest of stdout to nowhere, so that the flush at exit does not fail again.

    error: what failed; if it names a file, stdout was not concerned.
    """
    if error.filename is None:
        send_to_nowhere(sys.stdout)


def complain(error: BaseException, message: str, code: int) -> int:
    """Print an error as one line on stderr, and return its exit code.

    With --debug, print where it was raised before.
    """
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exception(error)
    click.echo(f"error: {' '.join(escape(line) for line in message.splitlines())}", err=True)
    return code


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="attnviz", message="%(package)s %(version)s")
def main() -> None:
    """See where a transformer attends.

    \b
    Examples:
      attnviz show "The cat sat on the mat because it was tired."
      attnviz show --view grid @sample:repeat
      attnviz show "Hello, world" --model bert-base -o hello.png
    """
