"""Drawables as HTML: a page to look through all heads, a document, a gallery."""
