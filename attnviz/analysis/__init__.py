"""Capture -> numbers: pure functions, arrays in, arrays out."""
