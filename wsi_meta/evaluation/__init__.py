"""How good: figures on patches with intervals and a report, calibration, Camelyon's own yardsticks.

Judges models and detections; trains nothing.
"""
