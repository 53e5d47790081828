"""The capture engine: attention in blocks of query rows, each seen once by what is to be kept of it. Knows no library.

call.py      one call of attention, in the words of the field
blocks.py    its blocks: scores, weights, output
reducers.py  what is kept of the blocks: weights, tiles, statistics, edges
probe.py     which calls of a model are looked at, and what was found
change.py    heads whose outputs are changed, as in ablation
tap.py       calls of torch's own functions, for models that hide their attention
"""
