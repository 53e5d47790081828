"""The options that commands share: one frozen dataclass a group, made from the command line.

A command names the groups that it takes as decorators and gets each as one object. What contradicts
itself within a group is refused where the group is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import click

from attnviz.cli.parameters import (
    OTHER_SECTION,
    Decorator,
    ParsedType,
    escape_value,
    option_group,
    option_section,
    require_token,
)
from attnviz.cli.talk import Talk
from attnviz.errors import InputError, UsageError
from attnviz.escape import require_unicode
from attnviz.methods import (
    METHODS,
    METHODS_OF_A_PREDICTION,
    METHODS_THROUGH_LAYERS,
    SUM,
    MethodName,
)
from attnviz.progress import leave_screen
from attnviz.record import ATTENTION, NORM, ROLLOUT, Kind
from attnviz.request import Companions, DType, Engine, Placement, Prompt, Replacement
from attnviz.selection import (
    ALL,
    EdgeNames,
    HeadNames,
    Selection,
    TokenReference,
    parse_edge,
    parse_head_names,
    parse_heads,
    parse_numbers,
    parse_token,
    parse_window,
)

FIGURES = "png", "svg", "pdf"
DATA = "json", "csv", "npz", "md"
FORMATS = (*FIGURES, "html", *DATA)
BINARY = "png", "pdf", "npz"
DEFAULT_ROWS = 16  # of a table, where no screen says how many fit
NOTHING_GIVEN: frozenset[str] = frozenset()

View: TypeAlias = Literal["heatmap", "grid", "tokens", "rows"]
HeadReduction: TypeAlias = Literal["mean", "max", "sum"]
SpecialTokens: TypeAlias = Literal["keep", "drop", "renormalise"]

SELECTION = "Layers and heads"
NUMBERS = "Numbers"
READING = "What it reads"
MODEL = "Model"
LOOK = "Look"
OUTPUT = "Output"
VIEW = "View"

text_argument = click.argument("text", required=False)
texts_argument = click.argument("texts", nargs=-1, metavar="[TEXT]...")
lines_option = option_section(
    READING,
    click.option("--lines", is_flag=True, help="Each line of a text is a text of its own."),
)


# Layers and heads


@dataclass(frozen=True)
class SelectionOptions:
    """Which layers, heads and kind of map are meant."""

    layers: Selection | None = None
    heads: Selection | HeadNames | None = None
    kind: Kind | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for layers beside heads such as L5H3, which name their layers."""
        if isinstance(self.heads, HeadNames) and self.layers is not None:
            raise UsageError("--heads L5H3 names its layer: leave --layers out")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The chosen kind of map, in a tuple as requests have it; empty if none was chosen."""
        return (self.kind,) if self.kind else ()

    @property
    def all_layers(self) -> Selection:
        """The chosen layers; all where none were chosen."""
        return self.layers or ALL

    @property
    def all_heads(self) -> Selection | HeadNames:
        """The chosen heads; all where none were chosen."""
        return self.heads or ALL


layers_option = click.option(
    "-l",
    "--layers",
    type=ParsedType("layers", parse_numbers),
    help="Layers: 3, -1, 0,3,7, 2-5 or all.",
)
heads_option = click.option(
    "-H",
    "--heads",
    type=ParsedType("heads", parse_heads),
    help="Heads, likewise, or L5H3,L2H1.",
)
map_option = option_section(
    SELECTION,
    click.option(
        "--map",
        "kind",
        type=click.Choice(["encoder", "decoder", "cross"]),
        help="Which map of an encoder-decoder.",
    ),
)
heads_options = option_group(
    "selection",
    SelectionOptions,
    option_section(SELECTION, layers_option, heads_option),
)
selection_options = option_group(
    "selection",
    SelectionOptions,
    option_section(SELECTION, layers_option, heads_option),
    map_option,
)


# Numbers


@dataclass(frozen=True)
class NumbersOptions:
    """What the numbers of a map are, and how those of several heads become one."""

    method: MethodName = "attention"
    target_token: str | None = None
    reduction: HeadReduction | None = None
    given: frozenset[str] = NOTHING_GIVEN

    def __post_init__(self) -> None:
        """Raise UsageError for the reduction ``sum`` of other numbers than norms.

        It adds the vectors that heads move before their length is measured, and only norms are
        lengths of vectors.
        """
        if self.reduction == SUM and self.method != NORM:
            raise UsageError(
                "--reduce sum adds what heads move before it is measured: it needs --weights norm",
            )

    def require_target_effect(self) -> None:
        """Raise UsageError if a target token is named, but the numbers are not of a prediction."""
        if self.target_token is not None and not self.of_a_prediction:
            methods = " or ".join(METHODS_OF_A_PREDICTION)
            raise UsageError(
                f"--target-token has no effect without --weights {methods}: leave it out",
            )

    @property
    def is_named(self) -> bool:
        """True if --weights stands on the command line."""
        return "method" in self.given

    @property
    def of_a_prediction(self) -> bool:
        """True if the numbers are about what the model predicts."""
        return self.method in METHODS_OF_A_PREDICTION


reduce_option = option_section(
    SELECTION,
    click.option(
        "--reduce",
        "reduction",
        type=click.Choice(["mean", "max", "sum"]),
        help="Merge the chosen heads of a layer into one; sum, of norms: what they move together.",
    ),
)
target_token_option = option_section(
    NUMBERS,
    click.option(
        "--target-token",
        metavar="TOKEN",
        callback=require_token,
        help="The prediction asked about: one token, or a class. Default: the likeliest.",
    ),
)
weights_option = option_section(
    NUMBERS,
    click.option(
        "--weights",
        "method",
        type=click.Choice([*METHODS]),
        default="attention",
        show_default=True,
        help=(
            "What is shown: attention weights; how long the vectors are that they move; what they"
            " add to a prediction, by head or through the layers; attention through the layers;"
            " scores before the softmax."
        ),
    ),
)
numbers_options = option_group("numbers", NumbersOptions, weights_option, target_token_option)
reduced_numbers_options = option_group(
    "numbers",
    NumbersOptions,
    reduce_option,
    weights_option,
    target_token_option,
)


# What is read


@dataclass(frozen=True)
class ReadingOptions:
    """How a text is read, and what beside it."""

    pair: str | None = None
    chat: bool = False
    target: str | None = None
    generate: int | None = None
    given: frozenset[str] = NOTHING_GIVEN

    def __post_init__(self) -> None:
        """Raise InputError for a second text that is empty or holds lone surrogates."""
        for name, text in (("pair", self.pair), ("target", self.target)):
            if text is not None and not text.strip():
                raise InputError(f"the text of --{name} is empty")
            require_unicode(text or "", f"the text of --{name}")

    def prompt(self, text: str) -> Prompt:
        """Return a text as a model is to read it."""
        return Prompt(text, self.pair, self.target, self.chat, self.generate or 0)


text_options = option_section(
    READING,
    click.option("--pair", help="A second text, for models of pairs."),
    click.option(
        "--chat",
        is_flag=True,
        help="TEXT is a message, or JSON messages, for the model's chat template.",
    ),
)
decoder_option = option_section(
    READING,
    click.option(
        "--target",
        help="What the decoder of an encoder-decoder reads. Default: what it writes itself.",
    ),
)
generate_option = option_section(
    READING,
    click.option(
        "--generate",
        type=click.IntRange(1),
        metavar="N",
        help="Let a causal model write N tokens more.",
    ),
)
plain_reading_options = option_group("reading", ReadingOptions, text_options)
decoder_reading_options = option_group("reading", ReadingOptions, text_options, decoder_option)
reading_options = option_group(
    "reading",
    ReadingOptions,
    text_options,
    decoder_option,
    generate_option,
)


@dataclass(frozen=True)
class SourceOptions:
    """The origin of captures: a file or a model, and maps between tokens or between words."""

    path: str | None = None
    """The file of a saved capture; None to run a model."""
    words: bool = False


from_option = option_section(
    READING,
    click.option(
        "--from",
        "path",
        metavar="FILE",
        help="A capture or arrays: .attn, .npz, .safetensors or .json.",
    ),
)
words_option = option_section(
    READING,
    click.option(
        "--words",
        is_flag=True,
        help="Merge the pieces of words: keys summed, queries averaged.",
    ),
)
source_options = option_group("source", SourceOptions, from_option, words_option)
model_source_options = option_group("source", SourceOptions, words_option)


# Models


@dataclass(frozen=True)
class ModelOptions:
    """Which model runs, where, and in which type."""

    model: str = "builtin"
    revision: str | None = None
    tokenizer: str | None = None
    adapter: str | None = None
    offline: bool = False
    device: str = "auto"
    dtype: DType = "auto"
    engine: Engine = "auto"
    truncate: bool = False
    given: frozenset[str] = NOTHING_GIVEN

    @property
    def placement(self) -> Placement:
        """The device, the type and the engine with which the model computes."""
        return Placement(self.device, self.dtype, self.engine)

    @property
    def companions(self) -> Companions:
        """The parts that the model is read with and that are not in its own folder."""
        return Companions(self.tokenizer, self.adapter)


@dataclass(frozen=True)
class ModelsOptions:
    """Which one or two models run; what is given once is of the first, twice of each."""

    models: tuple[str, ...] = ()
    revisions: tuple[str, ...] = ()
    tokenizers: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    offline: bool = False
    device: str = "auto"
    dtype: DType = "auto"
    engine: Engine = "auto"
    truncate: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The models that were named, and the built-in one after them."""
        return (*self.models, "builtin")

    def select_model(self, index: int) -> ModelOptions:
        """Return the options of one of the models alone.

        index: its place among the models that were named, and the built-in one after them. A
        revision, tokenizer or adapter belongs to the model of the same place, if there is one.
        """

        def pick(values: Sequence[str]) -> str | None:
            return values[index] if index < len(values) else None

        return ModelOptions(
            model=self.names[index],
            revision=pick(self.revisions),
            tokenizer=pick(self.tokenizers),
            adapter=pick(self.adapters),
            offline=self.offline,
            device=self.device,
            dtype=self.dtype,
            engine=self.engine,
            truncate=self.truncate,
        )


