"""From labelled patches to a model file, and how good it is."""
