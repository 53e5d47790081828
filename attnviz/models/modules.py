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
    require_capture_memory,
)
from attnviz.models.restore import (
    leave_as_found,
    translate_failures,
    wait_for_turn,
)
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
    """Run any torch module on inputs, and return what a request names of its attention.

    inputs: a tensor, a sequence of arguments, or a mapping of named ones. The module gets NumPy
    arrays and lists of numbers as tensors, unless it takes them as they are. request: the layers
    and heads, and what to keep of them.

    The attention that is found is that of nn.MultiheadAttention, of the nn.Transformer layers, of
    calls of scaled_dot_product_attention, of attnviz.layer, and of every softmax whose result is
    multiplied with values. Layers are numbered in the order in which they run.

    Raises ModelError if there is no attention, if two runs do not make the same calls, if the
    output changes when the module is observed, or if the module fails; UsageError for a layer or
    head that is not there; InputError for several texts at once, for inputs that the module does
    not take, and for weights that do not fit into memory.
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

    require_capture_memory(choices, find_sides, request)
    heads_by_call = group_heads_by_call(choices, sites)
    probe = CaptureObserver(heads_by_call, request, stop=False)
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
    """Run a module once, in order to find the calls of attention that it makes.

    A user's inputs can mean several things, such as one array or several arguments. The first
    reading is chosen with which the module runs and makes calls of attention.

    Returns the arguments of that reading, the observer that lists the calls, and the module's
    output. If the module runs but never attends, the list is empty and the output is None. If it
    cannot run with any reading, the error of the last one is raised.
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
    """Run a module while an observer sees its calls of attention, and return its output.

    The module and the caller's inputs stay as they were. Raises ModelError if the module fails, and
    whatever the observer raises, such as InputError for several texts.
    """
    tap = Tap(observer, batch=count_texts(arguments))
    with disable_fast_path(), run_alike(net), tap:
        return call_module(net, arguments.copy())


def run_untouched(net: nn.Module, arguments: Arguments) -> Any:
    """Run a module in evaluation without an observer, and return its output.

    Raises ModelError if it fails.
    """
    with run_alike(net):
        return call_module(net, arguments.copy())


def call_module(net: nn.Module, arguments: Arguments) -> Any:
    """Call a module, and return its output."""
    return net(*arguments.positional, **arguments.named)


@contextmanager
def run_alike(net: nn.Module) -> Iterator[None]:
    """Let a module run in evaluation, with the same random numbers each time, and restore it.

    No gradients are computed. Raises ModelError if the module fails.
    """
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
    """Run a module without an observer, and return how its output changed when it was observed.

    watched: the output when it was observed. The change is relative, as a share of the output's
    size. Raises ModelError if rounding cannot explain it, either because the output is another one
    in every run, or because the observation changed it.
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
    """Return the arguments of a module with their CPU tensors on the module's device.

    Tensors on other devices, and those inside other values, stay where they are. All stay if the
    module has no parameters, has them on several devices, or has them on the meta device.
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
    """Return the number of texts in the arguments of a module: the length of their first axis.

    It is that of the first tensor or array that has an axis, and 1 if there is none. Raises
    InputError for nested tensors.
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
    """List for each call of attention of a module which tokens attend to which.

    A call is "cross" if its queries and keys are the tokens of two texts. If a module makes such
    calls, each of its other calls is one of the "encoder" or of the "decoder". Otherwise all calls
    are "self".
    """
    cross_calls = [call for call in calls if is_cross(call)]
    kinds: list[Kind] = []
    for call in calls:
        if is_cross(call):
            kinds.append("cross")
        elif not cross_calls:
            kinds.append("self")
        else:
            kinds.append(choose_own_kind(call, cross_calls))
    return kinds


def is_cross(call: SurveyedCall) -> bool:
    """Return True if the queries and keys of a call are of two texts."""
    return call.cross or call.queries != call.keys


def choose_own_kind(call: SurveyedCall, cross_calls: Sequence[SurveyedCall]) -> Kind:
    """Return whether a call of self-attention is one of the encoder or of the decoder.

    The name of the calling module tells if it holds one of the two words. Otherwise the call is one
    of the decoder if its text is as long as the queries of a call of cross-attention.

    cross_calls: the calls in which one text attends to the other.
    """
    where = call.where.lower()
    in_decoder, in_encoder = "decoder" in where, "encoder" in where
    if in_decoder != in_encoder:
        return "decoder" if in_decoder else "encoder"
    is_as_long = any(call.queries == other.queries != other.keys for other in cross_calls)
    return "decoder" if is_as_long else "encoder"


def describe_layers(calls: Sequence[SurveyedCall], sites: Sequence[AttentionSite]) -> str:
    """Return a note that names the module of each layer; empty if no name is known.

    calls: the calls of attention with the names of their modules. sites: the layers of these calls.
    """
    names: list[str] = []
    for call, site in zip(calls, sites, strict=True):
        prefix = "" if site.kind == "self" else f"{site.kind} "
        if call.where:
            names.append(f"{prefix}L{site.layer} {call.where}")
    return f"layers: {', '.join(names)}" if names else ""
