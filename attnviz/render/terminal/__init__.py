"""Drawables as lines of text for a terminal."""
