"""Checkpoints of common families run in NumPy, without torch and transformers.

attnviz.lm.transformer is the forward, written once for all of them and for the built-in model;
families.py says, as data, which entries of a config and which weights a family has; weights.py
reads the weights from their files.
"""
