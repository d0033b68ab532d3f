"""wsi-meta maps tumor on whole-slide images of lymph nodes. A research tool, not a medical device.

The public names stand in ``__init__.pyi``; each is imported when it is first used, so that ``import wsi_meta`` is quick.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.2.0"