one_model_option = option_section(
    MODEL,
    click.option(
        "-m",
        "--model",
        default="builtin",
        show_default=True,
        help="builtin, a folder, alias or hub id.",
    ),
)
one_model_details = option_section(
    MODEL,
    click.option("--revision", help="Revision of a hub model: a branch, tag or commit."),
    click.option(
        "--tokenizer",
        metavar="FOLDER",
        help="A tokenizer, in place of that beside the model.",
    ),
    click.option(
        "--adapter",
        metavar="FOLDER",
        help="A PEFT adapter to apply. Default model: what it was made for.",
    ),
    topic="models",
)
two_models_option = option_section(
    MODEL,
    click.option(
        "-m",
        "--model",
        "models",
        multiple=True,
        help=(
            "A model: builtin, a folder, alias or hub id. Given twice, both; once, it and builtin."
        ),
    ),
)
two_models_details = option_section(
    MODEL,
    click.option(
        "--revision",
        "revisions",
        multiple=True,
        help="Revision of a hub model; given twice, of each.",
    ),
    click.option(
        "--tokenizer",
        "tokenizers",
        metavar="FOLDER",
        multiple=True,
        help="A tokenizer, likewise.",
    ),
    click.option(
        "--adapter",
        "adapters",
        metavar="FOLDER",
        multiple=True,
        help="A PEFT adapter, likewise.",
    ),
)
placement_options = option_section(
    MODEL,
    click.option("--offline", is_flag=True, help="Never download a model."),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        help="auto, cpu, cuda, cuda:N or mps.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "float16", "bfloat16", "float64"]),
        default="auto",
        show_default=True,
        help="Type to compute in; auto is float32 on a CPU.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["auto", "numpy", "torch"]),
        default="auto",
        show_default=True,
        help="What runs the model; auto is NumPy where that is exact and quick.",
    ),
    topic="models",
)
truncate_option = option_section(
    MODEL,
    click.option(
        "--truncate",
        is_flag=True,
        help="Cut a text that is longer than the model reads.",
    ),
)
model_options = option_group(
    "model",
    ModelOptions,
    one_model_option,
    one_model_details,
    placement_options,
    truncate_option,
)
untruncated_model_options = option_group(
    "model",
    ModelOptions,
    one_model_option,
    one_model_details,
    placement_options,
)
models_options = option_group(
    "models",
    ModelsOptions,
    two_models_option,
    two_models_details,
    placement_options,
    truncate_option,
)


