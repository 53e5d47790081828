"""Drawable -> terminal, figure, page."""
