"""The observers of a running model's attention: one file each, and base.py for all of them."""
