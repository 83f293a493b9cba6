"""How well held-out activations are explained: by an SAE's weights, whoever trained them, and by principal components."""

import torch

from plain_torch import decode, keep_largest, pre_activations


def deviation(x):
    return ((x - x.mean(0)) ** 2).sum().item()


@torch.no_grad()
def sae(weights, held_out, k):
    """FVU, mean active latents, and the share of latents that never fire."""
    error, active = 0.0, 0
    fired = torch.zeros(len(weights["b_enc"]), dtype=torch.bool)
    for x in held_out.split(2000):
        z, latents = keep_largest(pre_activations(weights, x), k)
        error += ((decode(weights["W_dec"], z, latents) + weights["b_dec"] - x) ** 2).sum().item()
        active += (z > 0).sum().item()
        fired[latents[z > 0]] = True
    return {
        "fvu": error / deviation(held_out),
        "l0": active / len(held_out),
        "never_fires": 1 - fired.double().mean().item(),
    }


def pca(training, held_out, rank):
    """FVU of the best `rank` directions of the training activations, about their mean."""
    x = training.double()
    mean = x.mean(0)
    _, directions = torch.linalg.eigh((x - mean).T @ (x - mean))
    directions = directions[:, -rank:]
    y = held_out.double() - mean
    return ((y - y @ directions @ directions.T) ** 2).sum().item() / deviation(held_out.double())
