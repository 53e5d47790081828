"""`attnviz intervene`."""

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
    model_source_options,
    reading_options,
    reduced_numbers_options,
    selection_options,
    text_argument,
    title_option,
    verbose_result_options,
    view_options,
)
from attnviz.cli.output import choose_destination
from attnviz.cli.parameters import SectionedCommand
from attnviz.cli.picture import PictureOptions
from attnviz.cli.screen import open_screen
from attnviz.errors import UsageError


@click.command(cls=SectionedCommand)
@text_argument
@make_intervention_options()
@selection_options
@reduced_numbers_options
@view_options
@look_options
@title_option
@model_source_options
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
    """Change attention in a run of a model, and show maps and predictions before and after.

    --knock-out cuts edges before the softmax, so that their weight goes to other keys. --ablate
    replaces the output of heads. Below the change of the prediction stands how far other changes of
    the same size move it. A single map is drawn before and after the change, with the difference;
    several maps are drawn after the change only.

    \b
    Examples:
      attnviz intervene "The cat sat because it was tired." --knock-out "it->cat"
      attnviz intervene @sample:repeat --ablate L0H2 -H L1H3
      attnviz intervene @sample:repeat --ablate L0H2,L1H3 --with mean --json
      attnviz intervene "The cat sat." --knock-out "*->cat" --in 1 -o cut.html
    """
    if not intervention.is_asked_for:
        raise UsageError("nothing to change: name edges with --knock-out, or heads with --ablate")
    screen = open_screen(result.screen, look.cmap)
    destination = choose_destination(result.file, result.figure)
    options = PictureOptions(captures, view, look, result.title, result.screen.full)
    options = options.with_default_reduction(destination.file_format if destination else None)
    require_changeable(intervention, options.captures)
    run = run_changed(text, intervention, options.captures, result)
    deliver_changed(run, destination, screen, options, result)
