"""Numbers as tables of results show them."""

import math


def format_fixed(value: float, digits: int) -> str:
    """Format a number to some digits after the point: "" for NaN, and never -0.00."""
    if math.isnan(value):
        return ""
    rounded = round(value, digits) + 0.0  # of -0.0 this makes 0.0
    return f"{rounded:.{digits}f}"


def format_share(value: float, digits: int = 2) -> str:
    """Format a share without the 0 before the point, as .89; an empty text for NaN."""
    text = format_fixed(value, digits)
    if text.startswith("0."):
        return text.removeprefix("0")
    return text
