"""How much memory a capture takes at its peak, beside the model, and whether so much is free.

What is kept follows from the sizes of the maps. What is needed besides while a model runs was
measured: ``tests/benchmarks/memory.py`` compares the forecasts with peaks.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psutil

from attnviz.errors import InputError
from attnviz.lm.transformer import Architecture
from attnviz.record import ATTENTION
from attnviz.request import Request

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
MapSize = tuple[int, int]
"""The numbers of queries and of keys of a map."""

NUMBER_BYTES = 4  # of float32
DOUBLE_BYTES = 8
GIGABYTE = 1e9
WORTH_SAYING = 100_000_000  # bytes
WRITING_LAYERS = 3  # copies of a layer while the rows of steps are joined
LARGEST_REUSED = 1 << 25  # bytes of an array: larger ones are given back to the system (glibc)
GROUPS_OF_A_SEGMENT = 2  # of keys: those of the segment, and those up to the next
STATISTICS_OF_A_HEAD = 4  # numbers beside those of each query and of each key
OVERHEAD = 20_000_000  # bytes that the libraries take when they run for the first time
# arrays of the size of a layer's weights that NumPy has at once: two of the layer before, and the
# scores, their exponentials and the weights of this one
NUMPY_LAYERS = 5
DOUBLE_HEADS = 3  # arrays (query, key) in double precision, of the statistics of one head
# numbers a token that torch has at once, as multiples of the widths of the feed-forward part and of
# the hidden states
INNER_STATES = 6
HIDDEN_STATES = 8


def forecast_memory(heads: Mapping[MapSize, int], request: Request, working: int) -> int:
    """Return the bytes that a capture takes at its peak, beside the model.

    heads: the numbers of heads, by the size of their maps. request: what is kept of them; a window
    is applied to the sizes already. working: the bytes that are needed beside what is kept.
    """
    kept = count_kept_bytes(heads, request)
    # Weights are moved to their place layer by layer; what is smaller is held twice for a moment.
    copies = 1 if request.keep == "weights" else 2
    return working + copies * kept


def require_memory(heads: Mapping[MapSize, int], request: Request, working: int) -> None:
    """Raise InputError if a capture would take more memory at its peak than is free.

    The parameters are those of ``forecast_memory``.
    """
    free: int = psutil.virtual_memory().available
    peak = forecast_memory(heads, request, working)
    if peak >= WORTH_SAYING:
        log.info("the capture takes up to %s of memory beside the model", format_gigabytes(peak))
    if peak <= free:
        return
    n, m = max(heads, key=lambda size: size[0] * size[1])  # of the largest maps
    kept = f"the {request.keep} of {sum(heads.values())} heads over {n:,} x {m:,} tokens"
    problem = (
        f"{kept} take up to {format_gigabytes(peak)} of memory, "
        f"and {format_gigabytes(free)} are free"
    )
    if request.keep != "weights":
        raise InputError(f"{problem}: shorten the text, or choose --layers and --heads")
    room = max(0, free - working)
    fitting = room // count_kept_bytes({(n, m): 1}, request)
    raise InputError(
        f"{problem}: {fitting} of them fit. "
        "Choose --layers and --heads, a window with --rows and --cols, "
        "or keep tiles or statistics, which take next to nothing",
    )


def format_gigabytes(count: float) -> str:
    """Format a number of bytes in GB, with a digit after the point where there is one."""
    return f"{count / GIGABYTE:.1f} GB"


def count_kept_bytes(heads: Mapping[MapSize, int], request: Request) -> int:
    """Count the bytes of what a request keeps of heads, by the size of their maps.

    The mask of a map, which its heads share, counts once for each size.
    """
    total = 0
    for (queries, keys), count in heads.items():
        cells = queries * keys
        numbers = 0
        if request.keep == "weights":
            numbers += cells
            total += cells  # of the mask, a byte each
        if request.keep == "tiles":
            numbers += (
                2 * count_tiles_on_side(queries, request) * count_tiles_on_side(keys, request)
            )
        if request.keep == "edges":
            numbers += 2 * queries * min(request.strongest, keys)
        if request.keep != "weights" and request.segments:
            numbers += queries * GROUPS_OF_A_SEGMENT * len(request.segments)
        has_statistics = request.method == ATTENTION and not request.windowed
        if has_statistics:
            numbers += queries + keys + STATISTICS_OF_A_HEAD
        total += NUMBER_BYTES * numbers * count
    return total


def count_tiles_on_side(tokens: int, request: Request) -> int:
    """Count the tiles of a request along a side of so many tokens."""
    return min(tokens, request.tiles)


def estimate_numpy_work(architecture: Architecture, tokens: int) -> int:
    """Estimate the bytes that a layer takes in NumPy on a text of so many tokens."""
    cells = tokens * tokens
    of_layers = NUMPY_LAYERS * NUMBER_BYTES * architecture.heads * cells
    of_statistics = DOUBLE_HEADS * DOUBLE_BYTES * cells
    states = count_states(architecture.feed_forward, architecture.dim)
    return OVERHEAD + of_layers + of_statistics + NUMBER_BYTES * tokens * states


def estimate_torch_work(
    tokens: int,
    copied: int,
    model: "PreTrainedModel | None" = None,
) -> int:
    """Estimate the bytes that torch takes to read a text, beside what is kept of it.

    tokens: the length of the text. copied: how many weights a layer has that are copied to their
    place; 0 if none are kept. model: of transformers; None for a module whose widths are not known.
    """
    needed = OVERHEAD + NUMBER_BYTES * copied
    if model is None or model.device.type != "cpu":
        return needed
    config = model.config.get_text_config()
    hidden = read_width(config, "hidden_size")
    inner = read_width(config, "intermediate_size") or 4 * hidden
    return needed + NUMBER_BYTES * tokens * count_states(inner, hidden)


def read_width(config: Any, name: str) -> int:
    """Read a width from a config: the largest if it has one for each layer; 0 if it has none."""
    value = getattr(config, name, None)
    widths = value if isinstance(value, (list, tuple)) else [value]
    return max((width for width in widths if isinstance(width, int)), default=0)


def estimate_writing_work(copied: int, kept: int) -> int:
    """Estimate the bytes that torch takes beside to join the weights of a text that is written.

    copied: how many weights a layer has. kept: the bytes of what is kept of all layers.
    """
    layer_bytes = NUMBER_BYTES * copied
    copies = WRITING_LAYERS * layer_bytes
    # the process keeps the memory of smaller arrays when they are freed
    return copies + kept if layer_bytes < LARGEST_REUSED else copies


def count_states(inner: int, hidden: int) -> int:
    """Count the numbers that a layer has for each token at once, by its two widths."""
    return INNER_STATES * inner + HIDDEN_STATES * hidden
