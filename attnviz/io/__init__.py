"""Captures and arrays in files: formats, validation, untrusted reading, writing whole or not at all."""
