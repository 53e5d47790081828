"""What a command says on stderr besides its result."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from attnviz.record import Capture


@dataclass(frozen=True)
class Talk:
    """Talk to the user on stderr, unless silenced."""

    quiet: bool = False
    verbose: bool = False

    @property
    def is_on_terminal(self) -> bool:
        """True if a terminal shows what is said."""
        return not self.quiet and sys.stderr.isatty()

    @property
    def shows_progress(self) -> bool:
        """True if progress is drawn: on a terminal that can clear a line, unless silenced."""
        from attnviz.cli.progress import can_show_line

        return not self.quiet and can_show_line(sys.stderr)

    def note(self, message: str) -> None:
        """Print a line on stderr, unless silenced, with hostile characters escaped."""
        if self.quiet:
            return
        from attnviz.escape import escape

        click.echo(escape(message), err=True)

    def tell_fidelity(self, capture: "Capture") -> None:
        """Print on stderr how exact the weights of a capture are, if --verbose asks for that."""
        if not self.verbose:
            return
        if capture.fidelity is None:
            reference = capture.fidelity_reference
            self.note(f"fidelity: not measured{f': {reference}' if reference else ''}")
        else:
            share = f"{capture.fidelity:.1e} of its size"
            self.note(f"fidelity: weights times values are the model's own output to {share}")
            self.note(f"measured against: {capture.fidelity_reference}")
        if capture.output_change is not None:
            change = f"{capture.output_change:.1e} of its size"
            self.note(f"the model's output differs by {change} from that without attnviz")
