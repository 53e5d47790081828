"""Drawables as figures: PNG, SVG and PDF, by matplotlib, which this room needs to be imported."""

import logging
import os

from attnviz.errors import OutputError, require_packages

FOLDER_VARIABLE = (
    "MPLCONFIGDIR"  # names the folder in which matplotlib keeps what it knows of fonts
)


def import_matplotlib() -> list[str]:
    """Import matplotlib, and return a note for the user if it has no folder to write into.

    That is so where the home folder cannot be written to. matplotlib then makes a temporary folder,
    which it names in the environment, and logs long lines, which are left out.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    library_log = logging.getLogger("matplotlib")
    level = library_log.level
    library_log.setLevel(logging.ERROR)
    try:
        import matplotlib.font_manager  # noqa: F401 - it is imported for what it does
    finally:
        library_log.setLevel(level)
    if os.environ.get(FOLDER_VARIABLE) == folder:
        return []
    problem = "the home folder cannot be written to, so every run looks for fonts anew"
    return [f"{problem}: set {FOLDER_VARIABLE} to a folder that can be written to"]


require_packages("a figure", "matplotlib", error=OutputError)
IMPORT_NOTES = import_matplotlib()
