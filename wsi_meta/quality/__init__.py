"""What may be wrong with a slide: out of focus, inked, folded, of another pixel size, unlike what the model was trained on.

Measures on pixels, and what they come to in words. A verdict leaves nothing unscanned.
"""
