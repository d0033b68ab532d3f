"""Images whose pixels are labels and not colours: masks of tumor and of tissue.

Knows of no slide and of no outline.
"""
