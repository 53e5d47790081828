"""Any torch module: its attention is found in the calls of torch's functions while it runs, without an edit to it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnviz.engine.observers.base import Observer, Seen, Site
from attnviz.engine.observers.capture import Probe
from attnviz.engine.observers.survey import Survey
from attnviz.engine.running import follow
from attnviz.engine.tap import Tap, slow_path
from attnviz.errors import AttnvizError, InputError, ModelError
from attnviz.models.inputs import (
    Arguments,
    find_float_type,
    is_array,
    list_readings,
    require_arguments,
)
from attnviz.models.maps import (
    Choice,
    assemble,
    choose,
    fidelity,
    number_layers,
    places,
    require_room,
    wanted_heads,
)
from attnviz.models.restore import as_found, in_turn, translate_failures
from attnviz.models.untouched import (
    LAYERWISE,
    allowed_change,
    coarsest_type,
    explain_change,
    measure_change,
    same_randomness,
)
from attnviz.record import Capture, Kind
from attnviz.request import Request


@in_turn
def capture_module(net: nn.Module, inputs: Any, request: Request) -> Capture:
    """Run a module on inputs (a tensor, a sequence of arguments, or a mapping of named ones) and keep its attention.

    Found are nn.MultiheadAttention, the nn.Transformer layers, calls of scaled_dot_product_attention, our own layer,
    and every softmax whose result is multiplied with values. Layers are numbered in the order in which they run. The
    module gets NumPy arrays and lists of numbers as tensors, unless it takes them as they are. Raises ModelError if
    there is no attention, or not the same in each run, or if the module fails; InputError for several texts at once,
    and for inputs that the module does not take.
    """
    arguments, survey, watched = survey_inputs(net, inputs)
    if not survey.seen:
        raise ModelError(
            f"{type(net).__name__} has no attention that could be found: no nn.MultiheadAttention, no "
            "scaled_dot_product_attention, no layer of attnviz, no softmax whose result multiplies values"
        )
    sites = number_layers(survey.seen, kinds_of(survey.seen))
    chosen = choose(sites, request)
    sizes = {(site.kind, site.layer): site.size for site in sites}

    def sides(choice: Choice) -> Any:
        return tuple(map(places, sizes[choice.kind, choice.layers[0]]))

    require_room(chosen, sides, request)
    probe = Probe(wanted_heads(chosen, sites), request, stop=False)
    run(net, arguments, probe)
    if probe.calls != len(sites):
        raise ModelError(
            f"{type(net).__name__} calls attention {len(sites)} times in one run and {probe.calls} times in the next"
        )
    change = require_same(net, arguments, watched)
    measured, warning = fidelity(probe.found)
    maps = assemble(chosen, sites, probe.found, sides, request)
    notes = tuple(line for line in (names_note(survey.seen, sites), warning) if line)
    return Capture(
        type(net).__name__,
        "",
        maps,
        notes,
        fidelity=measured,
        fidelity_reference=None if measured is None else LAYERWISE,
        output_change=change,
    )


def survey_inputs(net: nn.Module, inputs: Any) -> tuple[Arguments, Survey, Any]:
    """Find the first reading of the inputs with which the module runs and attends.

    Returns that reading, the calls that the module makes then, and what it puts out.

    If it attends with none, the survey is empty. Raises the error of the last reading if it runs with none.
    """
    failure: AttnvizError | None = None
    idle: Arguments | None = None
    for reading in list_readings(inputs, find_float_type(net)):
        try:
            require_arguments(net, reading)
            reading = move_arguments(net, reading)
            with follow(net) as running:
                survey = Survey(running)
                outputs = run(net, reading, survey)
        except AttnvizError as error:
            failure = error
            continue
        if survey.seen:
            return reading, survey, outputs
        idle = reading
    if idle is None and failure is not None:
        raise failure
    return idle or Arguments.of(inputs), Survey(), None


def run(net: nn.Module, arguments: Arguments, observer: Observer) -> Any:
    """Run a module before an observer, and leave it and the caller's inputs as they were. Return what it puts out.

    Raises ModelError if it fails, InputError for several texts.
    """
    tap = Tap(observer, batch=count_texts(arguments))
    with slow_path(), running_alike(net), tap:
        return call(net, arguments.copy())


def run_untouched(net: nn.Module, arguments: Arguments) -> Any:
    """Return what a module puts out in evaluation, with nobody watching. Raises ModelError if it fails."""
    with running_alike(net):
        return call(net, arguments.copy())


def call(net: nn.Module, arguments: Arguments) -> Any:
    """Call a module."""
    return net(*arguments.places, **arguments.names)


@contextmanager
def running_alike(net: nn.Module) -> Iterator[None]:
    """Let a module run in evaluation, with the same random numbers each time, and leave it as it was."""
    with as_found(net), torch.no_grad(), same_randomness(device_of(net)), translate_failures(net):
        yield


def require_same(net: nn.Module, arguments: Arguments, watched: Any) -> float:
    """Return how much what a module puts out changes when it is watched, as a share of it.

    Raises ModelError if rounding does not explain it.
    """
    untouched = run_untouched(net, arguments)
    change, allowed = (
        measure_change(untouched, watched),
        allowed_change(untouched, coarsest_type(net)),
    )
    if change <= allowed:
        return change
    if measure_change(untouched, run_untouched(net, arguments)) > allowed:
        name = type(net).__name__
        raise ModelError(
            f"{name} puts out something else each time it runs: what one run shows holds for no other"
        )
    raise explain_change(net, change)


def device_of(net: nn.Module) -> torch.device:
    """Return the device of a module's first parameter; the CPU if it has none."""
    parameter = next(net.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def move_arguments(net: nn.Module, arguments: Arguments) -> Arguments:
    """Return arguments with their CPU tensors on the device of a module, as nn.DataParallel would move them.

    Of a module without parameters, or on several devices, or on none, they stay where they are.
    """
    devices = {part.device for part in net.parameters()}
    if len(devices) != 1 or torch.device("meta") in devices:
        return arguments
    device = devices.pop()

    def move(value: Any) -> Any:
        return (
            value.to(device) if isinstance(value, Tensor) and value.device.type == "cpu" else value
        )

    names = {name: move(value) for name, value in arguments.names.items()}
    return Arguments(tuple(map(move, arguments.places)), names)


def count_texts(arguments: Arguments) -> int:
    """Count the texts that arguments hold: the first axis of the first tensor or array; 1 where there is none.

    Raises InputError for nested tensors.
    """
    arrays = [value for value in arguments.values if isinstance(value, Tensor) or is_array(value)]
    if any(getattr(array, "is_nested", False) for array in arrays):
        raise InputError("inputs= holds a nested tensor: give one text, as a tensor of its own")
    shapes = (tuple(np.shape(array)) for array in arrays)
    return next((shape[0] for shape in shapes if shape), 1)


def kinds_of(seen: Sequence[Seen]) -> list[Kind]:
    """Which tokens attend to which: another text's, or, where there are two, the encoder's or the decoder's own."""
    crossing = [call for call in seen if is_cross(call)]
    found: list[Kind] = []
    for call in seen:
        if is_cross(call):
            found.append("cross")
        elif not crossing:
            found.append("self")
        else:
            found.append(side_of(call, crossing))
    return found


def is_cross(call: Seen) -> bool:
    """Whether queries and keys are of two texts."""
    return call.cross or call.queries != call.keys


def side_of(call: Seen, crossing: Sequence[Seen]) -> Kind:
    """Which of two texts attends to itself: as the module's name says, else by its length."""
    names: Callable[[str], bool] = call.where.lower().__contains__
    if names("decoder") != names("encoder"):
        return "decoder" if names("decoder") else "encoder"
    return (
        "decoder"
        if any(call.queries == other.queries != other.keys for other in crossing)
        else "encoder"
    )


def names_note(seen: Sequence[Seen], sites: Sequence[Site]) -> str:
    """Which module each layer is."""
    told = [
        f"{'' if site.kind == 'self' else f'{site.kind} '}L{site.layer} {call.where}"
        for call, site in zip(seen, sites, strict=True)
        if call.where
    ]
    return f"layers: {', '.join(told)}" if told else ""
