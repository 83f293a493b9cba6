"""Shapes, weights and activations."""

import torch
from torch.nn.functional import normalize

SHAPES = [(768, 32768, 32), (768, 131072, 32), (2304, 16384, 64), (2304, 65536, 64), (4096, 131072, 64)]
TRAINING_SHAPE = (768, 16384, 32)
INPUTS = ("normal", "heavy-tailed", "normal, ties", "heavy-tailed, ties")
COPIES = 8  # of each row, where there shall be ties


def weights(inputs, n, d):
    """Unit rows `[n, d]` in random directions; with ties, each of them COPIES times, far apart."""
    torch.manual_seed(0)
    if inputs.endswith("ties"):
        return normalize(torch.randn(n // COPIES, d), dim=1).repeat(COPIES, 1)
    return normalize(torch.randn(n, d), dim=1)


def activations(inputs, rows, d, seed=1):
    """`[rows, d]`, normal, or as residual streams have them: Student's t of 3 degrees, and a few massive coordinates."""
    torch.manual_seed(seed)
    x = torch.randn(rows, d)
    if inputs.startswith("heavy-tailed"):
        x /= (torch.randn(rows, d, 3).square().mean(2)).sqrt()
        massive = torch.arange(4) * (d // 4) + 7
        x[:, massive] += torch.tensor([120.0, -60.0, 40.0, -25.0])
    return x
