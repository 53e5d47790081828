"""Two engines for one checkpoint: NumPy, which draws at once, and torch, which can do everything.

NumPy takes what it computes exactly and quickly. For gradients, for texts that are written, and for
work that takes longer than torch takes to be imported, torch is loaded when it is needed.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from attnviz.errors import ModelError
from attnviz.models.base import (
    Model,
    SupportsLosses,
    SupportsOperands,
    SupportsPredictions,
)
from attnviz.models.numpy.model import NumpyModel

if TYPE_CHECKING:
    pass

LoadModel = Callable[[], Model]
PATIENCE = 2.0  # seconds; importing torch and transformers takes longer
PATIENCE_BESIDE_GPU = 0.5  # a GPU is quicker than NumPy once they are imported
MULTIPLICATIONS_A_SECOND = 2e10  # of one core of a processor of 2020, in float32
CONVERSIONS_A_SECOND = 1e9  # of numbers that are stored in half precision
MOST_BYTES = 256_000_000  # of the weights of attention that are held at once
GPU_FILES = "/dev/nvidiactl", "/dev/dxg", "/dev/kfd"
"""What the drivers of graphics processors leave in a system: Nvidia's, Windows', AMD's."""


class QuickModel(SupportsPredictions, SupportsOperands, SupportsLosses):
    """A checkpoint that NumPy runs where that is quick, and torch where it is not."""

    def __init__(self, quick: NumpyModel, load_torch: LoadModel, *, always: bool) -> None:
        self.name = quick.name
        self.quick = quick
        self.load_torch = load_torch
        self.always = always
        self.loaded: Model | None = None

    @property
    def complete(self) -> Model:
        """The same checkpoint run by torch, loaded when it is first asked for.

        Raises ModelError if only NumPy was asked for, or if the checkpoint cannot be loaded.
        """
        if self.always:
            raise ModelError(
                f"NumPy does not compute this: leave --engine numpy out, and torch runs {self.name}"
            )
        if self.loaded is None:
            self.loaded = self.load_torch()
        return self.loaded
