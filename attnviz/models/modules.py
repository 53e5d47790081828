"""Any torch module: its attention is found in the calls of torch's functions while it runs, without an edit to it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attnviz.engine.probe import Observer, Probe, Seen, Site, Survey
from attnviz.engine.running import follow
from attnviz.engine.tap import Tap, slow_path
from attnviz.errors import ModelError
from attnviz.models.maps import Choice, assemble, choose, fidelity, number_layers, places, require_room, wanted_heads
from attnviz.models.restore import as_found, in_turn
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
    and every softmax whose result is multiplied with values. Layers are numbered in the order in which they run. Raises
    ModelError if there is no attention, or not the same in each run, InputError for several texts at once.
    """
    with follow(net) as running:
        survey = Survey(running)
        watched = run(net, inputs, survey)
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
    run(net, inputs, probe)
    if probe.calls != len(sites):
        raise ModelError(
            f"{type(net).__name__} calls attention {len(sites)} times in one run and {probe.calls} times in the next"
        )
    change = require_same(net, inputs, watched)
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


def run(net: nn.Module, inputs: Any, observer: Observer) -> Any:
    """Run a module before an observer, and leave it as it was. Return what it puts out."""
    tensors = [part for part in (*arguments_of(inputs), *options_of(inputs).values()) if isinstance(part, Tensor)]
    tap = Tap(observer, batch=tensors[0].shape[0] if tensors and tensors[0].ndim else 1)
    with as_found(net), torch.no_grad(), slow_path(), same_randomness(device_of(net)), tap:
        return net(*arguments_of(inputs), **options_of(inputs))


def require_same(net: nn.Module, inputs: Any, watched: Any) -> float:
    """Return how much what a module puts out changes when it is watched, as a share of it.

    Raises ModelError if rounding does not explain it.
    """
    untouched = run_untouched(net, inputs)
    change, allowed = measure_change(untouched, watched), allowed_change(untouched, coarsest_type(net))
    if change <= allowed:
        return change
    name = type(net).__name__
    if measure_change(untouched, run_untouched(net, inputs)) > allowed:
        raise ModelError(f"{name} puts out something else each time it runs: what one run shows holds for no other")
    raise explain_change(net, change)


def run_untouched(net: nn.Module, inputs: Any) -> Any:
    """Return what a module puts out in evaluation, with nobody watching."""
    with as_found(net), torch.no_grad(), same_randomness(device_of(net)):
        return net(*arguments_of(inputs), **options_of(inputs))


def arguments_of(inputs: Any) -> Sequence[Any]:
    """Return the arguments of a call that come without a name."""
    if isinstance(inputs, (tuple, list)):
        return inputs
    return () if named(inputs) else (inputs,)


def options_of(inputs: Any) -> Mapping[str, Any]:
    """Return the arguments of a call that come by name."""
    return inputs if named(inputs) else {}


def device_of(net: nn.Module) -> torch.device:
    """Return the device of a module's first parameter; the CPU if it has none."""
    parameter = next(net.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def named(inputs: Any) -> bool:
    """Whether inputs come by name."""
    return isinstance(inputs, Mapping)


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
