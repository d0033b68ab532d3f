"""Patches become a model: recipe, augmentation, one epoch after another.

``train`` is the summary.
"""
