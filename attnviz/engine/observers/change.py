"""A run that nothing is kept of but what the model says: it is only changed."""

from torch import Tensor

from attnviz.engine.blocks import Plan, Shape, attend
from attnviz.engine.call import Call
from attnviz.engine.edits import Edits
from attnviz.engine.observers.base import Observer, Source, plain_output


class Changed(Observer):
    """An observer that changes calls, and what they put out; any number of texts at once."""

    def __init__(self, edits: Edits) -> None:
        self.edits = edits
        self.calls = 0
        self.cut: set[int] = set()

    def attend(self, call: Call, source: Source) -> Tensor:
        """See ``Observer.attend``."""
        number, self.calls = self.calls, self.calls + 1
        edited = self.edits.of_call(number, call)
        source = source if edited is call else Source()
        output = (
            plain_output(edited, source)
            if call.plain
            else attend(edited, Plan(Shape.of(call, 64)), ())
        )
        return self.edits.of_output(number, edited, output)

    def given(self, weights: Tensor, visible: Tensor, source: Source) -> int:
        """See ``Observer.given``. Raises ModelError if they were to be changed."""
        number, self.calls = self.calls, self.calls + 1
        self.edits.require_none(number, cut=number in self.cut)
        return number

    def before(self, scores: Tensor) -> Tensor:
        """See ``Observer.before``."""
        self.cut.add(self.calls)
        return self.edits.of_scores(self.calls, scores)
