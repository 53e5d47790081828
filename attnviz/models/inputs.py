"""The inputs of a loaded model, as its user hands them over: arrays, lists, mappings and caches."""

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
    "inputs= is a list of lists of numbers, which may be one array or several arguments: "
    "give a tensor or a NumPy array, a tuple of arguments, or a mapping of names"
)
MOST_NAMES = 12  # names of inputs in an error of one line
# the kinds of NumPy's types: booleans, integers and floats
NUMBER_KINDS = "biuf"


class Arguments(NamedTuple):
    """The arguments that a torch module is called with."""

    positional: tuple[Any, ...]
    named: dict[str, Any]

    @classmethod
    def from_inputs(cls, inputs: Any) -> "Arguments":
        """Make the arguments of a module out of what a user gives as its inputs.

        A mapping gives named arguments, and a sequence positional ones. Anything else is one
        positional argument.
        """
        if isinstance(inputs, Mapping):
            named = {str(name): value for name, value in inputs.items()}
            return cls((), named)
        if isinstance(inputs, (tuple, list)):
            return cls(tuple(inputs), {})
        return cls((inputs,), {})

    @property
    def values(self) -> tuple[Any, ...]:
        """The values of all arguments."""
        return (*self.positional, *self.named.values())

    def convert(self, dtype: torch.dtype) -> "Arguments":
        """Make tensors of the arguments that are arrays or lists of numbers, and keep the others.

        dtype: the type for numbers with a fraction. Raises InputError for lists that make no
        tensor.
        """
        positional = tuple(convert_array(value, dtype) for value in self.positional)
        named = {name: convert_array(value, dtype) for name, value in self.named.items()}
        return Arguments(positional, named)

    def copy(self) -> "Arguments":
        """Copy the arguments with all that a run of the module could change in place.

        An object that is in two arguments is one object in the copy too.
        """
        positional, named = copy_changeable((self.positional, self.named))
        return Arguments(positional, named)


def list_readings(inputs: Any, dtype: torch.dtype) -> Iterator[Arguments]:
    """Yield the arguments of a module that a user's inputs can mean, the likeliest first.

    These are the inputs as they are; a list of one list of numbers as one tensor; and the inputs
    with tensors in place of arrays and lists of numbers. dtype: the type for numbers with a
    fraction. Raises InputError for a list of several lists of numbers, which can mean one array as
    well as several arguments.
    """
    arguments = Arguments.from_inputs(inputs)
    is_list = isinstance(inputs, list) and bool(inputs)
    is_list_of_lists = is_list and all(is_list_of_numbers(row) for row in inputs)
    if is_list_of_lists and len(inputs) > 1:
        raise InputError(AMBIGUOUS)
    yield arguments
    if is_list_of_lists:  # one row: a batch of one
        yield Arguments((make_tensor(inputs, dtype),), {})
    if any(is_array(value) or is_list_of_numbers(value) for value in arguments.values):
        yield arguments.convert(dtype)


def find_float_type(net: nn.Module) -> torch.dtype:
    """Return the type of a module's first floating-point parameter, or torch's default type."""
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.get_default_dtype()


def is_array(value: Any) -> bool:
    """Return True for a NumPy array, or an object of another library that NumPy makes one of.

    The result is False for a torch tensor, and for a single number.
    """
    return hasattr(value, "__array__") and not isinstance(value, (Tensor, np.generic, type))


def is_list_of_numbers(value: Any) -> bool:
    """Return True for a list or tuple, nested or not, whose first innermost value is a number.

    An array or a tensor in such a list counts as a number.
    """
    depth = 0
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
        depth += 1
    if depth == 0:
        return False
    return isinstance(value, (int, float, np.generic, Tensor)) or is_array(value)


def convert_array(value: Any, dtype: torch.dtype) -> Any:
    """Return a tensor of an array or of a list of numbers, and any other value as it is.

    A list of tensors stays a list. dtype: the type for numbers with a fraction. Raises InputError
    for lists that make no tensor.
    """
    if is_array(value):
        return make_tensor(value, dtype)
    if not isinstance(value, list) or not is_list_of_numbers(value):
        return value
    holds_tensors = isinstance(value[0], Tensor)
    return value if holds_tensors else make_tensor(value, dtype)


def make_tensor(value: Any, dtype: torch.dtype) -> Tensor:
    """Make a tensor of an array or of nested lists of numbers.

    Whole numbers become int64, and booleans stay booleans. A list of tensors becomes one tensor,
    with their types. dtype: the type for numbers with a fraction. Raises InputError for rows of
    different lengths, and for values that are no numbers.
    """
    is_filled_list = isinstance(value, (list, tuple)) and value
    try:
        if is_filled_list and isinstance(value[0], Tensor):
            return torch.stack(list(value))
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"inputs= holds lists that make no tensor: {reason}") from error
    kind = array.dtype.kind
    if kind not in NUMBER_KINDS:
        raise InputError(
            f"inputs= holds values of type {array.dtype}, which make no tensor: give numbers",
        )
    if kind == "f":
        return torch.tensor(array.astype(np.float64), dtype=dtype)
    if kind == "b":
        return torch.tensor(array)
    return torch.tensor(array.astype(np.int64))


