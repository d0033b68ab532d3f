"""The files of a slide, on a disk or at an address: which are one, whether they stay the same, where their tiles lie.

Imports nothing of the package but the root's errors and outputs.
"""
