"""Makes tests/golden/training.safetensors: a TopK training run in float64, written as plainly as PyTorch allows.

    python make_training.py OUT.safetensors

It starts from seeded weights and trains 20 steps on seeded batches, with AuxK on latents that have not fired for 5 steps
and with gradient clipping. Saved are the start, the batches (float32, so that both sides see the same numbers), the end, the moving
average, and what each step reported. Gradients come from autograd; nothing is shared with the library.
"""

import sys

import torch
from safetensors.torch import save_file

from adam import CLIP, EMA_DECAY, Adam

D, N, K, K_AUX, T, STEPS = 32, 256, 8, 16, 64, 20
DEAD_AFTER = 5 * T
ALPHA = 1 / 32

torch.manual_seed(0)


def data(rows):
    """Sparse sums of fixed directions, an offset, and noise."""
    strength = torch.rand(rows, 64, dtype=torch.float64) * (torch.rand(rows, 64) < 0.08)
    return strength @ directions * 4 + offset + 0.05 * torch.randn(rows, D, dtype=torch.float64)


directions = torch.nn.functional.normalize(torch.randn(64, D, dtype=torch.float64), dim=1)
offset = torch.randn(D, dtype=torch.float64)
batches = data(STEPS * T).float().double().reshape(STEPS, T, D)

w_dec = torch.nn.functional.normalize(torch.randn(N, D, dtype=torch.float64), dim=1)
b_enc = torch.zeros(N, dtype=torch.float64)
b_enc[N // 2 :] = -2.0  # half of the latents start out silent, so that they die
start = {"W_enc": 0.6 * w_dec, "b_enc": b_enc, "W_dec": w_dec, "b_dec": offset + 0.1}
start = {name: value.float().double() for name, value in start.items()}
start["W_dec"] = torch.nn.functional.normalize(start["W_dec"], dim=1).float().double()

sample = batches.reshape(-1, D)
normalizer = ((sample - sample.mean(0)) ** 2).mean()

weights = {name: value.clone().requires_grad_() for name, value in start.items()}
adam = Adam(weights)
ema = adam.ema
unfired = torch.zeros(N, dtype=torch.int64)
reports = []

for step in range(1, STEPS + 1):
    x = batches[step - 1]
    for value in weights.values():
        value.grad = None
    h = (x - weights["b_dec"]) @ weights["W_enc"].T + weights["b_enc"]
    top = torch.topk(h, K, dim=1)
    z = torch.zeros_like(h).scatter(1, top.indices, torch.relu(top.values))
    x_hat = z @ weights["W_dec"] + weights["b_dec"]
    mse = ((x_hat - x) ** 2).mean() / normalizer

    fired = (z > 1e-3).any(0)
    unfired = torch.where(fired, 0, unfired + T)
    dead = unfired >= DEAD_AFTER
    aux = torch.zeros((), dtype=torch.float64)
    if dead.any():
        e = (x - x_hat).detach()
        top = torch.topk(h.masked_fill(~dead, -torch.inf), min(K_AUX, int(dead.sum())), dim=1)
        a = torch.zeros_like(h).scatter(1, top.indices, torch.relu(top.values))
        e_hat = a @ weights["W_dec"]
        aux = ALPHA * ((e_hat - e) ** 2).mean() / ((e - e.mean(0)) ** 2).mean()
    (mse + aux).backward()

    norm = adam.step(step)
    fvu = ((x_hat - x) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    l0 = (z > 0).sum(1).double().mean()
    report = [mse, aux, fvu, l0, dead.sum(), norm]
    reports.append([value.item() for value in report])
    print("step {:2d}  mse {:.4f}  aux {:.4f}  fvu {:.4f}  l0 {:.2f}  dead {:.0f}  |grad| {:.4f}".format(step, *reports[-1]))

for value in ema.values():
    value /= 1 - EMA_DECAY**STEPS
ema["W_dec"] /= ema["W_dec"].norm(dim=1, keepdim=True)
assert sum(r[1] > 0 for r in reports) > 10 and sum(r[5] > CLIP for r in reports) > 10

out = {"batches": batches.float(), "reports": torch.tensor(reports, dtype=torch.float64)}
out |= {f"start.{name}": value.float() for name, value in start.items()}
out |= {f"end.{name}": value.detach() for name, value in weights.items()}
out |= {f"ema.{name}": value for name, value in ema.items()}
save_file(out, sys.argv[1])
