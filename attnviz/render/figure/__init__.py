"""Drawables as figures: PNG, SVG and PDF, by matplotlib, which this room needs to be imported."""

from attnviz.errors import OutputError, require_packages

require_packages("a figure", "matplotlib", error=OutputError)