# Views and looks


@dataclass(frozen=True)
class ViewOptions:
    """Which picture is drawn of a capture, and of which part of it."""

    view: View | None = None
    token: TokenReference | None = None
    incoming: bool = False
    rows: slice | None = None
    columns: slice | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for options that contradict each other, or need another one.

        Two views, ``tokens`` and ``rows``, are of one token, which only they have.
        """
        is_of_one_token = self.view in ("tokens", "rows")
        if is_of_one_token and self.token is None:
            raise UsageError(f"--view {self.view} needs --token: a number or a word")
        if not is_of_one_token and self.token is not None:
            raise UsageError("--token needs --view tokens or --view rows")
        if self.incoming and self.view != "tokens":
            raise UsageError("--incoming is for --view tokens")
        if self.token is not None and self.is_window:
            raise UsageError("--token shows one row: leave --rows and --cols out")

    @property
    def is_window(self) -> bool:
        """True if only some queries or keys are shown."""
        return self.rows is not None or self.columns is not None


view_options = option_group(
    "view",
    ViewOptions,
    option_section(
        VIEW,
        click.option(
            "--view",
            type=click.Choice(["heatmap", "grid", "tokens", "rows"]),
            help=(
                "A picture a head; all heads as thumbnails; the text coloured by one --token; that "
                "token in all heads."
            ),
        ),
        click.option(
            "--token",
            type=ParsedType("N or WORD", parse_token),
            help="The token of --view tokens and rows.",
        ),
        click.option(
            "--incoming",
            is_flag=True,
            help="With --view tokens: what attends to the token, not what it does.",
        ),
        click.option(
            "--rows",
            type=ParsedType("A:B", parse_window),
            help="Only these queries, in full.",
        ),
        click.option(
            "--cols",
            "columns",
            type=ParsedType("A:B", parse_window),
            help="Only these keys.",
        ),
    ),
)


@dataclass(frozen=True)
class LookOptions:
    """How numbers become colours, and what is left out."""

    special: SpecialTokens = "keep"
    color_range: Literal["auto", "full"] = "auto"
    color_scale: Literal["sqrt", "linear"] = "sqrt"
    cmap: str = "viridis"


look_options = option_group(
    "look",
    LookOptions,
    option_section(
        LOOK,
        click.option(
            "--special",
            type=click.Choice(["keep", "drop", "renormalise"]),
            default="keep",
            show_default=True,
            help="Leave special tokens out; renormalise: rows sum to 1 again.",
        ),
        click.option(
            "--range",
            "color_range",
            type=click.Choice(["auto", "full"]),
            default="auto",
            show_default=True,
            help="Where colours end: before the sinks, or at the largest weight.",
        ),
        click.option(
            "--scale",
            "color_scale",
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
    ),
)
title_option = option_section(
    LOOK,
    click.option("--title", callback=escape_value, help="A title of your own."),
)


# Interventions

WITHOUT_EFFECT = {"norm": "their norms mean", "rollout": "a rollout through them means"}
"""Methods that show nothing of heads whose output is replaced, and what then means nothing."""


@dataclass(frozen=True)
class InterventionOptions:
    """What is changed in a run of the model."""

    knocked_out: tuple[EdgeNames, ...] = ()
    inside: Selection | HeadNames | None = None
    ablated: HeadNames | None = None
    replacement: Replacement | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for details of a change that is not asked for.

        --in belongs to cut edges, and --with to heads whose output is replaced.
        """
        if self.inside is not None and not self.knocked_out:
            raise UsageError("--in says where edges are cut: name them with --knock-out")
        if self.replacement is not None and self.ablated is None:
            raise UsageError(
                "--with says what replaces the output of heads: name them with --ablate",
            )

    @property
    def is_asked_for(self) -> bool:
        """True if anything is to be changed."""
        return bool(self.knocked_out) or self.ablated is not None

    @property
    def flag(self) -> str:
        """The first option that asks for a change."""
        return "--knock-out" if self.knocked_out else "--ablate"


