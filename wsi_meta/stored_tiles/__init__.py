"""Tiles as files store them: where their bytes lie, how these become pixels, and whether they are damaged.

Knows of TIFF and DICOM, and of no reader.
"""
