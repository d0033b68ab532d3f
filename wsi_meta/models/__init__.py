"""The classifier and its contract: network, card, preprocessing, the file that holds them.

``default.safetensors`` beside this file is the embedded model.
"""
