"""A prompt and a request -> Capture, by the backend that reads the model.

base.py says what a model has, registry.py which backend reads it. What is asked of a model, and
what it answers, is in attnviz.request.
"""

from attnviz.models.base import Model
from attnviz.models.registry import load

__all__ = ["Model", "load"]
