"""What watches the attention of a running model: one file an observer, and base.py what all of them are."""
