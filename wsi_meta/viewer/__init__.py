"""Heatmaps over their slides, to look at in a browser: a server of this machine, and a page without one."""