def make_intervention_options(*, hidden: bool = False) -> Decorator:
    """Make a decorator that adds the options of interventions to a command, as one object.

    hidden: leave them out of the help.
    """
    return option_group(
        "intervention",
        InterventionOptions,
        option_section(
            "Interventions",
            click.option(
                "--knock-out",
                "knocked_out",
                multiple=True,
                hidden=hidden,
                type=ParsedType("Q->K", parse_edge),
                help=(
                    "Cut an edge before the softmax: a query and a key, each a number, a word or * "
                    "for all. Repeatable."
                ),
            ),
            click.option(
                "--in",
                "inside",
                hidden=hidden,
                type=ParsedType("layers or heads", parse_heads),
                help="Where edges are cut: 3, 2-5, all, or L5H3,L2H1. Default: everywhere.",
            ),
            click.option(
                "--ablate",
                "ablated",
                hidden=hidden,
                type=ParsedType("heads", parse_head_names),
                help="Replace the output of heads: L5H3,L2H1.",
            ),
            click.option(
                "--with",
                "replacement",
                hidden=hidden,
                type=click.Choice(["zero", "mean", "uniform", "permute"]),
                help=(
                    "By zeros (default), its mean over queries, the mean of the values it sees, its"
                    " weights in another order."
                ),
            ),
        ),
    )


