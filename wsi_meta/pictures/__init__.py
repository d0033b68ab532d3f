"""Heatmaps as pictures: over the slide, a part of it closely, and a sheet of its lesions."""
