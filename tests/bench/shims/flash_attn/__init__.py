"""A stand-in for the package flash-attn: its functions over PyTorch's own copy of the same kernels.

The package has no wheel for every PyTorch, and the trainers that are measured beside loragate fall back to much slower
attention without it. `train.py` puts this on their path, and on nobody else's, where the package itself is missing.
"""

from .flash_attn_interface import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache

__all__ = ["flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"]
__version__ = "2.8.3"
