"""Labelled patches: on disk in the layouts that people have, and cut from slides.

Reads, checks and writes them.
"""
