"""What a loaded model is called with, as its user hands it over: arrays, lists, mappings and caches of any library."""

import copy
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from inspect import Parameter, Signature, signature
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from attnviz.errors import InputError

AMBIGUOUS = (
    "inputs= is a list of lists of numbers, which may be one array or several arguments: give a tensor or a NumPy "
    "array, a tuple of arguments, or a mapping of names"
)
MOST_NAMES = 12  # names of inputs in an error of one line


class Arguments(NamedTuple):
    """What a module is called with."""

    places: tuple[Any, ...]
    names: dict[str, Any]

    @classmethod
    def of(cls, inputs: Any) -> "Arguments":
        """Tell arguments by place from those by name; anything else than a sequence or a mapping is one argument."""
        if isinstance(inputs, Mapping):
            return cls((), {str(name): value for name, value in inputs.items()})
        if isinstance(inputs, (tuple, list)):
            return cls(tuple(inputs), {})
        return cls((inputs,), {})

    @property
    def values(self) -> tuple[Any, ...]:
        """All of them."""
        return (*self.places, *self.names.values())

    def convert(self, dtype: torch.dtype) -> "Arguments":
        """Make tensors of the arrays and of the lists of numbers. Raises InputError."""
        places = tuple(convert_array(value, dtype) for value in self.places)
        return Arguments(
            places, {name: convert_array(value, dtype) for name, value in self.names.items()}
        )

    def copy(self) -> "Arguments":
        """Copy what a run could change in place; an object that stands at two places is one object again."""
        return Arguments(*copy_changeable((self.places, self.names)))


def list_readings(inputs: Any, dtype: torch.dtype) -> Iterator[Arguments]:
    """Yield what inputs can mean to a module, the likeliest first: as they are, then with tensors made of arrays.

    Raises InputError for lists of lists that can mean one array as well as several arguments.
    """
    arguments = Arguments.of(inputs)
    is_table = (
        isinstance(inputs, list)
        and bool(inputs)
        and all(is_list_of_numbers(part) for part in inputs)
    )
    if is_table and len(inputs) > 1:
        raise InputError(AMBIGUOUS)
    yield arguments
    if is_table:  # one row: a batch of one
        yield Arguments((make_tensor(inputs, dtype),), {})
    if any(is_array(value) or is_list_of_numbers(value) for value in arguments.values):
        yield arguments.convert(dtype)


def find_float_type(net: nn.Module) -> torch.dtype:
    """Find the type that a module computes in: that of its first floating parameter, else torch's own."""
    numbers = (
        part.dtype for part in (*net.parameters(), *net.buffers()) if part.is_floating_point()
    )
    return next(numbers, torch.get_default_dtype())


def is_array(value: Any) -> bool:
    """Tell whether a value is an array of NumPy or of a library whose arrays become such, and no tensor of torch."""
    return hasattr(value, "__array__") and not isinstance(value, (Tensor, np.generic, type))


def is_list_of_numbers(value: Any) -> bool:
    """Tell whether a value is a list, nested or not, whose first innermost value is a number, an array or a tensor."""
    depth = 0
    while isinstance(value, (list, tuple)) and value:
        value, depth = value[0], depth + 1
    return depth > 0 and (isinstance(value, (int, float, np.generic, Tensor)) or is_array(value))


def convert_array(value: Any, dtype: torch.dtype) -> Any:
    """Make a tensor of an array or of a list of numbers; leave anything else as it is. Raises InputError."""
    if is_array(value):
        return make_tensor(value, dtype)
    holds_tensors = isinstance(value, list) and bool(value) and isinstance(value[0], Tensor)
    if isinstance(value, list) and is_list_of_numbers(value) and not holds_tensors:
        return make_tensor(value, dtype)
    return value


def make_tensor(value: Any, dtype: torch.dtype) -> Tensor:
    """Make a tensor of an array or of nested lists: whole numbers as int64, other numbers in the type given.

    Raises InputError for rows of different lengths, and for what is no number.
    """
    try:
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            return torch.stack(list(value))
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"inputs= holds lists that make no tensor: {reason}") from error
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"inputs= holds values of type {array.dtype}, which make no tensor: give numbers"
        )
    if array.dtype.kind == "f":
        return torch.tensor(array.astype(np.float64), dtype=dtype)
    if array.dtype.kind == "b":
        return torch.tensor(array)
    return torch.tensor(array.astype(np.int64))


