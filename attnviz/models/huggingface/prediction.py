"""What a transformers model is asked about: which of its outputs, and where in a text that is said."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from attnviz.errors import UsageError
from attnviz.escape import label
from attnviz.models.huggingface.attention import forward, quiet_library
from attnviz.models.huggingface.encoding import Encoded
from attnviz.record import Floats, Token
from attnviz.request import Response, Target, gradient_line, pieces_line, spaced
from attnviz.selection import Spot, listed

Said = Literal["next", "masked", "class", "vector"]
HEADS: dict[str, Said] = {"ForMaskedLM": "masked", "ForSequenceClassification": "class"}
UNPREDICTED = (
    "this model predicts nothing, so there is no gradient of a prediction: use --weights norm"
)


@dataclass
class Asked:
    """One output of a model at one place of a text; which one it is, is known at the latest when it was run."""

    kind: Said
    tokens: tuple[Token, ...]
    place: int
    name: Callable[[int], str]
    target: int
    """-1 as long as it is to be the likeliest of the first run."""

    def run(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """Call the model."""
        return forward(
            model, {**inputs, **({"output_hidden_states": True} if self.kind == "vector" else {})}
        )

    def read(self, outputs: Any) -> Tensor:
        """What it said, (run, number)."""
        if self.kind == "vector":
            found: Tensor = last_vectors(outputs)[:, self.place]
            return found
        logits = outputs.logits
        found = logits if self.kind == "class" else logits[:, self.place]
        if self.target < 0:
            self.target = int(found[0].argmax())
        return found.clone()  # of all logits, memory need not hold more

    def logit(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """The target's logit less the mean of all, in torch's graph: what a softmax sees of it."""
        with torch.enable_grad():
            logits = self.read(self.run(model, inputs))[0].float()
            return logits[self.target] - logits.mean()

    @property
    def told(self) -> str:
        """What it is, once it was run."""
        what = {"next": "the next token after", "masked": "what stands at", "class": "the class"}[
            self.kind
        ]
        where = None if self.kind == "class" else self.tokens[self.place]
        return gradient_line(what, where, self.place, self.name(self.target))

    def response(self, outputs: Floats) -> Response:
        """What it said in several runs."""
        return Response(self.kind, self.tokens, self.place, outputs, self.target, self.name)


def ask(model: Any, tokenizer: Any, encoded: Encoded, target: Target) -> Asked:
    """What a target is of a model that reads a text. Raises UsageError."""
    tokens = encoded.target_tokens or encoded.tokens
    kind = kind_of(model, tokenizer, tokens, target)
    if kind == "class":
        labels = {int(number): str(label) for number, label in model.config.id2label.items()}
        return Asked(
            kind,
            tokens,
            0,
            lambda number: labels.get(number, str(number)),
            class_of(target.token, labels),
        )
    place = place_of(kind, tokenizer, tokens, target.query)
    return Asked(
        kind,
        tokens,
        place,
        lambda number: spelt(tokenizer, number),
        token_of(target.token, tokenizer),
    )


def kind_of(model: Any, tokenizer: Any, tokens: tuple[Token, ...], target: Target) -> Said:
    """What a model says. A masked model says something of a token only where one is masked, or named."""
    kind = next((kind for end, kind in HEADS.items() if type(model).__name__.endswith(end)), None)
    if kind is None:
        kind = "next" if model.can_generate() else "vector"
    if kind == "masked" and target.query is None and not masks(tokenizer, tokens):
        kind = "vector"
        if target.token is not None:
            raise UsageError(unmasked(tokenizer))
    if kind == "vector" and target.token is not None:
        raise UsageError(
            "--target-token: this model predicts no tokens and no classes, leave it out"
        )
    return kind


def masks(tokenizer: Any, tokens: tuple[Token, ...]) -> list[int]:
    """Where tokens are masked."""
    return [i for i, token in enumerate(tokens) if token.id == tokenizer.mask_token_id]


def place_of(kind: Said, tokenizer: Any, tokens: tuple[Token, ...], query: Spot | None) -> int:
    """The token at which something is said. Vectors: of the first token where special ones frame a text, else the last.

    Raises UsageError for a query that is not there.
    """
    if query is not None:
        return int(query.resolve(tokens).start)
    if kind == "masked":
        return masks(tokenizer, tokens)[0]
    framed = len(tokens) > 1 and tokens[0].special and tokens[-1].special
    return 0 if kind == "vector" and framed else len(tokens) - 1


def token_of(name: str | int | None, tokenizer: Any) -> int:
    """The token that says this; -1 for none. Raises UsageError unless it is one."""
    if name is None or isinstance(name, int):
        return -1 if name is None else name
    if name in tokenizer.all_special_tokens:
        return int(tokenizer.convert_tokens_to_ids(name))
    name = spaced(name)
    with quiet_library():
        ids = tokenizer(name, add_special_tokens=False)["input_ids"]
    if len(ids) == 1 and (ids[0] != tokenizer.unk_token_id or name == tokenizer.unk_token):
        return int(ids[0])
    if len(ids) == 1:
        raise UsageError(f"--target-token {name!r} is not in the vocabulary of this model")
    raise UsageError(pieces_line(name, [spelt(tokenizer, number) for number in ids]))


def spelt(tokenizer: Any, number: int) -> str:
    """What a token says; its name if that is nothing."""
    said = str(tokenizer.decode([number], clean_up_tokenization_spaces=False))
    return said or str(tokenizer.convert_ids_to_tokens([number])[0])


def class_of(name: str | int | None, labels: Mapping[int, str]) -> int:
    """The class of that name or number; -1 for none. Raises UsageError."""
    if name is None or isinstance(name, int):
        return -1 if name is None else name
    for number, called in labels.items():
        if name.strip().casefold() in (called.casefold(), str(number)):
            return number
    there = listed([f"{number} {label(called)}" for number, called in labels.items()])
    raise UsageError(f"--target-token {name!r} is no class of this model: {there}")


def last_vectors(outputs: Any) -> Tensor:
    """The vectors after the last layer, of the decoder if there is one, (run, token, dim)."""
    found = getattr(outputs, "last_hidden_state", None)
    if found is None:
        found = (getattr(outputs, "hidden_states", None) or outputs.decoder_hidden_states)[-1]
    vectors: Tensor = found
    return vectors


def unmasked(tokenizer: Any) -> str:
    """What a masked model needs, to predict something."""
    return f"there is no {tokenizer.mask_token} in the text: put one where the token is to be told"


def require_gradient(model: Any, tokenizer: Any, asked: Asked) -> None:
    """Raise UsageError of a model, or of a question, that there is no gradient of."""
    if asked.kind == "vector" and type(model).__name__.endswith("ForMaskedLM"):
        raise UsageError(f"{unmasked(tokenizer)}, or use --weights norm")
    if asked.kind == "vector":
        raise UsageError(UNPREDICTED)
    if getattr(model, "is_quantized", False) or not all(
        part.is_floating_point() for part in model.parameters()
    ):
        raise UsageError(
            "gradients need weights in floating point, which this model has not: use --weights attention"
        )
