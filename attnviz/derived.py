"""Captures of the numbers that a method names, made by a model itself or of other numbers."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from attnviz.errors import InputError, UsageError
from attnviz.methods import METHODS_THROUGH_LAYERS, note_methods
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
    """Make the capture that a request asks for, with the numbers that a method names as weights.

    source: a function that makes a capture of a request, for example by running a model. method:
    what the numbers are, such as ``norm`` or ``rollout``. token: the prediction that gradients are
    taken of, one token or class by name or number; None: the likeliest. summed: for norms only, one
    head a layer that has the norm of the sum over the chosen heads.

    Two methods, ``rollout`` and ``chefer``, are computed from the maps of all layers and heads.
    Their capture holds every layer with one head each, whichever layers and heads the request
    names. The notes of the capture say what its numbers are.

    Raises UsageError for one of these two where the request names cross-attention, InputError where
    the numbers cannot be computed, and the errors of the source.
    """
    target = Target(token)
    is_through_layers = method in METHODS_THROUGH_LAYERS
    if not is_through_layers:
        method_request = replace(
            request,
            keep="weights",
            method=method,  # type: ignore[arg-type]
            summed=summed,
            target=target,
        )
        return note_methods(source(method_request))
    if "cross" in request.kinds:
        raise UsageError(
            f"--weights {method} goes through the layers of one text, and cross-attention looks "
            "from one to another: use --map encoder or --map decoder",
        )
    whole_request = Request(
        truncate=request.truncate,
        kinds=request.kinds,
        method="attention" if method == ROLLOUT else "gradient",
        target=target,
    )
    return derive_through_layers(source(whole_request), method)


def derive_through_layers(capture: Capture, method: str) -> Capture:
    """Replace the maps of a capture by numbers that are computed through all of its layers.

    method: ``rollout``, computed from attention weights, or ``chefer``, whose result is called
    relevance, computed from gradients. capture: it holds these weights or gradients, of all layers
    and heads. Its maps of cross-attention, which lead from one text to another, are left out,
    unless it has no others.

    Raises InputError where the numbers cannot be computed.
    """
    from attnviz.analysis.rollout import replace_by_relevance, replace_by_rollout

    maps_of_one_text = tuple(each for each in capture.maps if each.kind != "cross")
    maps = maps_of_one_text or capture.maps
    compute = replace_by_rollout if method == ROLLOUT else replace_by_relevance
    try:
        return compute(replace(capture, maps=maps))
    except ValueError as error:
        raise InputError(f"--weights {method}: {error}") from error
