"""Tries the program with damaged and odd inputs, and counts what came of it; seed and number repeat any trial."""
