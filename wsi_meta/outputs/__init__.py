"""Results on the disk: where they may be written, what they never replace, and written whole or not at all."""
