"""Captures of the numbers that a method names, made by a model itself or of other numbers."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from attnviz.errors import InputError, UsageError
from attnviz.methods import MADE_OF, note_methods
from attnviz.record import ROLLOUT, Capture
from attnviz.request import Request, Target

CaptureSource: TypeAlias = Callable[[Request], Capture]


def derive_capture(
    source: CaptureSource,
    request: Request,
    method: str,
    token: str | int | None = None,
    *,
    summed: bool = False,
) -> Capture:
    """Capture what a request asks for in the numbers of a method; the notes say what they are.

    token: the prediction that gradients are of. summed: of norms, that of the sum over the chosen
    heads of a layer. rollout and chefer are of all layers, whichever the request names.

    Raises UsageError for a map between two texts, InputError where the numbers cannot be made, and
    as the source does.
    """
    target = Target(token)
    if method not in MADE_OF:
        of_method = replace(
            request,
            keep="weights",
            method=method,  # type: ignore[arg-type]
            summed=summed,
            target=target,
        )
        return note_methods(source(of_method))
    if "cross" in request.kinds:
        raise UsageError(
            f"--weights {method} goes through the layers of one text, and cross-attention looks "
            "from one to another: use --map encoder or --map decoder",
        )
    whole = Request(
        truncate=request.truncate,
        kinds=request.kinds,
        method="attention" if method == ROLLOUT else "gradient",
        target=target,
    )
    return derive_through_layers(source(whole), method)


def derive_through_layers(capture: Capture, method: str) -> Capture:
    """Compute the rollout or the relevance of the maps of a capture that are of one text.

    Raises InputError where that cannot be done.
    """
    from attnviz.analysis.rollout import replace_by_relevance, replace_by_rollout

    of_one_text = tuple(each for each in capture.maps if each.kind != "cross")
    maps = of_one_text or capture.maps
    compute = replace_by_rollout if method == ROLLOUT else replace_by_relevance
    try:
        return compute(replace(capture, maps=maps))
    except ValueError as error:
        raise InputError(f"--weights {method}: {error}") from error
