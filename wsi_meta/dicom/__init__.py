"""What a DICOM slide says of itself, by its elements alone: no pixel is decoded here.

Which files are one slide, and where in them its tiles lie.
"""
