"""How options are declared: types, sections of the help, groups that become a dataclass."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from typing import TYPE_CHECKING, Generic, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Function = Callable[..., object]
Decorator = Callable[[Function], Function]
Value = TypeVar("Value")
OTHER_SECTION = "Other options"  # last in a help
GIVEN = (  # the field of a group that names those of its options that stand on the command line
    "given"
)


class ParsedType(click.ParamType[Value], Generic[Value]):
    """A value that a function parses, which raises ValueError for what it cannot read."""

    def __init__(self, name: str, parse: Callable[[str], Value]) -> None:
        self.name, self.parse = name, parse

    def convert(
        self,
        value: object,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Value:
        """Parse a text, and turn what is wrong with it into a usage error."""
        if not isinstance(value, str):
            return value  # type: ignore[return-value]  # click hands over a default that is parsed
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def parse_row_count(text: str) -> int | None:
    """Parse how many rows of a table to show; None stands for all. Raises ValueError."""
    if text.strip().lower() == "all":
        return None
    if not (text.strip().isdecimal() and 0 < int(text) < 10**9):
        raise ValueError(f"{text!r} is no number of rows: write 20, or all")
    return int(text)


ROW_COUNT = ParsedType("N or all", parse_row_count)


class SectionedCommand(click.Command):
    """A command whose help shows its options in sections, and those of a topic by name only."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections in the order of their first options, those without a section last."""
        sections: dict[str, list[click.Option]] = {}
        for option in self.get_params(ctx):
            if isinstance(option, click.Option) and option.get_help_record(ctx):
                section = getattr(option, "section", OTHER_SECTION)
                sections.setdefault(section, []).append(option)
        for title in sorted(sections, key=lambda title: title == OTHER_SECTION):
            with formatter.section(title):
                write_options(sections[title], ctx, formatter)


def write_options(
    options: Sequence[click.Option],
    ctx: click.Context,
    formatter: click.HelpFormatter,
) -> None:
    """Write options with their help, and the names of those that `attnviz help` explains."""
    topics: dict[str, list[str]] = {}
    records: list[tuple[str, str]] = []
    for option in options:
        topic = getattr(option, "topic", None)
        record = option.get_help_record(ctx)
        if topic is not None:
            topics.setdefault(topic, []).append(max(option.opts, key=len))
        elif record is not None:
            records.append(record)
    if records:
        formatter.write_dl(records)
    for topic, flags in topics.items():
        formatter.write_text(f"{', '.join(flags)}: see attnviz help {topic}")


def option_section(title: str, *options: Decorator, topic: str | None = None) -> Decorator:
    """Make one decorator of options that the help shows in this order, in a section of that title.

    topic: of `attnviz help`, which explains them in place of the help of each command.
    """

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
            parameter = function.__click_params__[-1]  # type: ignore[attr-defined]
            parameter.section, parameter.topic = title, topic
        return function

    return decorate


def option_group(name: str, group: "type[DataclassInstance]", *decorators: Decorator) -> Decorator:
    """Make one decorator of options, or of other groups, whose values a command gets as one object.

    name: the parameter of the command. group: the frozen dataclass of the values, whose fields have
    the names of the options; a field without an option keeps its default. A field ``given`` gets
    the names of those options of the group that stand on the command line.
    """
    names = {field.name for field in fields(group)}

    def decorate(function: Function) -> Function:
        @wraps(function)
        def command(*args: object, **values: object) -> object:
            own = {field: values.pop(field) for field in names if field in values}
            if GIVEN in names:
                own[GIVEN] = list_given_names() & names
            values[name] = group(**own)
            return function(*args, **values)

        decorated: Function = command
        for decorator in reversed(decorators):
            decorated = decorator(decorated)
        return decorated

    return decorate


def list_given_names() -> frozenset[str]:
    """Return the names of the options and arguments of the running command that were given."""
    context = click.get_current_context()
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(
        name for name, source in sources.items() if source not in (None, ParameterSource.DEFAULT)
    )


def find_option_flag(name: str) -> str:
    """Return the long flag of an option of the running command, by its name."""
    for parameter in click.get_current_context().command.params:
        if parameter.name == name:
            return max(parameter.opts, key=len)
    raise KeyError(name)


def escape_value(
    ctx: click.Context,  # noqa: ARG001 - click calls it so
    param: click.Parameter,  # noqa: ARG001
    value: str | None,
) -> str | None:
    """Return a text of the user's own, with what could steer a terminal written out."""
    from attnviz.escape import escape

    return value and escape(value)


def require_token(
    ctx: click.Context,  # noqa: ARG001 - click calls it so
    param: click.Parameter,  # noqa: ARG001
    value: str | None,
) -> str | None:
    """Return a token as it was written, spaces too. Raises a usage error for an empty one."""
    if value == "":
        raise click.BadParameter("a token is needed")
    return value
