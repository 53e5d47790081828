"""`attnviz show`."""

from typing import Any

import click

from attnviz.cli import interventions
from attnviz.cli.options import (
    Sectioned,
    look_options,
    map_option,
    model_options,
    note,
    prompt_options,
    reduce_option,
    result_options,
    selection_options,
    source_option,
    target_option,
    text_argument,
    title_option,
    verbose_option,
    view_options,
    weights_option,
    words_option,
)
from attnviz.cli.output import deliver, target
from attnviz.cli.picture import check, pictures, prepared, request, settled
from attnviz.cli.screen import screen, show
from attnviz.cli.sources import opened, tell
from attnviz.render.terminal.draw import draw


@click.command(cls=Sectioned)
@text_argument
@selection_options
@reduce_option
@map_option
@weights_option
@target_option
@interventions.intervention_options
@view_options
@look_options
@title_option
@source_option
@words_option
@prompt_options
@model_options
@verbose_option
@result_options
def command(text: str | None, verbose: bool, quiet: bool, **options: Any) -> None:
    """Draw the attention of a model on a text: rows are queries, columns the keys that they attend to.

    TEXT may be - for stdin, @FILE or @sample:NAME. Without --layers and --heads it is the mean over the heads of the
    last layer; --view grid and -o FILE.html show all of them. A long text is drawn in tiles; --rows and --cols open a
    window in it. -o writes figures (.png, .svg, .pdf), a page (.html) or data (.json, .csv, .npz, .md).

    \b
    Examples:
      attnviz show "The cat sat on the mat because it was tired."
      attnviz show --view grid @sample:repeat
      attnviz show -H L1H3 @sample:paragraph --rows 90:110
      attnviz show --view tokens --token it "The cat sat because it was tired."
      attnviz show --view rows --token it "The cat sat because it was tired."
      attnviz show --words "Unbelievably, subwords misbehave."
      attnviz show --weights norm "The cat sat on the mat."
      attnviz show --weights scores -H L1H3 @sample:repeat
      attnviz show --ablate L0H2 -H L1H3 @sample:repeat
      attnviz show --knock-out "it->cat" "The cat sat because it was tired."
      attnviz show "Hello, world" --model bert-base -o page.html
      attnviz show "Hello, world" -m my-bert --tokenizer my-tokenizer
      attnviz show "Hello, world" -m my-bert --adapter my-adapter
      attnviz show "Hello, world" -H L0H3 --style paper -o figure.pdf
      attnviz show -l all -H all "Where does it look?" -o - --format csv
      attnviz show --from run.attn -l 0 --special drop
    """
    check(options)
    on = screen(options["width"], options["color"], options["cmap"], options["full"])
    to = target(options)
    form = to and to.form
    options = dict(settled(options, form))
    if interventions.is_changed(options):
        run = interventions.intervened(text, options, quiet)
        interventions.deliver(run, to, on, options, quiet=quiet, verbose=verbose)
        return
    capture = prepared(opened(text, options, quiet)(request(options, form, on)), options, form)
    tell(capture, quiet, verbose)
    if to:
        deliver(capture, to, options, quiet)
        return
    for i, picture in enumerate(pictures(capture, options)):
        show([[], *draw(picture, on)] if i else draw(picture, on), on)
    if all(options[name] is None for name in ("layers", "heads", "view", "source")):
        note("see more: --view grid draws every head; -l and -H choose layers and heads", quiet)
