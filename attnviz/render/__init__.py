"""Drawables in all media: lines of a terminal, figures, HTML pages and Markdown."""
