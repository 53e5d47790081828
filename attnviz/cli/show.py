"""`attnviz show`."""

import click

from attnviz.cli.interventions import (
    deliver_changed,
    require_changeable,
    run_changed,
)
from attnviz.cli.options import (
    CaptureOptions,
    InterventionOptions,
    LookOptions,
    ResultOptions,
    ViewOptions,
    capture_options,
    look_options,
    make_intervention_options,
    model_options,
    reading_options,
    reduced_numbers_options,
    selection_options,
    source_options,
    text_argument,
    title_option,
    verbose_result_options,
    view_options,
)
from attnviz.cli.output import choose_destination, deliver, make_capture_answer
from attnviz.cli.parameters import SectionedCommand
from attnviz.cli.picture import PictureOptions, make_request, prepare_capture
from attnviz.cli.screen import open_screen
from attnviz.cli.sources import open_source

MOVED = "use attnviz intervene for this: the next version of attnviz show will not change a model"


@click.command(cls=SectionedCommand)
@text_argument
@selection_options
@reduced_numbers_options
@make_intervention_options(hidden=True)
@view_options
@look_options
@title_option
@source_options
@reading_options
@model_options
@verbose_result_options
@capture_options
def command(
    text: str | None,
    captures: CaptureOptions,
    intervention: InterventionOptions,
    view: ViewOptions,
    look: LookOptions,
    result: ResultOptions,
) -> None:
    """Draw the attention of a model on a text: rows are queries, columns keys.

    TEXT may be - for stdin, @FILE or @sample:NAME. Without --layers and --heads it is the mean over
    the heads of the last layer; --view grid and -o FILE.html show all of them. A long text is drawn
    in tiles; --rows and --cols open a window in it. -o writes figures (.png, .svg, .pdf), a page
    (.html) or data (.json, .csv, .npz, .md).

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
      attnviz show "Hello, world" --model bert-base -o page.html
      attnviz show "Hello, world" -m my-bert --tokenizer my-tokenizer
      attnviz show "Hello, world" -m my-bert --adapter my-adapter
      attnviz show "Hello, world" -H L0H3 --style paper -o figure.pdf
      attnviz show -l all -H all "Where does it look?" -o - --format csv
      attnviz show --from run.attn -l 0 --special drop
    """
    screen = open_screen(result.screen, look.cmap)
    destination = choose_destination(result.file, result.figure)
    file_format = destination.file_format if destination else None
    options = PictureOptions(captures, view, look, result.title, result.screen.full)
    options = options.with_default_reduction(file_format)
    if intervention.is_asked_for:
        require_changeable(intervention, options.captures)
        run = run_changed(text, intervention, options.captures, result)
        deliver_changed(run, destination, screen, options, result)
        result.talk.note(MOVED)
        return
    source = open_source(text, options.captures, result.talk)
    captured = source(make_request(options, file_format, screen))
    capture = prepare_capture(captured, options, file_format)
    result.talk.tell_fidelity(capture)
    answer = make_capture_answer(capture, options, file_format)
    deliver(answer, destination, screen, result, look.cmap)
    selection = captures.selection
    chooses_heads = selection.layers is not None or selection.heads is not None
    chooses = chooses_heads or view.view is not None
    if destination is None and not chooses and captures.source.path is None:
        result.talk.note(
            "see more: --view grid draws every head; -l and -H choose layers and heads",
        )
