"""Files become pixels: every format that OpenSlide reads, as uint8 RGB arrays.

Imports nothing of the package but the root's errors and outputs.
"""
