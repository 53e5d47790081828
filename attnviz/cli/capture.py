"""`attnviz capture`."""

from pathlib import Path

import click

from attnviz.cli.options import (
    CaptureOptions,
    capture_options,
    model_options,
    model_source_options,
    numbers_options,
    reading_options,
    selection_options,
    text_argument,
    verbose_talk_options,
)
from attnviz.cli.parameters import SectionedCommand
from attnviz.cli.sources import open_source
from attnviz.cli.talk import Talk
from attnviz.cli.text import read_segments
from attnviz.errors import UsageError
from attnviz.io.files import require_output_path
from attnviz.io.formats import WRITERS, save
from attnviz.progress import begin_step
from attnviz.record import ATTENTION, Segment
from attnviz.request import Keep, Request

TILES = 64


@click.command(cls=SectionedCommand)
@text_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The file: .attn, .json, or .npz for one map.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option(
    "--keep",
    type=click.Choice(["weights", "tiles", "statistics", "edges"]),
    default="weights",
    show_default=True,
    help=(
        "What to keep of each head. All but weights grow with the length of the text, not its"
        " square."
    ),
)
@click.option(
    "--tiles",
    type=click.IntRange(1),
    default=TILES,
    show_default=True,
    help="Tiles on a side, at most.",
)
@click.option(
    "--segments",
    metavar="FILE",
    help=(
        "Parts of the text whose shares are kept beside tiles, statistics or edges: START:END NAME"
        " a line, JSON, or auto."
    ),
)
@selection_options
@numbers_options
@model_source_options
@reading_options
@model_options
@verbose_talk_options
@capture_options
def command(
    text: str | None,
    output: Path,
    force: bool,
    keep: Keep,
    tiles: int,
    segments: str | None,
    captures: CaptureOptions,
    talk: Talk,
) -> None:
    """Run a model once and keep its attention in a file, to be drawn and questioned later.

    TEXT may be - for stdin, @FILE or @sample:NAME. All layers and heads are kept unless -l and -H
    choose.

    \b
    Examples:
      attnviz capture "The cat sat on the mat." -o run.attn
      attnviz capture @sample:repeat --keep tiles -o repeat.attn
      attnviz capture @sample:question --keep tiles --segments auto -o q.attn
      attnviz capture "Hello, world" -m bert-base -l 0-3 -o hello.attn
      attnviz capture "The cat sat on the mat." --weights norm -o norms.attn
    """
    if output.suffix.lower() not in WRITERS:
        known = ", ".join(WRITERS)
        raise UsageError(f"cannot tell the format of {output}: the suffix must be one of {known}")
    require_output_path(output, force)
    method = captures.numbers.method
    if method != ATTENTION and (keep, tiles) != ("weights", TILES):
        raise UsageError(f"--weights {method} is kept cell by cell: leave --keep and --tiles out")
    if segments is not None and keep == "weights":
        raise UsageError(
            "--segments has no effect with weights, which tell all shares: leave it out"
        )
    selection = captures.selection
    request = Request(
        layers=selection.all_layers,
        heads=selection.all_heads,
        truncate=captures.model.truncate,
        kinds=selection.kinds,
        keep=keep,
        tiles=tiles,
        segments=choose_segments_to_keep(segments, is_chat=captures.reading.chat),
    )
    source = open_source(text, captures, talk)
    capture = source(request)
    talk.tell_fidelity(capture)
    with begin_step(f"writing {output.name}"):
        save(capture, output, force=force)
    for line in (*capture.notes, f"wrote {output}; draw it with: attnviz show --from {output}"):
        talk.note(line)


def choose_segments_to_keep(name: str | None, *, is_chat: bool) -> tuple[Segment, ...] | None:
    """Return the segments of which shares are kept; None for the text's own, empty for none.

    name: the file that --segments names, or ``auto``; None without the option. is_chat: the text is
    a chat, whose messages are kept by default. Raises InputError for a file that cannot be used.
    """
    if name is not None:
        return read_segments(name)
    return None if is_chat else ()
