"""Tries the program with damaged and odd inputs, and counts what came of it: each trial can be repeated by its seed and number."""
