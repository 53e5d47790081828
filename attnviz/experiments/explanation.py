"""The attention of one query step by step: of a head of a model, or of a score function."""

import numpy as np
import numpy.typing as npt

from attnviz.analysis.explain import (
    explain_query,
    explain_vectors,
    measure_difference,
)
from attnviz.errors import InputError
from attnviz.lm import store
from attnviz.models import Model
from attnviz.models.base import require_operands
from attnviz.record import Kind
from attnviz.request import Prompt, Request
from attnviz.results.explanation import ExplanationResult
from attnviz.selection import HeadNames, Selection, TokenReference

FIRST_OF_ALL = Selection(((0, 0),))
LAST_OF_ALL = Selection(((-1, -1),))
LAST_TOKEN = TokenReference(-1)
EXPLAINED_KINDS: tuple[Kind, ...] = ("self", "cross")  # of models that have several kinds of map


def explain_head(
    model: Model,
    prompt: Prompt,
    layer: Selection = LAST_OF_ALL,
    head: Selection | HeadNames = FIRST_OF_ALL,
    query: TokenReference = LAST_TOKEN,
    *,
    kind: Kind | None = None,
    truncate: bool = False,
) -> ExplanationResult:
    """Compute step by step what one head of a model does for one query, from vectors to output.

    layer, head, query: by default head 0 of the last layer, and the last token. kind: the map that
    is meant, of a model that has several, such as self-attention and cross-attention. truncate: cut
    a text that is longer than the model reads. The result also says how far the steps are from what
    the model itself computed.

    Raises UsageError for a head or a token that is not there, InputError for a query that sees no
    key, ModelError for a model that does not give the vectors of its heads.
    """
    kinds = (kind,) if kind else ()
    model_with_operands = require_operands(model)
    request = Request(
        layers=layer,
        heads=head,
        truncate=truncate,
        kinds=kinds,
        preferred=EXPLAINED_KINDS,
        query=query,
    )
    capture = model.capture(prompt, request)
    weights = capture.maps[0].weights
    try:
        operands = model_with_operands.operands(prompt, request)
        steps = explain_query(operands)
    except ValueError as error:
        raise InputError(f"{error}: its output is 0; choose another --query") from error
    model_weights: npt.ArrayLike = np.nan
    if weights is not None:
        model_weights = weights[0, 0, 0]
    difference = measure_difference(steps, model_weights)
    return ExplanationResult(capture, steps, difference)


def explain_score(
    score: str,
    builtin: Model,
    prompt: Prompt,
    query: TokenReference = LAST_TOKEN,
    *,
    truncate: bool = False,
) -> ExplanationResult:
    """Compute step by step the self-attention of one query by a score function, on raw vectors.

    score: one of ``attnviz.analysis.explain.RAW_SCORES``. builtin: the built-in model, which reads
    the prompt; the vectors are its embeddings of the tokens. query: the token, by default the last.
    truncate: cut a text that is longer than the model reads. Raises UsageError for a token that is
    not there.
    """
    request = Request(layers=FIRST_OF_ALL, heads=FIRST_OF_ALL, truncate=truncate, query=query)
    capture = builtin.capture(prompt, request)
    query_map = capture.maps[0]
    embeddings = store.read_stored_model(store.BUILTIN).parameters["embedding"]
    token_ids = [token.id for token in query_map.keys]
    position = query_map.query_places[0]
    steps, layer_weights = explain_vectors(score, embeddings[token_ids], position)
    difference = measure_difference(steps, layer_weights)
    return ExplanationResult(capture, steps, difference, score)
