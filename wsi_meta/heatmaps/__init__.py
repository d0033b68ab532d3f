"""The heatmap store and what is read from it: regions, lesions, scores, pictures.

Needs no network and no slide, but for a picture over it.
"""
