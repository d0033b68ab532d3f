"""What people drew and wrote: outlines and masks of tumor, points of detections, tables about slides.

Reads and writes their files.
"""
