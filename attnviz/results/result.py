"""What every result can do."""

from abc import abstractmethod

from attnviz.drawable import Picture
from attnviz.record import Presentable


class Result(Presentable):
    """What a question has found out, in all its forms.

    ``to_dict`` is the document of --json, ``rows`` the lines of the CSV; NaN stands for a number that is undefined.
    """

    @abstractmethod
    def tables(self) -> list[Picture]:
        """Return the pictures and tables that show it, of no medium."""

    def __repr__(self) -> str:
        """Say in one line what the result is of: the title of its first picture."""
        return f"<{type(self).__name__}: {self.tables()[0].title}>"
