"""From a slide to its heatmap: blocks on threads or on a cluster.

The only place where dask appears.
"""
