"""Drawables as figures: PNG, SVG and PDF, by matplotlib."""
