"""What the package logs while a command runs, as lines on stderr."""

import logging

import click

from attnviz.cli.talk import Talk


class LogLines(logging.Handler):
    """Print the records of a logger as lines on stderr, unless the command is silenced."""

    def __init__(self, context: click.Context) -> None:
        super().__init__(logging.INFO)
        self.context = context

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        quiet = bool(self.context.params.get("quiet"))
        Talk(quiet=quiet).note(record.getMessage())


def print_log(context: click.Context) -> None:
    """Print what the package logs until a command is done."""
    logger = logging.getLogger("attnviz")
    level = logger.level
    lines = LogLines(context)

    def end() -> None:
        logger.removeHandler(lines)
        logger.setLevel(level)

    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    context.call_on_close(end)
