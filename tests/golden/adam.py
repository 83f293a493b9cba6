"""The step of a training run after its gradients, as the goldens of training take it."""

import torch

LR, CLIP, EMA_DECAY = 2e-3, 0.15, 0.9
BETA1, BETA2, EPSILON = 0.9, 0.999, 6.25e-10


def row_norms(rows, layers=1):
    return rows.unflatten(1, (layers, -1)).norm(dim=2).sum(1, keepdim=True)


class Adam:
    """Projection of the decoder's gradient, clipping, moving average, Adam, unit rows; `weights` have their gradients.

    A row's norm is the sum of those of its `layers`.
    """

    def __init__(self, weights, layers=1):
        self.layers = layers
        zeros = lambda: {name: torch.zeros_like(value) for name, value in weights.items()}
        self.weights, self.first, self.second, self.ema = weights, zeros(), zeros(), zeros()

    @torch.no_grad()
    def step(self, step):
        """The `step`th, from 1; gives the gradient's norm."""
        grads = {name: value.grad for name, value in self.weights.items()}
        rows = self.weights["W_dec"]
        parts = rows.unflatten(1, (self.layers, -1))
        normal = (parts / parts.norm(dim=2, keepdim=True)).flatten(1)  # the norm's gradient
        grads["W_dec"] -= (grads["W_dec"] * normal).sum(1, keepdim=True) / self.layers * normal
        norm = torch.sqrt(sum((g**2).sum() for g in grads.values()))
        scale = min(1.0, CLIP / (norm.item() + 1e-6))
        for name, value in self.weights.items():
            self.ema[name].mul_(EMA_DECAY).add_(value, alpha=1 - EMA_DECAY)
            g = grads[name] * scale
            self.first[name] = BETA1 * self.first[name] + (1 - BETA1) * g
            self.second[name] = BETA2 * self.second[name] + (1 - BETA2) * g**2
            root = torch.sqrt(self.second[name] / (1 - BETA2**step))
            value -= LR * (self.first[name] / (1 - BETA1**step)) / (root + EPSILON)
        rows /= row_norms(rows, self.layers)
        return norm
