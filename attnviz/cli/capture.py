"""`attnviz capture`."""

from pathlib import Path
from typing import Any

import click

from attnviz.cli.options import (
    Sectioned,
    map_option,
    model_options,
    note,
    prompt_options,
    selection_options,
    talk_options,
    target_option,
    text_argument,
    verbose_option,
    weights_option,
    words_option,
)
from attnviz.cli.sources import take, tell
from attnviz.errors import UsageError
from attnviz.io.files import require_new
from attnviz.io.formats import WRITERS, save
from attnviz.record import ATTENTION, Kind
from attnviz.request import Keep, Request
from attnviz.selection import ALL, Named, Selection

TILES = 64


@click.command(cls=Sectioned)
@text_argument
@click.option("-o", "--output", type=click.Path(), required=True, help="The file: .attn, .json, or .npz for one map.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option(
    "--keep",
    type=click.Choice(["weights", "tiles", "statistics", "edges"]),
    default="weights",
    show_default=True,
    help="What to keep of each head. All but weights grow with the length of the text, not its square.",
)
@click.option("--tiles", type=click.IntRange(1), default=TILES, show_default=True, help="Tiles on a side, at most.")
@selection_options
@map_option
@weights_option
@target_option
@words_option
@prompt_options
@model_options
@verbose_option
@talk_options
def command(
    text: str | None,
    output: str,
    force: bool,
    keep: Keep,
    tiles: int,
    layers: Selection | None,
    heads: Selection | Named | None,
    kind: Kind | None,
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Run a model once and keep its attention in a file, to be drawn and questioned without the model.

    TEXT may be - for stdin, @FILE or @sample:NAME. All layers and heads are kept unless -l and -H choose.

    \b
    Examples:
      attnviz capture "The cat sat on the mat." -o run.attn
      attnviz capture @sample:repeat --keep tiles -o repeat.attn
      attnviz capture "Hello, world" -m bert-base -l 0-3 -o hello.attn
      attnviz capture "The cat sat on the mat." --weights norm -o norms.attn
    """
    path = Path(output)
    if path.suffix.lower() not in WRITERS:
        raise UsageError(f"cannot tell the format of {path}: the suffix must be one of {', '.join(WRITERS)}")
    require_new(path, force)
    if isinstance(heads, Named) and layers is not None:
        raise UsageError("--heads L5H3 names its layer: leave --layers out")
    if options["method"] != ATTENTION and (keep, tiles) != ("weights", TILES):
        raise UsageError(f"--weights {options['method']} is kept cell by cell: leave --keep and --tiles out")
    kinds = (kind,) if kind else ()
    request = Request(layers or ALL, heads or ALL, options["truncate"], kinds, keep=keep, tiles=tiles)
    capture = take(text, request, {**options, "heads": heads}, quiet)
    tell(capture, quiet, verbose)
    save(capture, path, force=force)
    for line in (*capture.notes, f"wrote {path}; draw it with: attnviz show --from {path}"):
        note(line, quiet)
