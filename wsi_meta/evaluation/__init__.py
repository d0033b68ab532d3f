"""How good on patches: figures with intervals and a report, calibration, and what a model file says by labelled patches.

Judges models; trains nothing.
"""