# Output


@dataclass(frozen=True)
class FileOptions:
    """Where a result is written, and in which format."""

    output: str | None = None
    format: str | None = None
    force: bool = False
    as_json: bool = False


file_options = option_group(
    "file",
    FileOptions,
    option_section(
        OUTPUT,
        click.option(
            "-o",
            "--output",
            type=click.Path(),
            help="Write a file, by its suffix; - for stdout.",
        ),
        click.option(
            "--format",
            type=click.Choice(FORMATS),
            help="The format, where no suffix says it, as with -o -.",
        ),
        click.option("--force", is_flag=True, help="Replace an existing file."),
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            help="Print one JSON document and nothing else.",
        ),
    ),
)


@dataclass(frozen=True)
class FigureOptions:
    """How figures and pages are made."""

    style: str = "screen"
    inches: float | None = None
    dpi: int | None = None
    transparent: bool = False
    exact: bool = False
    given: frozenset[str] = NOTHING_GIVEN


figure_options = option_group(
    "figure",
    FigureOptions,
    option_section(
        "Figures and pages",
        click.option(
            "--style",
            default="screen",
            show_default=True,
            help="paper, slide, screen or a .mplstyle file.",
        ),
        click.option(
            "--inches",
            type=click.FloatRange(1, 50),
            help="Width of a figure: 3.25 a column, 6.75 a page.",
        ),
        click.option("--dpi", type=click.IntRange(30, 1200), help="Dots per inch of a .png."),
        click.option("--transparent", is_flag=True, help="No background in figures."),
        click.option(
            "--exact",
            is_flag=True,
            help="A .html with weights to 0.0005, not 0.004; it is larger.",
        ),
        topic="figures",
    ),
)


@dataclass(frozen=True)
class ScreenOptions:
    """How the terminal is drawn on."""

    width: int | None = None
    full: bool = False
    color: Literal["auto", "always", "never"] = "auto"


screen_options = option_group(
    "screen",
    ScreenOptions,
    option_section(
        "Screen",
        click.option(
            "--width",
            type=click.IntRange(40, 4000),
            help="Columns to draw on. Default: the terminal's.",
        ),
        click.option(
            "--full",
            is_flag=True,
            help="A cell for every token, however wide; try: | less -RS",
        ),
        click.option(
            "--color",
            type=click.Choice(["auto", "always", "never"]),
            default="auto",
            show_default=True,
            help="Use colour.",
        ),
    ),
)


