"""A TopK trainer in plain PyTorch, float32: the formulas of the library's training module, each written the obvious way.

Dense pre-activations, `embedding_bag` to decode, autograd, `torch.optim.Adam`. It shares no code with the library, and stands beside it in recorded.py.
"""

import math
import sys

import torch
from torch.nn.functional import embedding_bag, normalize

FIRED = 1e-3


def geometric_median(x, steps=100):
    median = x.mean(0)
    for _ in range(steps):
        weights = 1 / (x - median).norm(dim=1).clamp_min(1e-12)
        moved = (weights[:, None] * x).sum(0) / weights.sum()
        if (moved - median).norm() < 1e-6 * (x - median).norm(dim=1).mean():
            break
        median = moved
    return median


def pre_activations(weights, x):
    # W_enc (x − b_dec), so written that b_dec's gradient is a product with one vector
    return x @ weights["W_enc"].T - weights["W_enc"] @ weights["b_dec"] + weights["b_enc"]


def keep_largest(h, k):
    """The k largest, then ReLU: activations and latents, [T, k] each."""
    top = torch.topk(h, k, dim=1, sorted=False)
    return torch.relu(top.values), top.indices


def decode(w_dec, z, latents):
    return embedding_bag(latents, w_dec, per_sample_weights=z, mode="sum")


def rate(options, step, seen):
    warm = min(1, step / max(1, options["warmup_steps"]))
    left = (options["total_tokens"] - seen) / options["total_tokens"]
    return options["learning_rate"] * warm * max(0, min(1, left / options["decay_fraction"]))


def train(activations, order, batch, options):
    """Trains on `activations[order]`; gives the weights and their moving average."""
    torch.manual_seed(options["seed"])
    d, n, k, k_aux = (options[name] for name in ("d", "n_latents", "k", "k_aux"))
    dead_after = min(10_000_000, options["total_tokens"] // 20)
    sample = activations[order[:32768]].float()
    normalizer = ((sample - sample.mean(0)) ** 2).mean()
    w_dec = normalize(torch.randn(n, d), dim=1)
    weights = {"W_enc": w_dec.clone(), "b_enc": torch.zeros(n), "W_dec": w_dec, "b_dec": torch.zeros(d)}
    probes = normalize(torch.randn(256, d), dim=1)
    weights["W_enc"] /= decode(w_dec, *keep_largest(probes @ w_dec.T, k)).norm(dim=1).mean()
    weights["b_dec"] = geometric_median(sample.double()).float()
    for value in weights.values():
        value.requires_grad_()
    adam = torch.optim.Adam(weights.values(), betas=(0.9, 0.999), eps=6.25e-10)
    ema = {name: torch.zeros_like(value) for name, value in weights.items()}
    unfired = torch.zeros(n, dtype=torch.int64)

    seen, steps = 0, math.ceil(len(order) / batch)
    for step, rows in enumerate(order.split(batch), 1):
        x = activations[rows].float()
        seen += len(x)
        h = pre_activations(weights, x)
        z, latents = keep_largest(h, k)
        x_hat = decode(weights["W_dec"], z, latents) + weights["b_dec"]
        loss = ((x_hat - x) ** 2).mean() / normalizer
        unfired += len(x)
        unfired[latents[z > FIRED]] = 0
        dead = (unfired >= dead_after).nonzero().squeeze(1)
        if len(dead):
            e = (x - x_hat).detach()
            z_aux, latents = keep_largest(h[:, dead], min(k_aux, len(dead)))
            e_hat = decode(weights["W_dec"], z_aux, dead[latents])
            loss = loss + ((e_hat - e) ** 2).mean() / ((e - e.mean(0)) ** 2).mean() / 32
        adam.zero_grad()
        loss.backward()
        with torch.no_grad():
            rows = weights["W_dec"]
            rows.grad -= (rows.grad * rows).sum(1, keepdim=True) * rows
            torch.nn.utils.clip_grad_norm_(weights.values(), options["clip_norm"])
            for name, value in weights.items():
                ema[name].mul_(0.999).add_(value, alpha=0.001)
            adam.param_groups[0]["lr"] = rate(options, step, seen - len(x))
            adam.step()
            rows /= rows.norm(dim=1, keepdim=True)
            if step % 20 == 0 or step == steps:
                fvu = (((x_hat - x) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()).item()
                print(f"\rstep {step} of {steps}  FVU {fvu:.4f}  dead {len(dead)}   ", end="", file=sys.stderr)
    print(file=sys.stderr)
    for value in ema.values():
        value /= 1 - 0.999**steps
    ema["W_dec"] /= ema["W_dec"].norm(dim=1, keepdim=True)
    return {name: value.detach() for name, value in weights.items()}, ema
