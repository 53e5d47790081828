"""Which output of a model a question is about: the position in the text, and the token."""

from typing import Any, Literal

from attnviz.errors import UsageError
from attnviz.models.panics import refuse_tokenizer_errors
from attnviz.record import Token
from attnviz.request import Target, explain_no_token, restore_space
from attnviz.selection import TokenReference

PredictionKind = Literal["next", "masked", "class", "vector"]
LIKELIEST_OUTPUT = -1  # in place of the number of an output


def find_masked_positions(tokenizer: Any, tokens: tuple[Token, ...]) -> list[int]:
    """Return the positions of masked tokens."""
    mask_id = tokenizer.mask_token_id
    return [position for position, token in enumerate(tokens) if token.id == mask_id]


def choose_position(
    kind: PredictionKind,
    tokenizer: Any,
    tokens: tuple[Token, ...],
    query: TokenReference | None,
) -> int:
    """Return the position of the token at which a model predicts something.

    query: the token that the user names, if any. Without it, the position is that of the first
    masked token if the kind of prediction is "masked"; 0 if it is "vector" and the text has special
    tokens at both ends; and otherwise that of the last token. Raises UsageError for a query that is
    not there.
    """
    if query is not None:
        return int(query.resolve(tokens).start)
    if kind == "masked":
        return find_masked_positions(tokenizer, tokens)[0]
    is_framed = len(tokens) > 1 and tokens[0].special and tokens[-1].special
    return 0 if kind == "vector" and is_framed else len(tokens) - 1


def require_no_target_token(target: Target) -> None:
    """Raise UsageError if a target names a token of a model that predicts none."""
    if target.token is not None:
        raise UsageError(
            "--target-token: this model predicts no tokens and no classes, leave it out",
        )


@refuse_tokenizer_errors("the tokenizer cannot read this token")
def find_token_id(name: str | int | None, tokenizer: Any) -> int:
    """Return the id of the token that a user names by its text or its id; -1 for None.

    -1 stands for the likeliest token, which is known only after a run. Raises UsageError for a text
    that is not exactly one token of the vocabulary.
    """
    if name is None:
        return LIKELIEST_OUTPUT
    if isinstance(name, int):
        return name
    if name in tokenizer.all_special_tokens:
        return int(tokenizer.convert_tokens_to_ids([name])[0])
    text = restore_space(name)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = [spell_token(tokenizer, number) for number in ids]
        raise UsageError(explain_no_token(text, pieces))
    if ids[0] == tokenizer.unk_token_id and text != tokenizer.unk_token:
        raise UsageError(f"--target-token {text!r} is not in the vocabulary of this model")
    return int(ids[0])


@refuse_tokenizer_errors("the tokenizer cannot spell its tokens")
def spell_token(tokenizer: Any, number: int) -> str:
    """Return the text of a token; its name if it has no text."""
    text = str(tokenizer.decode([number], clean_up_tokenization_spaces=False))
    return text or str(tokenizer.convert_ids_to_tokens([number])[0])
