"""Options that several commands share, and the types of their values."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from attnviz import selection

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]
OTHER = "Other options"  # last in a help
FIGURES = "png", "svg", "pdf"
DATA = "json", "csv", "npz", "md"
FORMATS = (*FIGURES, "html", *DATA)
BINARY = "png", "pdf", "npz"


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


def parse_top(text: str) -> int | None:
    """Parse how many rows of a table; None for all. Raises ValueError."""
    if text.strip().lower() == "all":
        return None
    if not (text.strip().isdecimal() and 0 < int(text) < 10**9):
        raise ValueError(f"{text!r} is no number of rows: write 20, or all")
    return int(text)


TOP = SelectionType("N or all", parse_top)


class Sectioned(click.Command):
    """A command whose help shows its options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections in the order of their first options, those of none at last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx) if isinstance(option, click.Option) else None
            if record:
                sections.setdefault(getattr(option, "section", OTHER), []).append(record)
        for title in sorted(sections, key=lambda title: title == OTHER):
            with formatter.section(title):
                formatter.write_dl(sections[title])


def together(section: str, *options: Decorator[Any]) -> Decorator[Any]:
    """Options as one decorator, shown in help in this order, in a section of that name."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
            command.__click_params__[-1].section = section
        return command

    return decorate


def shown_safely(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:  # noqa: ARG001
    """Text of the user's own, with what could steer a terminal written out."""
    from attnviz.escape import escape

    return value and escape(value)


