"""The protocols of models: one that every model keeps, and four that only some models keep.

Every model has a name and ``capture``: the protocol ``Model``. The other protocols say what a model
may have besides. A caller that needs one of them asks for it by type, with a function of this file,
and a model without it is refused in one line.

Norms, scores, gradients, pairs of texts, chats and continuations have no protocol. They are values
of a ``Request`` or a ``Prompt``, and ``capture`` raises for those that it cannot do. A gradient is
that of a prediction, so it is asked only of a model that was loaded with ``predicts``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from attnviz.errors import ModelError
from attnviz.record import Capture, Floats
from attnviz.request import (
    LIKELIEST,
    NOTHING,
    Intervention,
    OutputChange,
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


@dataclass(frozen=True)
class LoadOptions:
    """The placement of a model, and the uses that it is loaded for."""

    placement: Placement
    writes: bool = False
    """True if ``Prompt.generate`` will ask it to continue a text."""
    predicts: bool = False
    """True if it will be asked for predictions, or for gradients of them."""


@runtime_checkable
class Model(Protocol):
    """A loaded model, whose attention can be captured."""

    name: str
    """The name of the model in pictures and messages."""

    def capture(self, prompt: Prompt, request: Request) -> Capture:
        """Run the model on a prompt and return the numbers of its attention that a request names.

        The capture has a map for each rectangle of layers and heads. Raises UsageError for a layer
        or head that is not there, and for a part of the prompt that the model cannot read;
        ModelError for numbers that it cannot compute, such as gradients; InputError for a text that
        does not fit, or a result that would not fit into memory.
        """
        ...


@runtime_checkable
class SupportsPredictions(Model, Protocol):
    """A model that says something of a text, and that can be changed as it runs."""

    def capture(
        self,
        prompt: Prompt,
        request: Request,
        intervention: Intervention = NOTHING,
    ) -> Capture:
        """Run a changed model on a prompt and return what a request names of its attention.

        intervention: what is changed in the run: tokens that are replaced, edges that are cut, and
        heads whose outputs are replaced. Nothing by default. Raises what ``Model.capture`` raises,
        and UsageError for an edge or a target that is not there, and for a query that would be left
        without a key.
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
        """Run the model under each of several interventions; return its outputs at one position.

        target: the position, and the output that is asked about. If it names no output, this is the
        likeliest one under the first intervention. truncate: True to cut a text that is too long.
        The model must have been loaded with ``predicts``. Raises UsageError as ``capture`` does,
        and for a target that is not one token.
        """
        ...


@runtime_checkable
class SupportsOperands(Model, Protocol):
    """A model that gives the vectors of which a head computes its weights and its output."""

    def operands(self, prompt: Prompt, request: Request) -> "Operands":
        """Run the model, and return the vectors that one head computes with for one query.

        They are the query (d,), and all keys (m, d) and values (m, d_v), after positions have been
        added to or rotated into them. The layer and the head are the first that the request names;
        the query is the token that the request names, or the first of its rows. Raises UsageError
        for a layer, a head or a token that is not there, InputError for a text that does not fit,
        and ModelError for a model that shows its attention weights only.
        """
        ...


@runtime_checkable
class SupportsSequences(Model, Protocol):
    """A model that reads token ids in place of a text, as ``Prompt.ids``."""

    def read_vocabulary(self) -> Vocabulary:
        """Return the token ids of which sequences for the model can be made up.

        Raises UsageError for an encoder-decoder, which reads two texts, and ModelError for a model
        without a table of token embeddings.
        """
        ...


@runtime_checkable
class SupportsLosses(SupportsSequences, Protocol):
    """A model of which the loss of each next token can be measured."""

    def losses(self, ids: "Ids", change: OutputChange | None = None) -> Floats:
        """Measure how badly the model predicts each token of some sequences from those before it.

        ids: the token ids, (sequences, n). Returns the cross-entropies in nats, (sequences, n - 1),
        since the first token is not predicted. change: a function that replaces the outputs of
        heads, as in ``Intervention.change``. Raises UsageError for a model that predicts no next
        tokens, and ModelError if there is a change and the model does not show the outputs of its
        heads.
        """
        ...


def require_predictions(model: Model) -> SupportsPredictions:
    """Return a model that makes predictions. Raises ModelError for any other."""
    if isinstance(model, SupportsPredictions):
        return model
    raise explain_lack(model, "makes no predictions")


def require_operands(model: Model) -> SupportsOperands:
    """Return a model that gives the queries, keys and values of a head.

    Raises ModelError for any other.
    """
    if isinstance(model, SupportsOperands):
        return model
    raise explain_lack(model, "does not give the queries, keys and values of its heads")


def require_token_sequences(model: Model) -> SupportsSequences:
    """Return a model that reads sequences of token ids. Raises ModelError for any other."""
    if isinstance(model, SupportsSequences):
        return model
    raise explain_lack(model, "does not read token ids, which are needed here")


def require_losses(model: Model) -> SupportsLosses:
    """Return a model of which the loss can be measured. Raises ModelError for any other."""
    if isinstance(model, SupportsLosses):
        return model
    raise explain_lack(model, "does not tell how well it predicts the next tokens")


def explain_lack(model: Model, lack: str) -> ModelError:
    """Return the error for a model that cannot do what is asked of it.

    lack: what it does not do, as the end of a sentence that begins with the model's name.
    """
    remaining = "its attention can still be shown, inspected, saved and compared"
    return ModelError(f"{model.name} {lack}: choose another --model; {remaining}")
