"""Options that several commands share, and the types of their values."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from attnviz import selection

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]


class SelectionType(click.ParamType[Any]):
    """Layers or heads; which of them exist is known when the model is."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self.parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse, and turn what is wrong into a usage error."""
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def together(*options: Decorator[Any]) -> Decorator[Any]:
    """Options as one decorator, shown in help in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


text_argument = click.argument("text", required=False)

model_options = together(
    click.option("-m", "--model", default="builtin", show_default=True, help="builtin, a folder, alias or hub id."),
    click.option("--revision", help="Revision of a hub model: a branch, tag or commit."),
    click.option("--offline", is_flag=True, help="Never download a model."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "float16", "bfloat16", "float64"]),
        default="auto",
        show_default=True,
        help="Type to compute in; auto is float32 on a CPU.",
    ),
    click.option("--truncate", is_flag=True, help="Cut a text that is longer than the model reads."),
)

prompt_options = together(
    click.option("--pair", help="A second text, for models of pairs."),
    click.option("--target", help="What the decoder of an encoder-decoder reads. Default: what it writes itself."),
    click.option("--chat", is_flag=True, help="TEXT is a message, or JSON messages, for the model's chat template."),
    click.option("--generate", type=click.IntRange(1), metavar="N", help="Let a causal model write N tokens more."),
)

selection_options = together(
    click.option(
        "-l", "--layers", type=SelectionType("layers", selection.parse), help="Layers: 3, -1, 0,3,7, 2-5 or all."
    ),
    click.option(
        "-H", "--heads", type=SelectionType("heads", selection.parse_heads), help="Heads, likewise, or L5H3,L2H1."
    ),
)

map_option = click.option(
    "--map", "kind", type=click.Choice(["encoder", "decoder", "cross"]), help="Which map of an encoder-decoder."
)

output_options = together(
    click.option("-o", "--output", type=click.Path(), help="Write a file; its suffix says what: .png or .json."),
    click.option("--force", is_flag=True, help="Replace an existing file."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."),
)

screen_options = together(
    click.option("--width", type=click.IntRange(40, 1000), help="Columns to draw on. Default: the terminal's."),
    click.option(
        "--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True, help="Use colour."
    ),
)

verbose_option = click.option("-v", "--verbose", is_flag=True, help="Tell on stderr how exact the weights are.")

talk_options = together(
    click.option("-q", "--quiet", is_flag=True, help="No notes or progress on stderr."),
    click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
)


def note(message: str, quiet: bool) -> None:
    """Talk to the user: on stderr, unless silenced."""
    if not quiet:
        from attnviz.escape import escape

        click.echo(escape(message), err=True)
