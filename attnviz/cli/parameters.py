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
GIVEN_FIELD = "given"
"""The field of a group for the names of those of its options that stand on the command line."""


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
        """Parse a text. What the parser refuses with a ValueError becomes a usage error."""
        if not isinstance(value, str):
            return value  # type: ignore[return-value]  # click hands over a default that is parsed
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def parse_row_count(text: str) -> int | None:
    """Parse a number of rows of a table, or ``all``, which is None. Raises ValueError."""
    if text.strip().lower() == "all":
        return None
    if not (text.strip().isdecimal() and 0 < int(text) < 10**9):
        raise ValueError(f"{text!r} is no number of rows: write 20, or all")
    return int(text)


ROW_COUNT = ParsedType("N or all", parse_row_count)


class SectionedCommand(click.Command):
    """A command whose help shows its options in sections, and those of a topic by name only."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of the help in sections, each under its title.

        Sections stand in the order of their first options; options without a section come last.
        """
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
    """Write the help of some options.

    An option of a topic of `attnviz help` stands in a line of names that refers to the topic.
    """
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


def option_section(
    title: str,
    *options: Decorator,
    topic: str | None = None,
) -> Decorator:
    """Make one decorator of several, whose options stand in one section of the help, in this order.

    title: of the section. options: decorators of click, each of one option. topic: the topic of
    `attnviz help` that explains the options, so that the help of a command only names them.
    """

    def decorate(function: Function) -> Function:
        for option in reversed(options):  # as stacked decorators are applied
            function = option(function)
            parameter = function.__click_params__[-1]  # type: ignore[attr-defined]
            parameter.section, parameter.topic = title, topic
        return function

    return decorate


def option_group(
    name: str,
    group: "type[DataclassInstance]",
    *decorators: Decorator,
) -> Decorator:
    """Make one decorator of several, whose options a command gets as one object.

    name: the parameter by which the command gets the object. group: the class of the object, a
    frozen dataclass. Each option, or group of options below this one, has its value in the field of
    its name, and a field without an option keeps its default. A field ``given`` gets the names of
    those options of the group that stand on the command line. decorators: those of the options.
    """
    names = {field.name for field in fields(group)}

    def decorate(function: Function) -> Function:
        @wraps(function)
        def command(*args: object, **values: object) -> object:
            group_values = {field: values.pop(field) for field in names if field in values}
            if GIVEN_FIELD in names:
                group_values[GIVEN_FIELD] = list_given_names() & names
            values[name] = group(**group_values)
            return function(*args, **values)

        decorated: Function = command
        for decorator in reversed(decorators):
            decorated = decorator(decorated)
        return decorated

    return decorate


def list_given_names() -> frozenset[str]:
    """Return the names of those parameters of the running command that were not left out."""
    context = click.get_current_context()
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(
        name for name, source in sources.items() if source not in (None, ParameterSource.DEFAULT)
    )


def find_option_flag(name: str) -> str:
    """Return the longest flag of an option of the running command, such as ``--layers``.

    name: that of its parameter. Raises KeyError if the command has no such option.
    """
    for parameter in click.get_current_context().command.params:
        if parameter.name == name:
            return max(parameter.opts, key=len)
    raise KeyError(name)


def escape_value(
    ctx: click.Context,  # noqa: ARG001 - click calls it so
    param: click.Parameter,
    value: str | None,
) -> str | None:
    """Return the text of an option with hostile characters, which could steer a terminal, escaped.

    It is a callback of click. Raises InputError for a text that is not UTF-8.
    """
    from attnviz.escape import escape, require_unicode

    if not value:
        return value
    require_unicode(value, f"the text of {param.opts[0]}")
    return escape(value)


def require_token(
    ctx: click.Context,  # noqa: ARG001 - click calls it so
    param: click.Parameter,  # noqa: ARG001
    value: str | None,
) -> str | None:
    """Return the value of an option unchanged. Raises a usage error for an empty text.

    It is a callback of click, for a token of which white space may be a part.
    """
    if value == "":
        raise click.BadParameter("a token is needed")
    return value
