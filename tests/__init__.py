"""Tests: one promise each, in its docstring."""
