"""Probabilities and thresholds in words that promise no more than they know."""

from __future__ import annotations

__all__ = ["format_probability", "format_threshold"]


def format_probability(value: float, digits: int = 3) -> str:
    """Return a probability, or a slide's score, with so many decimals; none is rounded to 0 or 1."""
    least = 10.0**-digits
    told, none, certain = (f"{number:.{digits}f}" for number in (value, 0, 1))
    return {none: f"under {least:.{digits}f}", certain: f"over {1 - least:.{digits}f}"}.get(told, told)


def format_threshold(value: float, digits: int = 2) -> str:
    """Return a threshold, or a bound, with so many decimals: more where they would make it 1, two figures of a small one."""
    if value < 10.0 ** (1 - digits):
        return f"{value:.2g}"
    while value < 1 and float(f"{value:.{digits}f}") == 1:
        digits += 1
    return f"{value:.{digits}f}"
