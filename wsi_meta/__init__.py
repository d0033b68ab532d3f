"""wsi-meta maps tumor on whole-slide images of lymph nodes. A research tool, not a medical device."""

__version__ = "0.1.0"
