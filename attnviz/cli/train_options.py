"""The options of `attnviz train`."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from attnviz.cli.options import FIGURES, NOTHING_GIVEN
from attnviz.cli.parameters import GIVEN_FIELD, find_option_flag, option_group
from attnviz.errors import UsageError

OF_CURVES = {"curves", "output", "force", "style"}  # options that --curves obeys
SCORES = (
    "scaled_dot",
    "dot",
    "cosine",
    "gaussian",
)  # of attnviz.layer.scores, which would load NumPy for a help


@dataclass(frozen=True)
class SettingOptions:
    """What is trained, and how long; with these, a run that goes on is the same run."""

    steps: int = 4800
    seed: int = 0
    layers: int = 3
    heads: int = 6
    dim: int = 192
    score: str = SCORES[0]
    vocabulary: int = 4096
    given: frozenset[str] = NOTHING_GIVEN

    def to_dict(self) -> dict[str, int | str]:
        """Return the values of the setting by the names of their options."""
        return {name: value for name, value in asdict(self).items() if name != GIVEN_FIELD}

    def require_sizes(self) -> None:
        """Raise UsageError unless the width divides into heads of an even size.

        Rotary positions need that.
        """
        if self.dim % (2 * self.heads):
            raise UsageError(f"--dim {self.dim} is not a multiple of 2 x {self.heads} heads")


@dataclass(frozen=True)
class CourseOptions:
    """What a model learns from, where, and what happens meanwhile."""

    corpus: tuple[Path, ...] = ()
    tokenizer_text: Path | None = None
    resume: bool = False
    minutes: float | None = None
    every: int | None = None
    live: bool = False
    device: str = "auto"
    given: frozenset[str] = NOTHING_GIVEN


@dataclass(frozen=True)
class TrainOptions:
    """What is trained and where it is written, or what run is drawn."""

    setting: SettingOptions
    course: CourseOptions
    output: Path | None = None
    force: bool = False
    curves: Path | None = None
    style: str = "screen"
    given: frozenset[str] = NOTHING_GIVEN

    def __post_init__(self) -> None:
        """Raise UsageError for options that have no effect.

        --style only has one on a figure of --curves. With --curves nothing is trained, so that
        the options of training have none.
        """
        draws_figure = (
            self.curves is not None
            and self.output is not None
            and read_bare_suffix(self.output) in FIGURES
        )
        if "style" in self.given and not draws_figure:
            raise UsageError("--style is for figures of --curves: -o FILE.png, .svg or .pdf")
        if self.curves is None:
            return
        given = self.given | self.setting.given | self.course.given
        for name in sorted(given - OF_CURVES):
            what = "a corpus" if name == "corpus" else find_option_flag(name)
            raise UsageError(f"{what} has no effect with --curves: leave it out")


def read_bare_suffix(path: Path) -> str:
    """Return the suffix of a file without its dot, in lower case."""
    return path.suffix.lower().removeprefix(".")


def require_number(
    ctx: click.Context,  # noqa: ARG001 - click calls it so
    param: click.Parameter,  # noqa: ARG001
    value: float | None,
) -> float | None:
    """Return the value of an option unchanged. Raises a usage error if it is not a number (NaN).

    It is a callback of click.
    """
    if value is not None and math.isnan(value):
        raise click.BadParameter("a number is needed")
    return value


train_options = option_group(
    "options",
    TrainOptions,
    click.argument("corpus", nargs=-1, type=click.Path(path_type=Path)),
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        help="Folder of the new model; or file of --curves.",
    ),
    click.option("--force", is_flag=True, help="Replace a model, or a file, that is there."),
    click.option(
        "--resume",
        is_flag=True,
        help="Go on where an interrupted run in the folder stopped.",
    ),
    click.option(
        "--steps",
        type=click.IntRange(1),
        default=4800,
        show_default=True,
        help="Batches of 2,048 tokens.",
    ),
    click.option(
        "--minutes",
        type=click.FloatRange(0, 1e6, min_open=True),
        callback=require_number,
        help="Stop after so many; --resume goes on.",
    ),
    click.option(
        "--every",
        type=click.IntRange(1),
        metavar="N",
        help="Steps between checkpoints. Default: ten in a run.",
    ),
    click.option(
        "--watch",
        "live",
        is_flag=True,
        help="Show the heads and the attention of a sentence as they form.",
    ),
    click.option(
        "--curves",
        metavar="RUN",
        type=click.Path(path_type=Path),
        help="Draw what a run measured, and end.",
    ),
    click.option(
        "--style",
        default="screen",
        help="Of the figure of --curves: paper, slide, screen or a .mplstyle file.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Of the weights and the batches.",
    ),
    click.option(
        "--layers",
        type=click.IntRange(1, 64),
        default=3,
        show_default=True,
        help="Number of layers.",
    ),
    click.option(
        "--heads",
        type=click.IntRange(1, 64),
        default=6,
        show_default=True,
        help="Heads in a layer.",
    ),
    click.option(
        "--dim",
        type=click.IntRange(8, 4096),
        default=192,
        show_default=True,
        help="Width of the model.",
    ),
    click.option(
        "--score",
        type=click.Choice(SCORES),
        default=SCORES[0],
        show_default=True,
        help="Of the attention.",
    ),
    click.option(
        "--vocabulary",
        type=click.IntRange(257, 65536),
        default=4096,
        show_default=True,
        help="Tokens at most.",
    ),
    click.option(
        "--tokenizer-text",
        type=click.Path(path_type=Path),
        help="Learn tokens from this text, not the corpus.",
    ),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        help="auto, cpu, cuda, cuda:N or mps.",
    ),
    option_group("setting", SettingOptions),
    option_group("course", CourseOptions),
)
