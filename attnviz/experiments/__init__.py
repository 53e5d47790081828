"""Experiments: a model and texts -> results, where a model is run many times.

They know any model, but no screen and no library.

sequences.py     what the model reads: repeated blocks of random tokens, texts
heads.py         what each head is: its roles
ablation.py      what a head is for: the loss without it
intervention.py  what a prediction is without edges or heads, beside other such changes
attribution.py   which tokens a prediction is made of, and whether that is so
training.py      what was measured of a model while it was trained
"""
