"""Code that tells the state of a process, for tests that run the library in a process of its own."""

STATE = """
import hashlib, json, os, random, resource, sys
from pathlib import Path
import numpy as np
import torch

def state():
    digest = lambda content: hashlib.sha256(content).hexdigest()
    return {
        "torch's seed": digest(torch.get_rng_state().numpy().tobytes()),
        "numpy's seed": digest(repr(np.random.get_state()).encode()),
        "python's seed": digest(repr(random.getstate()).encode()),
        "environment": dict(os.environ),
        "threads of torch": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "cuDNN": [torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic,
                  torch.backends.cudnn.allow_tf32],
        "products": [torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(),
                     torch.are_deterministic_algorithms_enabled()],
        "numbers": [str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.is_inference_mode_enabled()],
        "folder": os.getcwd(),
    }

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

def kept_of_256_mb():
    before = resident_mb()
    pieces = [np.ones(1 << 26, np.uint8) for _ in range(4)]
    assert resident_mb() - before > 240
    del pieces
    return resident_mb() - before
"""
