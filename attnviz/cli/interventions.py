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
from attnviz.cli.output import Answer, Destination, deliver, make_capture_answer, make_result_answer
from attnviz.cli.picture import (
    PictureOptions,
    draw_pictures,
    make_look,
    make_request,
    prepare_capture,
)
from attnviz.cli.sources import load_model_for, make_method_source, make_word_source
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
    """Raise UsageError for an intervention that the other options leave without meaning."""
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
    """Run a model on the text with and without an intervention.

    Raises UsageError, ModelError, InputError.
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
        Prediction(captures.numbers.target_token),
        kind=captures.selection.kind,
        truncate=captures.model.truncate,
    )
    target = None if outcome.response.kind == "vector" else outcome.response.target

    def source(run: CaptureSource) -> CaptureSource:  # before and after are about one prediction
        numbers = make_method_source(run, captures.numbers, target)
        return make_word_source(numbers, captures.source.words)

    changed = partial(model.capture, prompt, intervention=make_intervention(outcome.changes))
    after = partial(capture_with_notes, source(changed), notes)
    return ChangedRun(outcome, source(partial(model.capture, prompt)), after)


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
    """Run a model with the changes that the options name.

    Return what comes of them, and lines that say what they were.
    """
    from attnviz.experiments.intervention import Subject, find_changes, intervene
    from attnviz.results.intervention import explain_changes

    subject = Subject.of(model, prompt, kind, truncate=truncate)
    changes = find_changes(
        subject.scope,
        options.knocked_out,
        options.inside,
        options.ablated,
        options.replacement,
    )
    outcome = intervene(subject, changes, target, seed)
    return outcome, explain_changes(outcome.changes, outcome.scope)


def capture_with_notes(source: CaptureSource, notes: Sequence[str], request: Request) -> Capture:
    """Capture from a source, and add notes."""
    capture = source(request)
    return replace(capture, notes=(*capture.notes, *notes))


def deliver_changed(
    run: ChangedRun,
    target: Destination | None,
    screen: "Screen",
    options: PictureOptions,
    result: ResultOptions,
) -> None:
    """Show or write what a model does under an intervention: its maps, and the prediction."""
    from attnviz.results.intervention import count_matrices

    file_format = target.file_format if target else None
    request = make_request(options, file_format, screen)
    compares = options.shows_one_picture() and not options.shows_everything(file_format)
    if compares:  # tiles have no difference
        request = replace(request, keep="weights")
    after = prepare_capture(run.after(request), options, file_format)
    result.talk.tell_fidelity(after)
    before = None
    if compares and count_matrices(after) == 1:
        before = prepare_capture(run.before(request), options, file_format)
    answer = make_intervention_answer(run, before, after, file_format, options)
    deliver(answer, target, screen, result, options.look.cmap)


def make_intervention_answer(
    run: ChangedRun,
    before: Capture | None,
    after: Capture,
    file_format: str | None,
    options: PictureOptions,
) -> Answer:
    """Return what is delivered in a format. before: where one map is drawn, to compare it with."""
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
    drawn: list[Picture] = []
    page = None
    if before is not None:
        drawn = [draw_intervention(before, after, make_look(options.look))]
    elif file_format == "html":
        notes = AFTER, *explain_prediction(run.outcome), summarise_likeliest(run.outcome)
        told = replace(after, notes=(*after.notes, *notes))
        page = views.make_capture_page(told, make_look(options.look))
    elif file_format != "json":
        told = replace(after, notes=(*after.notes, AFTER))
        drawn = list(draw_pictures(told, options, thumbnails=file_format != "md"))
    pictures = [*drawn, make_prediction_table(run.outcome)]
    return make_result_answer(result, options.title, pictures=pictures, page=page)
