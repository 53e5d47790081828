"""The small language model built on the layer: forward pass, training, and the shipped weights."""
