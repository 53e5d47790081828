"""A prompt and a request -> Capture. One backend a file; ``load`` picks it by what the model's folder holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attnviz.errors import ModelError
from attnviz.record import Capture, Floats
from attnviz.request import (
    LIKELIEST,
    NO_COMPANIONS,
    NOTHING,
    Change,
    Companions,
    Edge,
    Intervention,
    Placement,
    Prompt,
    Request,
    Response,
    Target,
    Vocabulary,
)

if TYPE_CHECKING:
    from attnviz.analysis.explain import Operands
    from attnviz.lm.corpus import Ids

__all__ = [
    "LIKELIEST",
    "NOTHING",
    "NO_COMPANIONS",
    "Change",
    "Companions",
    "Edge",
    "Intervention",
    "Model",
    "Placement",
    "Prompt",
    "Request",
    "Response",
    "Target",
    "Vocabulary",
    "load",
]


class Model(Protocol):
    """A loaded model."""

    name: str

    def capture(self, prompt: Prompt, request: Request, intervention: Intervention = NOTHING) -> Capture:
        """Run the model and keep what the request names, one map a rectangle of layers and heads.

        intervention: what the model computes otherwise from there on. Raises UsageError for a layer, head, edge or
        target that is not there, and for a query that would be left without a key; InputError for a text that does not
        fit or a result that would not fit into memory.
        """
        ...

    def respond(
        self,
        prompt: Prompt,
        interventions: Sequence[Intervention],
        target: Target = LIKELIEST,
        *,
        truncate: bool = False,
    ) -> Response:
        """What the model says at one place, under each of the interventions; several are run at once.

        The likeliest output is that under the first. A model that predicts is to be loaded with ``predicts``. Raises
        UsageError as ``capture`` does, and for a target that is not one token.
        """
        ...

    def operands(self, prompt: Prompt, request: Request) -> "Operands":
        """Run the model, and tell what the attention of one head has for one query: those that the request names.

        Of several heads it is the first. Raises ModelError of a model that shows nothing but weights, and as
        ``capture`` does.
        """
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """What sequences of tokens are made of, to be read as ``Prompt.ids``."""
        ...

    def losses(self, ids: "Ids", change: Change | None = None) -> Floats:
        """Loss in nats of each token from the second on, given those before it: (batch, n) -> (batch, n - 1).

        change: see ``Intervention.change``. Raises UsageError of a model that predicts no next tokens, ModelError of
        one whose heads are hidden.
        """
        ...


def load(
    name: str = "builtin",
    *,
    revision: str | None = None,
    placement: Placement = Placement(),  # noqa: B008 - frozen
    companions: Companions = NO_COMPANIONS,
    offline: bool = False,
    quiet: bool = True,
    writes: bool = False,
    predicts: bool = False,
) -> Model:
    """Load a model: ``builtin``, a folder, an alias or a hub id; the local cache first, then a download.

    companions: a tokenizer and an adapter from other folders. The folder of an adapter stands for the model that it
    was made for, with the adapter.
    writes: with the part that continues a text, for ``Prompt.generate``; predicts: with whatever part it has that
    predicts, for ``Model.respond`` and gradients.
    Raises ModelError if it cannot be had or is refused, UsageError if the device is not there.
    """
    from attnviz.lm import store
    from attnviz.models import names
    from attnviz.models.folders import gather_folders

    def locate(name: str, revision: str | None) -> Path:
        return names.locate(name, revision=revision, offline=offline, quiet=quiet)

    folders = gather_folders(name, revision, companions, locate)
    if store.is_ours(folders.model):
        if folders.adapter or folders.tokenizer:
            raise ModelError(f"{name} takes no adapter and no other tokenizer: name another model with --model")
        from attnviz.models.builtin import Builtin

        return Builtin(name, folders.model, placement)
    from attnviz.models.huggingface.model import HuggingFace

    return HuggingFace.load(name, folders, placement, writes=writes, predicts=predicts)
