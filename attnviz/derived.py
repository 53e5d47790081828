"""Captures of the numbers that a method names, made by a model itself or of other numbers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeAlias

from attnviz.errors import InputError, UsageError
from attnviz.methods import MADE_OF, explained
from attnviz.record import ROLLOUT, Capture
from attnviz.request import Request, Target

Source: TypeAlias = Callable[[Request], Capture]


def taken(
    source: Source,
    request: Request,
    method: str,
    token: str | int | None = None,
    *,
    summed: bool = False,
) -> Capture:
    """What a source has for a request, as numbers of a method, cell by cell; the notes say what they are.

    token: the prediction that gradients are of. summed: of norms that of the sum over the chosen heads of a layer.
    rollout and chefer are of all layers, whichever the request names. Raises UsageError for a map between two texts,
    InputError where it cannot be made, and as the source does.
    """
    target = Target(token)
    if method not in MADE_OF:
        named = replace(request, keep="weights", method=method, summed=summed, target=target)  # type: ignore[arg-type]
        return explained(source(named))
    if "cross" in request.kinds:
        raise UsageError(
            f"--weights {method} goes through the layers of one text, and cross-attention looks from one to another: "
            "use --map encoder or --map decoder"
        )
    of: Literal["attention", "gradient"] = "attention" if method == ROLLOUT else "gradient"
    whole = source(
        Request(truncate=request.truncate, kinds=request.kinds, method=of, target=target)
    )
    return through_layers(whole, method)


def through_layers(capture: Capture, method: str) -> Capture:
    """The rollout or relevance of the maps of a capture that are of one text. Raises InputError."""
    from attnviz.analysis.rollout import relevance, rolled_out

    maps = tuple(part for part in capture.maps if part.kind != "cross") or capture.maps
    make = rolled_out if method == ROLLOUT else relevance
    try:
        return make(replace(capture, maps=maps))
    except ValueError as error:
        raise InputError(f"--weights {method}: {error}") from error
