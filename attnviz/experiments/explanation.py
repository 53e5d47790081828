"""The attention of one query step by step: of a head of a model, or of a score function."""

import numpy as np
import numpy.typing as npt

from attnviz.analysis.explain import explain_query, explain_vectors, measure_difference
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
    """Follow one query of one head of a model, step by step.

    By default it is the last token, in head 0 of the last layer. kind: the map that is meant, of a
    model that has several. truncate: cut a text that is longer than the model reads.

    Raises UsageError for a head or a token that is not there, InputError for a query that sees no
    key, ModelError for a model that cannot be followed.
    """
    kinds = (kind,) if kind else ()
    follower = require_operands(model)
    request = Request(layer, head, truncate, kinds, EXPLAINED_KINDS, query=query)
    capture = model.capture(prompt, request)
    weights = capture.maps[0].weights
    try:
        operands = follower.operands(prompt, request)
        steps = explain_query(operands)
    except ValueError as error:
        raise InputError(f"{error}: its output is 0; choose another --query") from error
    own_weights: npt.ArrayLike = np.nan
    if weights is not None:
        own_weights = weights[0, 0, 0]
    difference = measure_difference(steps, own_weights)
    return ExplanationResult(capture, steps, difference)


def explain_score(
    score: str,
    builtin: Model,
    prompt: Prompt,
    query: TokenReference = LAST_TOKEN,
    *,
    truncate: bool = False,
) -> ExplanationResult:
    """Follow one query of self-attention by a score function, on raw vectors.

    The vectors are the embeddings of the built-in model, which reads the prompt. score: one of
    ``attnviz.analysis.explain.RAW_SCORES``. Raises UsageError for a token that is not there.
    """
    request = Request(FIRST_OF_ALL, FIRST_OF_ALL, truncate, query=query)
    capture = builtin.capture(prompt, request)
    query_map = capture.maps[0]
    embeddings = store.read_stored_model(store.BUILTIN).parameters["embedding"]
    token_ids = [token.id for token in query_map.keys]
    position = query_map.query_places[0]
    steps, own_weights = explain_vectors(score, embeddings[token_ids], position)
    difference = measure_difference(steps, own_weights)
    return ExplanationResult(capture, steps, difference, score)
