"""What a TIFF says of itself, by its tags alone: no pixel is decoded here.

Its pages, whether they are as the readers of slides take for granted, whether the file is whole, which tiles it has left out.
"""
