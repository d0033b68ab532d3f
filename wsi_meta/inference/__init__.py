"""Pixels become logits, fast: the predictor, and the networks, devices and memory behind it.

Knows nothing of slides or stores.
"""
