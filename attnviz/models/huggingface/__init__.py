"""Models of the transformers library, which must be installed to import this room."""

from attnviz.errors import require_packages

require_packages("a model of transformers", "torch", "transformers")
