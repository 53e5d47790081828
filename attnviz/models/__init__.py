"""A prompt and a request -> Capture. One backend a file; ``load`` picks it by what the model's folder holds."""

from typing import TYPE_CHECKING, Protocol

from attnviz.record import Capture, Floats
from attnviz.request import Change, Edge, Placement, Prompt, Request, Vocabulary

if TYPE_CHECKING:
    from attnviz.analysis.explain import Operands
    from attnviz.lm.corpus import Ids

__all__ = ["Change", "Edge", "Model", "Placement", "Prompt", "Request", "Vocabulary", "load"]


class Model(Protocol):
    """A loaded model."""

    name: str

    def capture(self, prompt: Prompt, request: Request, cuts: tuple[Edge, ...] = ()) -> Capture:
        """Run the model and keep what the request names, one map a rectangle of layers and heads.

        cuts: edges to cut, which changes what the model computes from there on. Raises UsageError for a layer or head
        that is not there, InputError for a text that does not fit or a result that would not fit into memory.
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

        change: is shown what the heads of each layer put out, (batch, query, head, d_v), and gives what the model goes
        on with. Raises UsageError of a model that predicts no next tokens, ModelError of one whose heads are hidden.
        """
        ...


def load(
    name: str = "builtin",
    *,
    revision: str | None = None,
    placement: Placement = Placement(),  # noqa: B008 - frozen
    offline: bool = False,
    quiet: bool = True,
    writes: bool = False,
) -> Model:
    """Load a model: ``builtin``, a folder, an alias or a hub id; the local cache first, then a download.

    writes: with the part that continues a text, for ``Prompt.generate``.
    Raises ModelError if it cannot be had or is refused, UsageError if the device is not there.
    """
    from attnviz.lm import store
    from attnviz.models import names

    folder = names.locate(name, revision=revision, offline=offline, quiet=quiet)
    if store.is_ours(folder):
        from attnviz.models.builtin import Builtin

        return Builtin(name, folder, placement)
    from attnviz.models.huggingface import HuggingFace

    return HuggingFace.load(name, folder, placement, writes=writes)