def require_arguments(net: nn.Module, arguments: Arguments) -> None:
    """Raise InputError, naming what is wrong, unless a module takes arguments of these names and of this number."""
    takes = read_signature(net)
    if takes is None:
        return
    try:
        takes.bind(*arguments.places, **arguments.names)
    except TypeError as error:
        name = type(net).__name__
        raise InputError(
            f"{name} cannot be called with inputs=: {error}; {list_inputs(takes)}"
        ) from error


def require_names(net: nn.Module, names: Sequence[str], also: frozenset[str]) -> None:
    """Raise InputError for names that a model does not know; a model that takes any would leave them out silently.

    also: names that may be given nevertheless.
    """
    takes = read_signature(net)
    if takes is None:
        return
    known = also | takes.parameters.keys() | find_earlier_names(net.forward)
    unknown = [name for name in names if name not in known]
    if unknown:
        names_line = ", ".join(repr(name) for name in unknown)
        raise InputError(
            f"{type(net).__name__} takes no input named {names_line}; {list_inputs(takes)}"
        )


def find_earlier_names(function: Any) -> frozenset[str]:
    """Find the earlier names of inputs: decorators that still take them hold them as texts, signatures lack them."""
    names: set[str] = set()
    while hasattr(function, "__wrapped__"):
        cells = getattr(function, "__closure__", None) or ()
        names.update(cell.cell_contents for cell in cells if isinstance(cell.cell_contents, str))
        function = function.__wrapped__
    return frozenset(names)


def read_signature(net: nn.Module) -> Signature | None:
    """Read what a module's forward takes; None if that cannot be told."""
    try:
        return signature(net.forward)
    except (TypeError, ValueError):
        return None


def list_inputs(takes: Signature) -> str:
    """Say which inputs there are."""
    variable = Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL
    names = [name for name, parameter in takes.parameters.items() if parameter.kind not in variable]
    if not names:
        return "its inputs have no names"
    if len(names) > MOST_NAMES:
        names = [*names[:MOST_NAMES], "..."]
    return f"its inputs are {', '.join(names)}"


def copy_changeable(value: Any) -> Any:
    """Copy tensors, containers and objects, so that a run cannot change the caller's.

    Copies hold no graph. Modules, and objects that refuse to be copied, stay as they are.
    """
    memo: dict[int, Any] = {}
    for part in walk_parts(value, set()):
        memo[id(part)] = part.detach().clone() if isinstance(part, Tensor) else part
    return copy_with(value, memo)


def copy_with(value: Any, memo: dict[int, Any]) -> Any:
    """Copy a value of which the tensors have been copied. memo: copies by the identity of what was copied."""
    if id(value) in memo:
        return memo[id(value)]
    if type(value) in (list, tuple):
        memo[id(value)] = type(value)(copy_with(part, memo) for part in value)
    elif type(value) is dict:
        memo[id(value)] = {name: copy_with(part, memo) for name, part in value.items()}
    else:
        try:
            return copy.deepcopy(value, memo)
        except Exception:  # an object of any library
            return value
    return memo[id(value)]


def walk_parts(value: Any, seen: set[int]) -> Iterator[Tensor | nn.Module]:
    """Yield the tensors and modules in containers and objects, each once. seen: the identities of all values."""
    if id(value) in seen or isinstance(value, (str, bytes, type, ModuleType, FunctionType)):
        return
    seen.add(id(value))
    if isinstance(value, (Tensor, nn.Module)):
        yield value
        return
    parts = list(value.values()) if isinstance(value, dict) else []
    parts += list(value) if isinstance(value, (list, tuple, set, frozenset, deque)) else []
    parts += list(getattr(value, "__dict__", {}).values())
    for part in parts:
        yield from walk_parts(part, seen)
