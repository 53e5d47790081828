"""What holds of every capture."""

from collections.abc import Sequence

from attnviz.record import Token


def require_slices(tokens: Sequence[Token], *texts: str) -> None:
    """Require every token that is not special to be a slice of its text.

    Together they leave out nothing but white space.
    """
    for segment, text in enumerate(texts):
        covered = set[int]()
        for token in tokens:
            if token.segment == segment and not token.special:
                assert token.text == text[token.start : token.end]
                covered.update(range(token.start, token.end))
        assert all(sign.isspace() for place, sign in enumerate(text) if place not in covered)
