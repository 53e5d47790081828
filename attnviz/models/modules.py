"""Any torch module: its attention is found in calls of torch's functions while it runs.

The module is not edited for that.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnviz.engine.observers.base import AttentionSite, Observer, SurveyedCall
from attnviz.engine.observers.capture import CaptureObserver
from attnviz.engine.observers.survey import SurveyObserver
from attnviz.engine.running import watch_modules
from attnviz.engine.tap import Tap, disable_fast_path
from attnviz.errors import AttnvizError, InputError, ModelError
from attnviz.models.inputs import (
    Arguments,
    find_float_type,
    is_array,
    list_readings,
    require_arguments,
)
from attnviz.models.maps import (
    MapChoice,
    assemble_maps,
    choose_maps,
    group_heads_by_call,
    make_position_tokens,
    measure_fidelity,
    number_layers,
    require_weights_memory,
)
from attnviz.models.restore import leave_as_found, translate_failures, wait_for_turn
from attnviz.models.untouched import (
    LAYERWISE,
    explain_change,
    find_allowed_change,
    find_coarsest_type,
    measure_change,
    repeat_randomness,
)
from attnviz.record import Capture, Kind
from attnviz.request import Request
from attnviz.selection import MapTokens


@wait_for_turn
def capture_module(net: nn.Module, inputs: Any, request: Request) -> Capture:
    """Run a module on inputs, and keep of its attention what a request names.

    inputs: a tensor, a sequence of arguments, or a mapping of named ones. The module gets NumPy
    arrays and lists of numbers as tensors, unless it takes them as they are.

    The attention that is found is that of nn.MultiheadAttention, the nn.Transformer layers, calls
    of scaled_dot_product_attention, our own layer, and every softmax whose result is multiplied
    with values. Layers are numbered in the order in which they run.

    Raises ModelError if there is no attention, or not the same in each run, or if the module fails;
    InputError for several texts at once, and for inputs that the module does not take.
    """
    name = type(net).__name__
    arguments, survey, outputs = survey_inputs(net, inputs)
    if not survey.seen:
        raise ModelError(
            f"{name} has no attention that could be found: no nn.MultiheadAttention, "
            "no scaled_dot_product_attention, no layer of attnviz, "
            "no softmax whose result multiplies values",
        )
    sites = number_layers(survey.seen, list_kinds(survey.seen))
    choices = choose_maps(sites, request)
    sizes = {(site.kind, site.layer): site.size for site in sites}

    def find_sides(choice: MapChoice) -> MapTokens:
        queries, keys = sizes[choice.kind, choice.layers[0]]
        return make_position_tokens(queries), make_position_tokens(keys)

    require_weights_memory(choices, find_sides, request)
    probe = CaptureObserver(group_heads_by_call(choices, sites), request, stop=False)
    run_module(net, arguments, probe)
    if probe.calls != len(sites):
        raise ModelError(
            f"{name} calls attention {len(sites)} times in one run "
            f"and {probe.calls} times in the next",
        )
    change = measure_output_change(net, arguments, outputs)
    fidelity, warning = measure_fidelity(probe.found)
    maps = assemble_maps(choices, sites, probe.found, find_sides, request)
    lines = describe_layers(survey.seen, sites), warning
    return Capture(
        name,
        "",
        maps,
        notes=tuple(line for line in lines if line),
        fidelity=fidelity,
        fidelity_reference=None if fidelity is None else LAYERWISE,
        output_change=change,
    )


def survey_inputs(net: nn.Module, inputs: Any) -> tuple[Arguments, SurveyObserver, Any]:
    """Find the first reading of inputs with which a module runs and attends.

    Returns that reading, the survey of the calls that the module makes then, and its output. If the
    module attends with none, the survey is empty. Raises the error of the last reading if it runs
    with none.
    """
    failure: AttnvizError | None = None
    idle_reading: Arguments | None = None
    for reading in list_readings(inputs, find_float_type(net)):
        try:
            require_arguments(net, reading)
            arguments = move_arguments(net, reading)
            with watch_modules(net) as running:
                survey = SurveyObserver(running)
                outputs = run_module(net, arguments, survey)
        except AttnvizError as error:
            failure = error
            continue
        if survey.seen:
            return arguments, survey, outputs
        idle_reading = arguments
    if idle_reading is None and failure is not None:
        raise failure
    return idle_reading or Arguments.from_inputs(inputs), SurveyObserver(), None


def run_module(net: nn.Module, arguments: Arguments, observer: Observer) -> Any:
    """Run a module before an observer, and return its output.

    The module and the caller's inputs stay as they were. Raises ModelError if the module fails,
    InputError for several texts.
    """
    tap = Tap(observer, batch=count_texts(arguments))
    with disable_fast_path(), run_alike(net), tap:
        return call_module(net, arguments.copy())


def run_untouched(net: nn.Module, arguments: Arguments) -> Any:
    """Run a module in evaluation with nobody watching, and return its output.

    Raises ModelError if it fails.
    """
    with run_alike(net):
        return call_module(net, arguments.copy())


def call_module(net: nn.Module, arguments: Arguments) -> Any:
    """Call a module, and return its output."""
    return net(*arguments.positional, **arguments.named)


@contextmanager
def run_alike(net: nn.Module) -> Iterator[None]:
    """Let a module run in evaluation, with the same random numbers each time, and restore it."""
    with (
        leave_as_found(net),
        torch.no_grad(),
        repeat_randomness(find_device(net)),
        translate_failures(net),
    ):
        yield


def measure_output_change(
    net: nn.Module,
    arguments: Arguments,
    watched: Any,
) -> float:
    """Return the relative change of a module's output when it is watched.

    watched: the output when it was watched. Raises ModelError if rounding does not explain the
    change.
    """
    untouched = run_untouched(net, arguments)
    change = measure_change(untouched, watched)
    allowed = find_allowed_change(untouched, find_coarsest_type(net))
    if change <= allowed:
        return change
    repeated = run_untouched(net, arguments)
    if measure_change(untouched, repeated) > allowed:
        name = type(net).__name__
        raise ModelError(
            f"{name} puts out something else each time it runs: "
            "what one run shows holds for no other",
        )
    raise explain_change(net, change)


def find_device(net: nn.Module) -> torch.device:
    """Return the device of a module's first parameter; the CPU if it has none."""
    parameter = next(net.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def move_arguments(net: nn.Module, arguments: Arguments) -> Arguments:
    """Return arguments with their CPU tensors on the device of a module.

    They move as nn.DataParallel would move them. They stay where they are if the module has no
    parameters, or has them on several devices, or on the meta device.
    """
    devices = {parameter.device for parameter in net.parameters()}
    if len(devices) != 1 or torch.device("meta") in devices:
        return arguments
    device = devices.pop()

    def move_value(value: Any) -> Any:
        is_on_cpu = isinstance(value, Tensor) and value.device.type == "cpu"
        return value.to(device) if is_on_cpu else value

    positional = tuple(move_value(value) for value in arguments.positional)
    named = {name: move_value(value) for name, value in arguments.named.items()}
    return Arguments(positional, named)


def count_texts(arguments: Arguments) -> int:
    """Count the texts that arguments hold: the first axis of the first tensor or array.

    It is 1 if there is none. Raises InputError for nested tensors.
    """
    arrays = [value for value in arguments.values if isinstance(value, Tensor) or is_array(value)]
    if any(getattr(array, "is_nested", False) for array in arrays):
        raise InputError("inputs= holds a nested tensor: give one text, as a tensor of its own")
    for array in arrays:
        shape = tuple(np.shape(array))
        if shape:
            return int(shape[0])
    return 1


def list_kinds(calls: Sequence[SurveyedCall]) -> list[Kind]:
    """List which tokens attend to which in each call.

    Those of two texts are "cross". If a module has such calls, its other calls are the encoder's or
    the decoder's own; else they are "self".
    """
    crossing = [call for call in calls if is_cross(call)]
    kinds: list[Kind] = []
    for call in calls:
        if is_cross(call):
            kinds.append("cross")
        elif not crossing:
            kinds.append("self")
        else:
            kinds.append(choose_own_kind(call, crossing))
    return kinds


def is_cross(call: SurveyedCall) -> bool:
    """Return True if the queries and keys of a call are of two texts."""
    return call.cross or call.queries != call.keys


def choose_own_kind(call: SurveyedCall, crossing: Sequence[SurveyedCall]) -> Kind:
    """Return whether a text that attends to itself is the encoder's or the decoder's.

    The name of the module tells, else the length of the text. crossing: the calls from one text to
    the other.
    """
    where = call.where.lower()
    in_decoder, in_encoder = "decoder" in where, "encoder" in where
    if in_decoder != in_encoder:
        return "decoder" if in_decoder else "encoder"
    asks_other_text = any(call.queries == other.queries != other.keys for other in crossing)
    return "decoder" if asks_other_text else "encoder"


def describe_layers(calls: Sequence[SurveyedCall], sites: Sequence[AttentionSite]) -> str:
    """Return a note that names the module of each layer; empty if no name is known."""
    names: list[str] = []
    for call, site in zip(calls, sites, strict=True):
        prefix = "" if site.kind == "self" else f"{site.kind} "
        if call.where:
            names.append(f"{prefix}L{site.layer} {call.where}")
    return f"layers: {', '.join(names)}" if names else ""