def exactly(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:  # noqa: ARG001
    """A token as it was written, spaces too, which there must be. Raises a usage error."""
    if value == "":
        raise click.BadParameter("a token is needed")
    return value


text_argument = click.argument("text", required=False)
texts_argument = click.argument("texts", nargs=-1, metavar="[TEXT]...")
lines_option = together(
    "What it reads", click.option("--lines", is_flag=True, help="Each line of a text is a text of its own.")
)

run_options = together(
    "Model",
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


def model_options(command: Any) -> Any:
    """The options of a command that runs one model."""
    named = together(
        "Model",
        click.option("-m", "--model", default="builtin", show_default=True, help="builtin, a folder, alias or hub id."),
        click.option("--revision", help="Revision of a hub model: a branch, tag or commit."),
        click.option("--tokenizer", metavar="FOLDER", help="A tokenizer, in place of that beside the model."),
        click.option(
            "--adapter", metavar="FOLDER", help="A PEFT adapter to apply. Default model: what it was made for."
        ),
    )
    return named(run_options(command))


def models_options(command: Any) -> Any:
    """The options of a command that runs one model or two."""
    named = together(
        "Model",
        click.option(
            "-m",
            "--model",
            "models",
            multiple=True,
            help="A model: builtin, a folder, alias or hub id. Given twice, both; once, it and builtin.",
        ),
        click.option("--revision", "revisions", multiple=True, help="Revision of a hub model; given twice, of each."),
        click.option("--tokenizer", "tokenizers", metavar="FOLDER", multiple=True, help="A tokenizer, likewise."),
        click.option("--adapter", "adapters", metavar="FOLDER", multiple=True, help="A PEFT adapter, likewise."),
    )
    return named(run_options(command))


text_options = together(
    "What it reads",
    click.option("--pair", help="A second text, for models of pairs."),
    click.option("--chat", is_flag=True, help="TEXT is a message, or JSON messages, for the model's chat template."),
)
decoder_option = together(
    "What it reads",
    click.option("--target", help="What the decoder of an encoder-decoder reads. Default: what it writes itself."),
)


def prompt_options(command: Any) -> Any:
    """The options of a command on all that a model can read and write."""
    written = together(
        "What it reads",
        click.option("--generate", type=click.IntRange(1), metavar="N", help="Let a causal model write N tokens more."),
    )
    return text_options(decoder_option(written(command)))


selection_options = together(
    "Layers and heads",
    click.option(
        "-l", "--layers", type=SelectionType("layers", selection.parse), help="Layers: 3, -1, 0,3,7, 2-5 or all."
    ),
    click.option(
        "-H", "--heads", type=SelectionType("heads", selection.parse_heads), help="Heads, likewise, or L5H3,L2H1."
    ),
)

reduce_option = together(
    "Layers and heads",
    click.option(
        "--reduce",
        "how",
        type=click.Choice(["mean", "max", "sum"]),
        help="Merge the chosen heads of a layer into one; sum, of norms: what they move together.",
    ),
)

map_option = together(
    "Layers and heads",
    click.option(
        "--map", "kind", type=click.Choice(["encoder", "decoder", "cross"]), help="Which map of an encoder-decoder."
    ),
)

target_option = together(
    "Numbers",
    click.option(
        "--target-token",
        metavar="TOKEN",
        callback=exactly,
        help="The prediction asked about: one token, or a class. Default: the likeliest.",
    ),
)

weights_option = together(
    "Numbers",
    click.option(
        "--weights",
        "method",
        type=click.Choice(["attention", "norm", "gradient", "chefer", "rollout", "scores"]),
        default="attention",
        show_default=True,
        help="What is shown: attention weights; how long the vectors are that they move; what they add to a "
        "prediction, by head or through the layers; attention through the layers; scores before the softmax.",
    ),
)

source_option = together(
    "What it reads",
    click.option("--from", "source", metavar="FILE", help="A capture or arrays: .attn, .npz, .safetensors or .json."),
)

words_option = together(
    "What it reads",
    click.option("--words", is_flag=True, help="Merge the pieces of words: keys summed, queries averaged."),
)

view_options = together(
    "View",
    click.option(
        "--view",
        type=click.Choice(["heatmap", "grid", "tokens", "rows"]),
        help="A picture a head; all heads as thumbnails; the text coloured by one --token; that token in all heads.",
    ),
    click.option(
        "--token", type=SelectionType("N or WORD", selection.parse_token), help="The token of --view tokens and rows."
    ),
    click.option("--incoming", is_flag=True, help="With --view tokens: what attends to the token, not what it does."),
    click.option("--rows", type=SelectionType("A:B", selection.parse_window), help="Only these queries, in full."),
    click.option("--cols", "columns", type=SelectionType("A:B", selection.parse_window), help="Only these keys."),
)

look_options = together(
    "Look",
    click.option(
        "--special",
        type=click.Choice(["keep", "drop", "renormalise"]),
        default="keep",
        show_default=True,
        help="Leave special tokens out; renormalise: rows sum to 1 again.",
    ),
    click.option(
        "--range",
        type=click.Choice(["auto", "full"]),
        default="auto",
        show_default=True,
        help="Where colours end: before the sinks, or at the largest weight.",
    ),
    click.option(
        "--scale",
        type=click.Choice(["sqrt", "linear"]),
        default="sqrt",
        show_default=True,
        help="Of the colours.",
    ),
    click.option(
        "--cmap",
        type=click.Choice(["viridis", "cividis", "magma", "gray"]),
        default="viridis",
        show_default=True,
        help="The colours.",
    ),
)

title_option = together("Look", click.option("--title", callback=shown_safely, help="A title of your own."))

figure_options = together(
    "Figures and pages",
    click.option("--style", default="screen", show_default=True, help="paper, slide, screen or a .mplstyle file."),
    click.option("--inches", type=click.FloatRange(1, 50), help="Width of a figure: 3.25 a column, 6.75 a page."),
    click.option("--dpi", type=click.IntRange(30, 1200), help="Dots per inch of a .png."),
    click.option("--transparent", is_flag=True, help="No background in figures."),
    click.option("--exact", is_flag=True, help="A .html with weights to 0.0005, not 0.004; it is larger."),
)

output_options = together(
    "Output",
    click.option("-o", "--output", type=click.Path(), help="Write a file, by its suffix; - for stdout."),
    click.option(
        "--format", "form", type=click.Choice(FORMATS), help="The format, where no suffix says it, as with -o -."
    ),
    click.option("--force", is_flag=True, help="Replace an existing file."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."),
)

screen_options = together(
    "Screen",
    click.option("--width", type=click.IntRange(40, 4000), help="Columns to draw on. Default: the terminal's."),
    click.option("--full", is_flag=True, help="A cell for every token, however wide; try: | less -RS"),
    click.option(
        "--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True, help="Use colour."
    ),
)

verbose_option = click.option("-v", "--verbose", is_flag=True, help="Tell on stderr how exact the weights are.")

talk_options = together(
    OTHER,
    click.option("-q", "--quiet", is_flag=True, help="No notes or progress on stderr."),
    click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
)


def result_options(command: Any) -> Any:
    """The options of a command whose results are pictures and data, on the screen or in files."""
    for options in (talk_options, screen_options, figure_options, output_options):
        command = options(command)
    return command


def note(message: str, quiet: bool) -> None:
    """Talk to the user: on stderr, unless silenced."""
    if not quiet:
        from attnviz.escape import escape

        click.echo(escape(message), err=True)
