"""Any torch module: its attention is found in the calls of torch's functions while it runs, without an edit to it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as registry

from attnviz.engine.probe import Observer, Probe, Seen, Site, Source, Survey
from attnviz.engine.tap import Tap, slow_path
from attnviz.errors import AttnvizError, InputError, ModelError
from attnviz.models.inputs import Arguments, find_float_type, is_array, list_readings, require_arguments
from attnviz.models.maps import Choice, assemble, choose, fidelity, number_layers, places, require_room, wanted_heads
from attnviz.models.restore import as_found, in_turn, translate_failures
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
    arguments, survey = survey_inputs(net, inputs)
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
    measured, warning = fidelity(probe.found, torch.float32)
    maps = assemble(chosen, sites, probe.found, sides, request)
    notes = names_note(survey.seen, sites), warning
    return Capture(type(net).__name__, "", maps, tuple(line for line in notes if line), fidelity=measured)


def survey_inputs(net: nn.Module, inputs: Any) -> tuple[Arguments, Survey]:
    """Find the first reading of the inputs with which the module runs and attends, and the calls that it makes then.

    If it attends with none, the survey is empty. Raises the error of the last reading if it runs with none.
    """
    failure: AttnvizError | None = None
    idle: Arguments | None = None
    for reading in list_readings(inputs, find_float_type(net)):
        survey = Survey()
        try:
            require_arguments(net, reading)
            run(net, reading, survey)
        except AttnvizError as error:
            failure = error
            continue
        if survey.seen:
            return reading, survey
        idle = reading
    if idle is None and failure is not None:
        raise failure
    return idle or Arguments.of(inputs), Survey()


def run(net: nn.Module, arguments: Arguments, observer: Observer) -> None:
    """Run a module before an observer, and leave it and the caller's inputs as they were.

    Raises ModelError if it fails, InputError for several texts.
    """
    copies = arguments.copy()
    tap = Tap(observer, batch=count_texts(arguments))
    with as_found(net), torch.no_grad(), slow_path(), followed(net, tap), translate_failures(net), tap:
        net(*copies.places, **copies.names)


def count_texts(arguments: Arguments) -> int:
    """Count the texts that arguments hold: the first axis of the first tensor or array; 1 where there is none.

    Raises InputError for nested tensors.
    """
    arrays = [value for value in arguments.values if isinstance(value, Tensor) or is_array(value)]
    if any(getattr(array, "is_nested", False) for array in arrays):
        raise InputError("inputs= holds a nested tensor: give one text, as a tensor of its own")
    shapes = (tuple(np.shape(array)) for array in arrays)
    return next((shape[0] for shape in shapes if shape), 1)


@contextmanager
def followed(net: nn.Module, tap: Tap) -> Iterator[None]:
    """Tell a tap which module of the net is running."""
    names = {module: name for name, module in net.named_modules()}
    running: list[str] = []
    this_thread = get_ident()  # torch calls the hooks in every thread

    def enter(module: nn.Module, _: Any) -> None:
        if get_ident() == this_thread:
            running.append(names.get(module, ""))
            tap.source = Source(where=running[-1])

    def leave(*_: Any) -> None:
        if get_ident() == this_thread:
            running.pop()
            tap.source = Source(where=running[-1] if running else "")

    hooks = registry.register_module_forward_pre_hook(enter), registry.register_module_forward_hook(leave)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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
    return "decoder" if any(call.queries == other.queries != other.keys for other in crossing) else "encoder"


def names_note(seen: Sequence[Seen], sites: Sequence[Site]) -> str:
    """Which module each layer is."""
    told = [
        f"{'' if site.kind == 'self' else f'{site.kind} '}L{site.layer} {call.where}"
        for call, site in zip(seen, sites, strict=True)
        if call.where
    ]
    return f"layers: {', '.join(told)}" if told else ""