def follow_log(context: click.Context, _: click.Parameter, verbose: bool) -> bool:
    """Print what the package logs while the command runs, if it is to say more."""
    if verbose and not context.resilient_parsing:
        from attnviz.cli.log import print_log

        print_log(context)
    return verbose


def silence_progress(context: click.Context, _: click.Parameter, quiet: bool) -> bool:
    """Show nothing of what the command does, if it is to be quiet."""
    if quiet and not context.resilient_parsing:
        context.with_resource(leave_screen())
    return quiet


verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    callback=follow_log,
    help="Tell on stderr how exact the weights are, and what runs the model.",
)
quiet_options = option_section(
    OTHER_SECTION,
    click.option(
        "-q",
        "--quiet",
        is_flag=True,
        callback=silence_progress,
        help="No notes or progress on stderr.",
    ),
    click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        help="Show the traceback of an error.",
    ),
)
talk_options = option_group("talk", Talk, quiet_options)
verbose_talk_options = option_group("talk", Talk, verbose_option, quiet_options)


@dataclass(frozen=True)
class ResultOptions:
    """Where a result goes, and how it is drawn there."""

    file: FileOptions
    figure: FigureOptions
    screen: ScreenOptions
    talk: Talk
    title: str | None = None


result_options = option_group(
    "result",
    ResultOptions,
    file_options,
    figure_options,
    screen_options,
    talk_options,
)
verbose_result_options = option_group(
    "result",
    ResultOptions,
    file_options,
    figure_options,
    screen_options,
    verbose_talk_options,
)


# Captures

OF_A_RUN = (
    "model",
    "revision",
    "tokenizer",
    "adapter",
    "device",
    "dtype",
    "engine",
    "truncate",
    "pair",
    "target",
    "chat",
    "generate",
    "target_token",
)
"""Options that mean nothing where a saved capture is read, in the order of refusal."""


@dataclass(frozen=True)
class CaptureOptions:
    """What captures are taken from, and what their numbers are."""

    selection: SelectionOptions
    numbers: NumbersOptions
    source: SourceOptions
    reading: ReadingOptions
    model: ModelOptions

    def __post_init__(self) -> None:
        """Raise UsageError for options of different groups that contradict each other.

        Numbers that are made through all layers have no heads to choose or merge, and numbers of
        some methods cannot be made of a text that the model is still to write.
        """
        method = self.numbers.method
        chooses_heads = self.selection.heads not in (None, ALL)
        if method in METHODS_THROUGH_LAYERS and (
            chooses_heads or self.numbers.reduction is not None
        ):
            raise UsageError(
                f"--weights {method} has one head a layer, made of all: leave --heads and"
                " --reduce out",
            )
        if self.reading.generate and method not in (ATTENTION, ROLLOUT):
            raise UsageError(
                f"--weights {method} is of a text that is there: leave --generate out, or give the "
                "text that was written",
            )

    @property
    def given_of_a_run(self) -> tuple[str, ...]:
        """The flags on the command line that have no effect where a saved capture is read.

        They are those of the options that run a model, in the order in which one is refused.
        """
        given = self.model.given | self.reading.given | self.numbers.given
        names = [name for name in OF_A_RUN if name in given]
        return tuple(f"--{name.replace('_', '-')}" for name in names)


capture_options = option_group("captures", CaptureOptions)
"""Makes one object of five groups; it stands below them, next to the command."""


# Topics of `attnviz help`

TOPICS: dict[str, tuple[str, Decorator]] = {
    "figures": (
        "Options of figures and pages, for every command that writes them with -o FILE.",
        figure_options,
    ),
    "models": (
        "Options that choose the model and where it runs. A command that takes --model twice also "
        "takes --revision, --tokenizer and --adapter twice, once for each model.",
        model_options,
    ),
}
"""What each topic is about, and the options that it explains."""
