"""A model under an intervention, for `attnviz intervene` and `attnviz attribute`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from attnviz import views
from attnviz.cli import text as text_input
from attnviz.cli.options import (
    WITHOUT_EFFECT,
    CaptureOptions,
    InterventionOptions,
    ResultOptions,
)
from attnviz.cli.output import (
    Answer,
    Destination,
    deliver,
    make_capture_answer,
    make_result_answer,
)
from attnviz.cli.picture import (
    PictureOptions,
    draw_pictures,
    make_look,
    make_request,
    prepare_capture,
)
from attnviz.cli.sources import (
    load_model_for,
    make_method_source,
    make_word_source,
)
from attnviz.derived import CaptureSource
from attnviz.drawable import Picture
from attnviz.errors import UsageError
from attnviz.record import Capture, Kind
from attnviz.request import Prompt, Request
from attnviz.request import Target as Prediction

if TYPE_CHECKING:
    from attnviz.models import Model
    from attnviz.render.terminal.draw import Screen
    from attnviz.results.intervention import InterventionOutcome


def require_changeable(intervention: InterventionOptions, captures: CaptureOptions) -> None:
    """Raise UsageError for an intervention that has no meaning beside the other options.

    intervention: edges to cut, or heads whose output is replaced. captures: the options that say
    what is captured, and what its numbers are.
    """
    flag, method = intervention.flag, captures.numbers.method
    if captures.source.path is not None:
        raise UsageError(
            f"{flag} needs a model to run, and --from reads a capture: leave one of them out",
        )
    if captures.reading.generate:
        raise UsageError(
            f"{flag} changes what is made of a text that is there: leave --generate out",
        )
    if intervention.knocked_out and captures.source.words:
        raise UsageError("--knock-out cuts edges between tokens: leave --words out")
    if intervention.ablated is not None and method in WITHOUT_EFFECT:
        raise UsageError(
            f"--ablate replaces the output of heads, so {WITHOUT_EFFECT[method]} nothing: use"
            " another --weights",
        )


@dataclass(frozen=True)
class ChangedRun:
    """A model under an intervention, and without."""

    outcome: "InterventionOutcome"
    before: CaptureSource
    after: CaptureSource
    """Its captures say in their notes what was changed."""


def run_changed(
    text: str | None,
    intervention: InterventionOptions,
    captures: CaptureOptions,
    result: ResultOptions,
) -> ChangedRun:
    """Load a model and run it on a text with and without an intervention.

    text: the argument of the command. Returns the effect on the prediction, and two functions that
    capture the attention before and after the change. Raises UsageError, ModelError, InputError.
    """
    from attnviz.experiments.intervention import make_intervention
    from attnviz.models.base import require_predictions

    content = text_input.read_argument(text, result.talk)
    model = require_predictions(load_model_for(captures, result.talk, predicts=True))
    prompt = captures.reading.prompt(content)
    outcome, notes = try_changes(
        model,
        prompt,
        intervention,
        target=Prediction(captures.numbers.target_token),
        kind=captures.selection.kind,
        truncate=captures.model.truncate,
    )
    has_prediction = outcome.response.kind != "vector"
    target_output = outcome.response.target if has_prediction else None

    def make_source(run: CaptureSource) -> CaptureSource:
        """Make a source in the numbers of the options, for one prediction before and after."""
        numbers_source = make_method_source(run, captures.numbers, target_output)
        return make_word_source(numbers_source, captures.source.words)

    unchanged_run = partial(model.capture, prompt)
    changed_run = partial(model.capture, prompt, intervention=make_intervention(outcome.changes))
    after = partial(capture_with_notes, make_source(changed_run), notes)
    return ChangedRun(outcome, make_source(unchanged_run), after)


def try_changes(
    model: "Model",
    prompt: Prompt,
    options: InterventionOptions,
    target: Prediction,
    *,
    kind: Kind | None = None,
    truncate: bool = False,
    seed: int = 0,
) -> tuple["InterventionOutcome", Sequence[str]]:
    """Run a model with the changes that options name, and measure their effect on a prediction.

    prompt: what the model reads. options: edges to cut, or heads whose output is replaced. target:
    the prediction. kind: the kind of map whose heads these are, of a model that has several.
    truncate: cut a text that is too long. seed: of the other changes that are tried for scale.

    Returns the effect, and lines that say what was changed.
    """
    from attnviz.experiments.intervention import (
        PromptedModel,
        intervene,
        resolve_changes,
    )
    from attnviz.results.intervention import explain_changes

    subject = PromptedModel.of(model, prompt, kind, truncate=truncate)
    changes = resolve_changes(
        subject.scope,
        options.knocked_out,
        options.inside,
        options.ablated,
        options.replacement,
    )
    outcome = intervene(subject, changes, target, seed)
    return outcome, explain_changes(outcome.changes, outcome.scope)


def capture_with_notes(
    source: CaptureSource,
    notes: Sequence[str],
    request: Request,
) -> Capture:
    """Make a capture with a source, and add notes to it."""
    capture = source(request)
    return replace(capture, notes=(*capture.notes, *notes))


def deliver_changed(
    run: ChangedRun,
    destination: Destination | None,
    screen: "Screen",
    options: PictureOptions,
    result: ResultOptions,
) -> None:
    """Draw or write the maps of a model after an intervention, and the change of its prediction.

    A single map is drawn beside the one before the intervention, and their difference.

    run: functions that capture both. destination: the file; None for the screen. options: what is
    drawn of a capture. result: how it is written, and what is told on stderr.
    """
    from attnviz.results.intervention import count_matrices

    file_format = destination.file_format if destination else None
    request = make_request(options, file_format, screen)
    compares = options.shows_one_picture() and not options.shows_everything(file_format)
    if compares:  # the difference of tiles means nothing
        request = replace(request, keep="weights")
    after = prepare_capture(run.after(request), options, file_format)
    result.talk.tell_fidelity(after)
    before = None
    if compares and count_matrices(after) == 1:
        before = prepare_capture(run.before(request), options, file_format)
    answer = make_intervention_answer(run, before, after, file_format, options)
    deliver(answer, destination, screen, result, options.look.cmap)


def make_intervention_answer(
    run: ChangedRun,
    before: Capture | None,
    after: Capture,
    file_format: str | None,
    options: PictureOptions,
) -> Answer:
    """Make the answer of a command that changed a model: its maps, and its prediction.

    run: the effect on the prediction. before: the capture before the change, where a single map is
    drawn beside it, else None. after: the capture after the change. file_format: of the file to
    write; None for the screen.
    """
    from attnviz.results.intervention import (
        AFTER,
        InterventionResult,
        draw_intervention,
        explain_prediction,
        make_prediction_table,
        summarise_likeliest,
    )

    if file_format in ("csv", "npz"):
        return make_capture_answer(after, options, file_format)
    result = InterventionResult(run.outcome, before or after, after)
    map_pictures: list[Picture] = []
    page = None
    if before is not None:
        map_pictures = [draw_intervention(before, after, make_look(options.look))]
    elif file_format == "html":
        notes = AFTER, *explain_prediction(run.outcome), summarise_likeliest(run.outcome)
        noted = replace(after, notes=(*after.notes, *notes))
        page = views.make_capture_page(noted, make_look(options.look))
    elif file_format != "json":
        noted = replace(after, notes=(*after.notes, AFTER))
        map_pictures = list(draw_pictures(noted, options, thumbnails=file_format != "md"))
    pictures = [*map_pictures, make_prediction_table(run.outcome)]
    return make_result_answer(result, options.title, pictures=pictures, page=page)
