"""Captures and arrays in files: formats, validation, untrusted reading, whole writing."""
