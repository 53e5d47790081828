"""The output of a transformers model that a question is about, and its position in the text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnviz.errors import UsageError
from attnviz.escape import label_token
from attnviz.models.huggingface.attention import call_model, silence_library
from attnviz.models.huggingface.encoding import EncodedText
from attnviz.models.predictions import (
    LIKELIEST_OUTPUT,
    PredictionKind,
    choose_position,
    find_masked_positions,
    find_token_id,
    require_no_target_token,
    spell_token,
)
from attnviz.record import Floats, Token
from attnviz.request import (
    Response,
    Target,
    describe_gradient,
)
from attnviz.selection import join_names

HEADS: dict[str, PredictionKind] = {
    "ForMaskedLM": "masked",
    "ForSequenceClassification": "class",
}
"""The kinds of prediction, by the end of the name of a model's class."""
PHRASES: dict[PredictionKind, str] = {
    "next": "the next token after",
    "masked": "what stands at",
    "class": "the class",
}
"""What is predicted, in a note."""
UNPREDICTED = (
    "this model predicts nothing, so there is no gradient of a prediction: use --weights norm"
)


@dataclass
class ResolvedTarget:
    """One output of a model at one position of a text.

    Its number may be that of the likeliest output, which is known once the model was run.
    """

    kind: PredictionKind
    tokens: tuple[Token, ...]
    position: int
    name_output: Callable[[int], str]
    """Return the name of an output by its number."""
    number: int
    """The number of the output; -1 as long as it is to be the likeliest of the first run."""

    def run_model(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """Call the model on inputs, and return its output with all that the target needs of it."""
        if self.kind == "vector":
            inputs = {**inputs, "output_hidden_states": True}
        return call_model(model, inputs)

    def read_outputs(self, outputs: Any) -> Tensor:
        """Return the logits or the vector that a model put out at the target's position.

        outputs: the model's output for several texts. The result is (text, number), where the
        number is that of a token, of a class, or of a component of the vector. If the target named
        no token or class, the likeliest one of the first text becomes the target.
        """
        if self.kind == "vector":
            vectors: Tensor = read_last_vectors(outputs)[:, self.position]
            return vectors
        logits: Tensor = outputs.logits
        if self.kind != "class":
            logits = logits[:, self.position]
        if self.number < 0:
            self.number = int(logits[0].argmax())
        return logits.clone()  # a copy, so that the logits of other positions can be freed

    def compute_logit(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Run the model, and return the target's logit less the mean of all logits.

        The result is a part of torch's graph, so that gradients of it can be computed. A softmax
        depends only on such differences of logits.
        """
        with torch.enable_grad():
            outputs = self.run_model(model, inputs)
            logits = self.read_outputs(outputs)[0].float()
            return logits[self.number] - logits.mean()

    @property
    def description(self) -> str:
        """A note that says what gradients are of; it is known once the model was run."""
        token = None if self.kind == "class" else self.tokens[self.position]
        name = self.name_output(self.number)
        return describe_gradient(PHRASES[self.kind], token, self.position, name)

    def make_response(self, outputs: Floats) -> Response:
        """Return outputs of several runs as the answer of a model to a question about the target.

        outputs: logits or vectors at the target's position, (run, number).
        """
        return Response(
            self.kind,
            self.tokens,
            self.position,
            outputs,
            self.number,
            self.name_output,
        )


def resolve_target(
    model: Any,
    tokenizer: Any,
    encoded: EncodedText,
    target: Target,
) -> ResolvedTarget:
    """Find which output of a model, and which position in a text, a target names.

    encoded: the text. target: a token or a class, and the token of the text at which it is
    predicted; what it leaves out is chosen by the kind of the model. Raises UsageError for a target
    that the model does not predict, and for a position that is not there.
    """
    tokens = encoded.target_tokens or encoded.tokens
    kind = choose_prediction(model, tokenizer, tokens, target)
    if kind == "class":
        labels = {int(number): str(name) for number, name in model.config.id2label.items()}

        def name_class(number: int) -> str:
            return labels.get(number, str(number))

        class_number = find_class_number(target.token, labels)
        return ResolvedTarget(kind, tokens, 0, name_class, class_number)

    def name_token(number: int) -> str:
        return spell_token(tokenizer, number)

    position = choose_position(kind, tokenizer, tokens, target.query)
    with silence_library():
        number = find_token_id(target.token, tokenizer)
    return ResolvedTarget(kind, tokens, position, name_token, number)


def choose_prediction(
    model: Any,
    tokenizer: Any,
    tokens: tuple[Token, ...],
    target: Target,
) -> PredictionKind:
    """Return the kind of prediction that a model makes of a text, such as "next" or "class".

    A masked model predicts a token only if the text has a masked token, or if the target names a
    position. Otherwise, and for a model that predicts nothing, the kind is "vector": the last
    hidden state. Raises UsageError if the target names a token and the kind is "vector".

    tokens: the tokens of the text.
    """
    kind = read_prediction_kind(model)
    names_no_position = kind == "masked" and target.query is None
    if names_no_position and not find_masked_positions(tokenizer, tokens):
        kind = "vector"
        if target.token is not None:
            raise UsageError(explain_missing_mask(tokenizer))
    if kind == "vector":
        require_no_target_token(target)
    return kind


def read_prediction_kind(model: Any) -> PredictionKind:
    """Return the kind of prediction that models of a class make, by the name of the class.

    It is "masked", "class", "next" for models that write, or "vector" for all others.
    """
    name = type(model).__name__
    for end, kind in HEADS.items():
        if name.endswith(end):
            return kind
    return "next" if model.can_generate() else "vector"


def find_class_number(name: str | int | None, labels: Mapping[int, str]) -> int:
    """Return the number of the class that a user names by its label or its number; -1 for None.

    -1 stands for the likeliest class, which is known only after a run. labels: the labels of the
    classes, by their numbers. Raises UsageError for a text that is neither a label nor a number.
    """
    if name is None:
        return LIKELIEST_OUTPUT
    if isinstance(name, int):
        return name
    wanted = name.strip().casefold()
    for number, class_name in labels.items():
        if wanted in (class_name.casefold(), str(number)):
            return number
    classes = [f"{number} {label_token(class_name)}" for number, class_name in labels.items()]
    raise UsageError(f"--target-token {name!r} is no class of this model: {join_names(classes)}")


def read_last_vectors(outputs: Any) -> Tensor:
    """Return the vectors after the last layer of a model, (text, token, dim).

    outputs: the model's output, with its hidden states. Of an encoder-decoder the vectors are the
    decoder's.
    """
    vectors: Tensor | None = getattr(outputs, "last_hidden_state", None)
    if vectors is not None:
        return vectors
    layers = getattr(outputs, "hidden_states", None) or outputs.decoder_hidden_states
    last: Tensor = layers[-1]
    return last


def explain_missing_mask(tokenizer: Any) -> str:
    """Say that a masked model predicts a token only where one is masked."""
    return f"there is no {tokenizer.mask_token} in the text: put one where the token is to be told"


def require_gradient(model: Any, tokenizer: Any, target: ResolvedTarget) -> None:
    """Raise UsageError if no gradient of a target can be computed.

    A model that predicts nothing has none, nor has one whose weights are quantized.
    """
    if target.kind == "vector" and type(model).__name__.endswith("ForMaskedLM"):
        raise UsageError(f"{explain_missing_mask(tokenizer)}, or use --weights norm")
    if target.kind == "vector":
        raise UsageError(UNPREDICTED)
    is_quantized = getattr(model, "is_quantized", False)
    if is_quantized or not all(weight.is_floating_point() for weight in model.parameters()):
        raise UsageError(
            "gradients need weights in floating point, which this model has not: "
            "use --weights attention",
        )
