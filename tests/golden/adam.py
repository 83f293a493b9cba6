"""The step of a training run after its gradients, as the goldens of training take it."""

import torch

LR, CLIP, EMA_DECAY = 2e-3, 0.15, 0.9
BETA1, BETA2, EPSILON = 0.9, 0.999, 6.25e-10


class Adam:
    """Projection of the decoder's gradient, clipping, moving average, Adam, unit rows; `weights` have their gradients."""

    def __init__(self, weights):
        zeros = lambda: {name: torch.zeros_like(value) for name, value in weights.items()}
        self.weights, self.first, self.second, self.ema = weights, zeros(), zeros(), zeros()

    @torch.no_grad()
    def step(self, step):
        """The `step`th, from 1; gives the gradient's norm."""
        grads = {name: value.grad for name, value in self.weights.items()}
        rows = self.weights["W_dec"]
        grads["W_dec"] -= (grads["W_dec"] * rows).sum(1, keepdim=True) * rows
        norm = torch.sqrt(sum((g**2).sum() for g in grads.values()))
        scale = min(1.0, CLIP / (norm.item() + 1e-6))
        for name, value in self.weights.items():
            self.ema[name].mul_(EMA_DECAY).add_(value, alpha=1 - EMA_DECAY)
            g = grads[name] * scale
            self.first[name] = BETA1 * self.first[name] + (1 - BETA1) * g
            self.second[name] = BETA2 * self.second[name] + (1 - BETA2) * g**2
            root = torch.sqrt(self.second[name] / (1 - BETA2**step))
            value -= LR * (self.first[name] / (1 - BETA1**step)) / (root + EPSILON)
        rows /= rows.norm(dim=1, keepdim=True)
        return norm