def require_arguments(net: nn.Module, arguments: Arguments) -> None:
    """Raise InputError if a module cannot be called with so many arguments, or such names.

    The values of the arguments are not checked. A module whose signature cannot be read passes.
    """
    known = read_signature(net)
    if known is None:
        return
    try:
        known.bind(*arguments.positional, **arguments.named)
    except TypeError as error:
        name = type(net).__name__
        raise InputError(
            f"{name} cannot be called with inputs=: {error}; {describe_inputs(known)}",
        ) from error


def require_names(
    net: nn.Module,
    names: Sequence[str],
    also: frozenset[str],
) -> None:
    """Raise InputError if inputs have names that the forward of a module does not list.

    A forward that takes any name is no exception, since it would silently ignore such an input.

    names: the names of the inputs. also: names that are allowed though the forward does not list
    them.
    """
    known = read_signature(net)
    if known is None:
        return
    known_names = also | known.parameters.keys() | find_earlier_names(net.forward)
    unknown = [name for name in names if name not in known_names]
    if unknown:
        unknown_line = ", ".join(repr(name) for name in unknown)
        kind = type(net).__name__
        raise InputError(f"{kind} takes no input named {unknown_line}; {describe_inputs(known)}")


def find_earlier_names(function: Any) -> frozenset[str]:
    """Find names that a function's inputs had in earlier versions of its library.

    The signature of the function lacks them. A decorator that still takes such a name holds it as a
    string in its closure, so all strings in the closures of the function's decorators are returned.
    """
    names: set[str] = set()
    while hasattr(function, "__wrapped__"):
        cells = getattr(function, "__closure__", None) or ()
        for cell in cells:
            if isinstance(cell.cell_contents, str):
                names.add(cell.cell_contents)
        function = function.__wrapped__
    return frozenset(names)


def read_signature(net: nn.Module) -> Signature | None:
    """Read the signature of a module's forward; None if it has none that can be read."""
    try:
        return signature(net.forward)
    except (TypeError, ValueError):
        return None


def describe_inputs(known: Signature) -> str:
    """Say which inputs a signature names, as the end of an error message."""
    variable = Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL
    names = [name for name, parameter in known.parameters.items() if parameter.kind not in variable]
    if not names:
        return "its inputs have no names"
    if len(names) > MOST_NAMES:
        names = [*names[:MOST_NAMES], "..."]
    return f"its inputs are {', '.join(names)}"


def copy_changeable(value: Any) -> Any:
    """Copy a value with all tensors, containers and objects in it, so that a run cannot change it.

    The copies of tensors have no gradient graph. Modules, and objects that refuse to be copied, are
    not copied.
    """
    copies: dict[int, Any] = {}
    for item in walk_values(value, set()):
        copies[id(item)] = item.detach().clone() if isinstance(item, Tensor) else item
    return copy_with(value, copies)


def copy_with(value: Any, copies: dict[int, Any]) -> Any:
    """Copy a value, with the copies that were made already in place of what is in it.

    Objects that refuse to be copied are returned as they are.

    copies: the copy of each object that was copied, by the ``id`` of the original. The copies that
    are made here are added to it.
    """
    if id(value) in copies:
        return copies[id(value)]
    if type(value) in (list, tuple):
        copied = type(value)(copy_with(item, copies) for item in value)
    elif type(value) is dict:
        copied = {name: copy_with(item, copies) for name, item in value.items()}
    else:
        try:
            return copy.deepcopy(value, copies)
        except Exception:  # an object of any library
            return value
    copies[id(value)] = copied
    return copied


def walk_values(value: Any, seen: set[int]) -> Iterator[Tensor | nn.Module]:
    """Yield the tensors and modules that are in a value, in its containers or its objects.

    Each is yielded once. A value that is a tensor or a module yields itself.

    seen: the ``id`` of each value that was visited. Those that are visited here are added to it.
    """
    if id(value) in seen or isinstance(value, (str, bytes, type, ModuleType, FunctionType)):
        return
    seen.add(id(value))
    if isinstance(value, (Tensor, nn.Module)):
        yield value
        return
    items: list[Any] = []
    if isinstance(value, dict):
        items += value.values()
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        items += value
    attributes = getattr(value, "__dict__", {})
    items += attributes.values()
    for item in items:
        yield from walk_values(item, seen)
