"""The capture engine: attention in blocks of query rows, each seen once by what keeps its results.

It knows torch, and no library of models.

call.py       one call of attention, in the words of the field
blocks.py     the blocks of a call: scores, weights, output
reducers.py   what is kept of the blocks: weights, tiles, statistics, edges
values.py     what values make of weights: norms, scores
agreement.py  how far two computations of one output are apart
edits.py      what is changed in a call, as in ablation
running.py    which module of a model runs
tap.py        calls of torch's own functions, for models that hide their attention
observers/    what watches a running model: surveys it, captures it, changes it, traces it
"""
