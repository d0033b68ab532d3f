"""Where to look on a slide: tissue, the grid of cells, blocks of cells and the pieces they are seen in.

Arithmetic on arrays; only the tissue mask reads a slide.
"""
