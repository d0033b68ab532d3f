"""From a slide to its heatmap: one slide, or many in one stream.

The only place where dask appears.
"""
