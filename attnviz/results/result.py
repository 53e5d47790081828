"""The forms that every result has: a document, rows, and pictures."""

from abc import abstractmethod

from attnviz.drawable import Picture
from attnviz.record import Presentable


class Result(Presentable):
    """The answer to a question, in all its forms.

    ``to_dict`` is the document of --json, ``rows`` the lines of the CSV; NaN stands for a number
    that is undefined.
    """

    @abstractmethod
    def tables(self) -> list[Picture]:
        """Return the pictures and tables that show it, of no medium."""

    def __repr__(self) -> str:
        """Say in one line what the result is of: the title of its first picture."""
        first = self.tables()[0]
        return f"<{type(self).__name__}: {first.title}>"
