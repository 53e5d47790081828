"""What every result can do."""

from typing import Any

from attnviz.drawable import Picture


class Result:
    """What a question has found out, in all its forms."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a document for JSON. NaN stands for a number that is undefined."""
        raise NotImplementedError

    def rows(self) -> list[dict[str, Any]]:
        """Return the lines of a table, all with the same names. NaN stands for what is undefined."""
        raise NotImplementedError

    def tables(self) -> list[Picture]:
        """Return the pictures and tables that show it, of no medium."""
        raise NotImplementedError
