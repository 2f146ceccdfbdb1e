"""NEFTune: noise on the embeddings of a row while a model trains (Jain et al. 2023, arXiv 2310.05914, section 2).

Shapes in names: B rows, T positions, D hidden width.
"""

from typing import Any

import torch


def noise_scale(inner: Any, lengths: torch.Tensor, alpha: float) -> torch.Tensor:
    """Largest noise of each token: alpha / sqrt(L D), by the length L of its row."""
    width = inner.get_input_embeddings().embedding_dim
    return alpha / (lengths.float() * width).sqrt()


def noisy(inner: Any, ids_BT: torch.Tensor, scale_BT: torch.Tensor) -> torch.Tensor:
    """Embeddings with noise, uniform within the scale: embeddings_BTD."""
    clean_BTD: torch.Tensor = inner.get_input_embeddings()(ids_BT)
    noise_BTD = torch.empty_like(clean_BTD, dtype=torch.float32).uniform_(-1, 1)
    return clean_BTD + (noise_BTD * scale_BT[..., None]).to(clean_BTD.dtype)
