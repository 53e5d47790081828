"""Two engines for one checkpoint: NumPy, which draws at once, and torch, which can do everything.

NumPy takes what it computes exactly and quickly. For gradients, for texts that are written, and for
work that takes longer than torch takes to be imported, torch is loaded when it is needed.
"""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnviz.errors import ModelError, list_missing_packages, require_packages
from attnviz.lm.transformer import Architecture
from attnviz.models.base import (
    LoadOptions,
    Model,
    SupportsLosses,
    SupportsOperands,
    SupportsPredictions,
    require_losses,
    require_operands,
    require_predictions,
    require_token_sequences,
)
from attnviz.models.numpy.checkpoint import open_checkpoint, read_config
from attnviz.models.numpy.config import UnsuitableError
from attnviz.models.numpy.model import NumpyModel
from attnviz.models.numpy.tokenizer import open_tokenizer
from attnviz.models.safety import require_safe
from attnviz.progress import begin_step, shorten_name
from attnviz.record import GRADIENT, Capture, Floats
from attnviz.request import (
    LIKELIEST,
    NOTHING,
    Intervention,
    OutputChange,
    Prompt,
    Request,
    Response,
    Target,
    Vocabulary,
)

if TYPE_CHECKING:
    from attnviz.analysis.explain import Operands
    from attnviz.lm.corpus import Ids
    from attnviz.models.folders import Folders

LoadModel = Callable[[], Model]
log = logging.getLogger(__name__)
TORCH_PACKAGES = "torch", "transformers"
PATIENCE = 2.0  # seconds of work; to import torch and transformers takes longer
PATIENCE_BESIDE_GPU = 0.5  # which is quicker than NumPy, once they are imported
MULTIPLICATIONS_A_SECOND = 2e10  # of one core of a usual processor, in float32
LARGEST_WEIGHTS = 256_000_000  # bytes of attention weights of one layer and its scores
GPU_FILES = "/dev/nvidiactl", "/dev/dxg", "/dev/kfd"
"""Files of the drivers of graphics processors: of Nvidia's, of those under Windows, of AMD's."""


class QuickModel(SupportsPredictions, SupportsOperands, SupportsLosses):
    """A checkpoint that NumPy runs where that is quick, and torch where it is not.

    Only NumPy runs it if the user asked for that: what NumPy does not compute is refused then.
    """

    def __init__(self, quick: NumpyModel, load_torch: LoadModel, *, only_numpy: bool) -> None:
        self.name = quick.name
        self.quick = quick
        self.load_torch = load_torch
        self.only_numpy = only_numpy
        self.loaded: Model | None = None

    def load_complete(self) -> Model:
        """Return the same checkpoint run by torch, loaded when it is first asked for.

        Raises ModelError if only NumPy may run it, or if torch is missing or cannot load it.
        """
        refusal = f"NumPy does not compute this for {self.name}"
        if self.only_numpy:
            raise ModelError(f"{refusal}: leave --engine numpy out for torch")
        require_packages(f"{refusal}; the other engine", *TORCH_PACKAGES)
        if self.loaded is None:
            with begin_step(f"loading {shorten_name(self.name)}"):
                self.loaded = self.load_torch()
        return self.loaded

    def capture(
        self,
        prompt: Prompt,
        request: Request,
        intervention: Intervention = NOTHING,
    ) -> Capture:
        """Run the model and keep what a request names; see ``SupportsPredictions.capture``."""
        needs_torch = bool(prompt.generate) or request.method == GRADIENT
        if needs_torch or not self.is_quick(prompt, request):
            reason = "which writes texts and computes gradients"
            if not needs_torch:
                reason = "which is loaded already, or quicker for a text of this length"
            log.info("the engine is torch, %s", reason)
            complete = self.load_complete()
            if intervention == NOTHING:
                return complete.capture(prompt, request)
            return require_predictions(complete).capture(prompt, request, intervention)
        return self.quick.capture(prompt, request, intervention)

    def is_quick(self, prompt: Prompt, request: Request, *, runs: int = 1) -> bool:
        """Return whether NumPy runs the model on a prompt sooner than torch is imported.

        runs: how often it is run. True if only NumPy may run it, or can, since torch is missing.
        Raises UsageError and InputError for a prompt that the model cannot read.
        """
        encoded = self.quick.encode_prompt(prompt, request.truncate)
        architecture = self.quick.architecture
        tells_texts_apart = bool(architecture.segments)
        if encoded.segment_ids is not None and not tells_texts_apart:
            return False
        if self.loaded is not None:
            return False
        if self.only_numpy or list_missing_packages(*TORCH_PACKAGES):
            return True
        return is_short_work(architecture, len(encoded.ids), runs)

    def respond(
        self,
        prompt: Prompt,
        interventions: Sequence[Intervention],
        target: Target = LIKELIEST,
        *,
        truncate: bool = False,
    ) -> Response:
        """Return what the model predicts under interventions; see ``SupportsPredictions``."""
        request = Request(truncate=truncate)
        if self.quick.predicts and self.is_quick(prompt, request, runs=len(interventions)):
            return self.quick.respond(prompt, interventions, target, truncate=truncate)
        complete = require_predictions(self.load_complete())
        return complete.respond(prompt, interventions, target, truncate=truncate)

    def operands(self, prompt: Prompt, request: Request) -> "Operands":
        """Return the vectors of one head for one query; see ``SupportsOperands.operands``."""
        if self.is_quick(prompt, request):
            return self.quick.operands(prompt, request)
        return require_operands(self.load_complete()).operands(prompt, request)

    def read_vocabulary(self) -> Vocabulary:
        """Return what sequences of token ids are made of; see ``SupportsSequences``."""
        if self.loaded is None:
            return self.quick.read_vocabulary()
        return require_token_sequences(self.loaded).read_vocabulary()

    def losses(self, ids: "Ids", change: OutputChange | None = None) -> Floats:
        """Measure the loss of each next token, in nats; see ``SupportsLosses.losses``.

        Torch does that: there are many sequences, and all their tokens are predicted.
        """
        return require_losses(self.load_complete()).losses(ids, change)


