"""What a command works on: a model run on a text, or a capture from a file."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from attnviz.cli import text as text_input
from attnviz.cli.options import note
from attnviz.errors import InputError, UsageError
from attnviz.record import Capture
from attnviz.request import Placement, Prompt, Request
from attnviz.selection import require_kinds, require_window, select, window_notes

OF_A_RUN = "model", "revision", "device", "dtype", "truncate", "pair", "target", "chat", "generate"


def take(text: str | None, request: Request, options: dict[str, Any], quiet: bool) -> Capture:
    """Load the model that the options name, and run it on the text."""
    from attnviz.models import load

    content = text_input.read(text, quiet)
    for name in ("pair", "target"):
        if options[name] is not None and not options[name].strip():
            raise InputError(f"the text of --{name} is empty")
    loaded = load(
        options["model"],
        revision=options["revision"],
        placement=Placement(options["device"], options["dtype"]),
        offline=options["offline"],
        quiet=quiet or not sys.stderr.isatty(),
        writes=bool(options["generate"]),
    )
    prompt = Prompt(content, options["pair"], options["target"], options["chat"], options["generate"] or 0)
    return loaded.capture(prompt, request)


def reread(text: str | None, path: str, request: Request) -> Capture:
    """The capture of a file, as far as the request names it. Raises UsageError for options that need a model."""
    from attnviz.storage import load

    given = click.get_current_context().get_parameter_source
    told = [name for name in OF_A_RUN if given(name) is not ParameterSource.DEFAULT]
    if text is not None or told:
        what = "TEXT" if text is not None else f"--{told[0]}"
        raise UsageError(f"--from reads a capture that was made before: leave {what} out")
    capture = load(Path(path))
    there = tuple(dict.fromkeys(part.kind for part in capture.maps))
    kinds = require_kinds(request.kinds, there, request.preferred)
    return windowed(select(capture, request.layers, request.heads, kinds), request)


def windowed(capture: Capture, request: Request) -> Capture:
    """The window of a capture that the request asks for. Raises UsageError, InputError."""
    if not request.windowed:
        return capture
    try:
        maps = tuple(
            part.window(
                require_window(request.rows, len(part.queries), "--rows"),
                require_window(request.columns, len(part.keys), "--cols"),
            )
            for part in capture.maps
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    where = window_notes(request.rows, request.columns, ((len(part.queries), len(part.keys)) for part in capture.maps))
    return replace(capture, maps=maps, notes=(*capture.notes, *where))


def tell(capture: Capture, quiet: bool, verbose: bool) -> None:
    """Say on stderr how exact the weights are, if that is asked for."""
    if not verbose:
        return
    if capture.fidelity is None:
        note("fidelity: not measured", quiet)
    else:
        note(f"fidelity: weights times values are the model's own output to {capture.fidelity:.1e} of its size", quiet)
