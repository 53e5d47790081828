"""The transformer built on the layer, and the small language model: training, shipped weights."""