def load_quick_model(
    name: str,
    folders: "Folders",
    options: LoadOptions,
    load_torch: LoadModel,
) -> Model:
    """Load a checkpoint for the engine that the options name, or for both if they name none.

    load_torch: a function that loads it for torch. Raises ModelError for a checkpoint that cannot
    be loaded, or that NumPy does not run though it is asked to.
    """
    placement = options.placement
    if placement.engine == "torch":
        return load_with_torch(folders, load_torch, f"--engine torch for {name}")
    only_numpy = placement.engine == "numpy"
    try:
        require_numpy_placement(folders, options)
        config = read_config(folders.model)
        checkpoint = open_checkpoint(folders.model)
        tokenizer = open_tokenizer(folders.model, config)
    except UnsuitableError as error:
        if only_numpy:
            raise ModelError(f"--engine numpy does not run {name}: {error}") from error
        log.info("the engine is torch, since NumPy does not run %s: %s", name, error)
        refusal = f"NumPy does not run {name}: {error}"
        return load_with_torch(folders, load_torch, f"{refusal}; the other engine")
    except ModelError as error:
        if only_numpy:
            raise
        # torch reads what NumPy's engine does not, or says what is wrong
        log.info("the engine is torch, since NumPy does not run %s: %s", name, error)
        return load_with_torch(folders, load_torch, f"{error}; the other engine")
    quick = NumpyModel(name, checkpoint, tokenizer)
    return QuickModel(quick, load_torch, only_numpy=only_numpy)


def load_with_torch(folders: "Folders", load_torch: LoadModel, use: str) -> Model:
    """Load a checkpoint for torch.

    Raises ModelError for one that cannot be loaded, and if torch or transformers is missing.
    load_torch: a function that loads it. use: what needs torch, for the error.
    """
    if list_missing_packages(*TORCH_PACKAGES):
        require_safe(folders.model)  # nobody need install torch to read what is wrong
        require_packages(use, *TORCH_PACKAGES)
    return load_torch()


def require_numpy_placement(folders: "Folders", options: LoadOptions) -> None:
    """Raise UnsuitableError for what is asked of a model that NumPy does not do."""
    placement = options.placement
    if placement.device not in ("auto", "cpu"):
        raise UnsuitableError(f"--device {placement.device} needs torch")
    if placement.dtype not in ("auto", "float32"):
        raise UnsuitableError(f"it computes in float32, and --dtype {placement.dtype} is asked for")
    if folders.adapter or folders.tokenizer:
        raise UnsuitableError("an adapter or a tokenizer of another folder is given")
    if options.writes:
        raise UnsuitableError("the part that continues a text is needed")


def is_short_work(architecture: Architecture, length: int, runs: int = 1) -> bool:
    """Return whether NumPy runs a model on a text in less time than torch takes to be imported.

    length: of the text, in tokens. runs: how often the model is run. A text is no short work either
    if its weights are too large.
    """
    size_of_layer = architecture.heads * length * length * 4
    if 3 * size_of_layer > LARGEST_WEIGHTS:
        return False
    patience = PATIENCE_BESIDE_GPU if has_gpu() else PATIENCE
    multiplications = runs * count_multiplications(architecture, length)
    return multiplications / MULTIPLICATIONS_A_SECOND < patience


def count_multiplications(architecture: Architecture, length: int) -> int:
    """Count the multiplications of a run on a text of so many tokens."""
    dim = architecture.dim
    queries = architecture.heads * architecture.head_dim
    keys = architecture.kv_heads * architecture.head_dim
    projections = 2 * dim * queries + 2 * dim * keys
    feed_forward = 3 * dim * architecture.feed_forward
    attention = 2 * length * queries
    return architecture.layers * length * (projections + feed_forward + attention)


def has_gpu() -> bool:
    """Return whether a driver of a graphics processor is there that torch may use.

    Torch itself is not asked, since to import it takes seconds.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(Path(file).exists() for file in GPU_FILES)
