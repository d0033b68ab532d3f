"""What the server of child processes imports: all that a training or a scan imports when it first needs it.

No garbage is collected meanwhile, for there is none; and what was imported is never looked through again, so that children
go on sharing its memory with the server.
"""

from __future__ import annotations

import gc
from importlib import import_module

NAMES = (
    *("tiny", "torch._dynamo", "torch.distributed", "scipy.optimize", "scipy.stats", "zarr"),
    *("distributed.nanny", "wsi_meta.scanning.scan", "wsi_meta.scanning.cluster"),
)

gc.disable()
for name in NAMES:
    import_module(name)
gc.freeze()
gc.enable()
