"""The demonstration: a synthetic slide, scanned and shown.

Drawn tissue only; says nothing of how good a model is.
"""
