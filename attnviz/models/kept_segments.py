"""Segments of a text that a capture without weights is made for."""

from collections.abc import Sequence
from dataclasses import replace

from attnviz.analysis.segments import choose_text_segments
from attnviz.errors import InputError
from attnviz.escape import escape
from attnviz.record import Segment
from attnviz.request import Request

MOST_NAMED = 5  # segments in a note


def resolve_segments(request: Request, text: str, messages: Sequence[Segment]) -> Request:
    """Return a request that names the segments of which shares are kept.

    There are none if the request names none, or where the weights are kept, which tell all shares.
    text: as the model reads it. messages: those of a chat. Raises InputError for segments that do
    not fit the text.
    """
    if request.keep == "weights" or request.segments == ():
        return replace(request, segments=())
    try:
        segments = choose_text_segments(request.segments, text, messages)
    except ValueError as error:
        raise InputError(f"--segments: {error}") from error
    return replace(request, segments=segments)


def note_kept_segments(segments: Sequence[Segment] | None) -> tuple[str, ...]:
    """Return a line that says for which segments a capture without weights is exact, if any."""
    if not segments:
        return ()
    names = [escape(segment.name) for segment in segments[:MOST_NAMED]]
    if len(segments) > MOST_NAMED:
        names.append("...")
    count = "1 segment" if len(segments) == 1 else f"{len(segments)} segments"
    return (f"shares of {count} are exact: {', '.join(names)}",)
