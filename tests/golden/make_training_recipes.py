"""Makes tests/golden/training_recipes/RECIPE.safetensors: twenty steps of each recipe in float64, as plainly as PyTorch allows.

    python make_training_recipes.py

A recipe here is its loss alone; autograd makes the gradients, and the step after it is that of adam.py. Before any of it,
losses and gradients are held against the recipes' own libraries where those have trainers. Saved are the start, the batches
(float32), the end, the moving average, and what each step reported; nothing is shared with the library.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from adam import CLIP, EMA_DECAY, Adam, row_norms

D, D_OUT, N, K, K_AUX, T, STEPS = 16, 20, 64, 4, 8, 48, 20
LAYERS = 2  # of crosscoders, side by side in D
DEAD_AFTER = 5 * T
ALPHA = 1 / 32
PREFIXES, PREFIX_WEIGHTS = [8, 24, 64], [0.5, 2.0, 1.0]
L1, L0, GATE_L1 = 0.3, 0.2, 0.2  # coefficients, of which the first steps have a quarter, a half …
SPARSITY_WARMUP = 4
BANDWIDTH, TARGET_L0, TANH_SCALE = 0.5, 6.0, 4.0
F64 = torch.float64


def data(rows: int, d: int, seed: int) -> torch.Tensor:
    """Sparse sums of fixed directions, an offset, and noise."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=F64, generator=generator)
    directions, offset = normalize(draw(40, d), dim=1), draw(d)
    chance = torch.Generator().manual_seed(100)  # the same features for every seed
    strength = torch.rand(rows, 40, dtype=F64, generator=chance) * (torch.rand(rows, 40, generator=chance) < 0.1)
    return (strength @ directions * 4 + offset + 0.05 * draw(rows, d)).float().double()


def target(x: torch.Tensor) -> torch.Tensor:
    """What a transcoder reconstructs: of another width, and no linear function of the input."""
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(D, D_OUT, dtype=F64, generator=generator)
    return (torch.tanh(x @ matrix / 4) * 3 + 0.3 * x @ matrix + 1).float().double()


CROSSCODERS = ("crosscoder", "top_k_crosscoder", "batch_top_k_crosscoder")


def layers(recipe: str) -> int:
    return LAYERS if recipe in CROSSCODERS else 1


def start(recipe: str) -> dict[str, torch.Tensor]:
    """Weights of which the second half of the latents hardly fires."""
    generator = torch.Generator().manual_seed(7)
    w_dec = normalize(torch.randn(N, D, dtype=F64, generator=generator), dim=1)
    w_enc, b_enc = 0.6 * w_dec, torch.zeros(N, dtype=F64)
    if recipe == "abs_top_k":
        w_enc[N // 2 :] *= 0.02
    elif recipe in ("top_k", "multi_top_k", "batch_top_k", "matryoshka", "transcoder") or recipe in CROSSCODERS[1:]:
        b_enc[N // 2 :] = -2.0
    weights = {"W_enc": w_enc, "b_enc": b_enc, "W_dec": w_dec, "b_dec": data(T, D, 1).mean(0)}
    if "transcoder" in recipe:
        draw = lambda *shape: torch.randn(*shape, dtype=F64, generator=generator)
        weights |= {"W_dec": normalize(draw(N, D_OUT), dim=1), "b_dec": target(data(T, D, 1)).mean(0)}
        if recipe == "skip_transcoder":
            weights["W_skip"] = 0.1 * draw(D_OUT, D)
    uniform = lambda low, high: low + (high - low) * torch.rand(N, dtype=F64, generator=generator)
    if recipe.startswith("jump_relu"):
        weights["threshold"] = uniform(0.01, 0.6)  # half of them so small that scores below 0 are near
    elif recipe == "gated":
        weights |= {"r_mag": uniform(-0.3, 0.3), "b_gate": uniform(-0.3, 0.1), "b_enc": uniform(-0.5, 0.1)}
    weights = {name: value.float().double() for name, value in weights.items()}
    if recipe in CROSSCODERS:  # as if b_dec were subtracted; latents write the two layers to different degrees
        weights["b_enc"] = (b_enc - w_enc @ weights["b_dec"]).float().double()
        weights["W_dec"][:, : D // 2] *= uniform(0.05, 2.0)[:, None]
    weights["W_dec"] = (weights["W_dec"] / row_norms(weights["W_dec"], layers(recipe))).float().double()
    return weights


class Batch:
    """What a loss is computed from: the input, pre-activations, which latents are dead."""

    def __init__(self, x: torch.Tensor, weights: dict, normalizer: float, warmth: float = 1.0, y: torch.Tensor | None = None, layers: int = 1):
        self.w, self.warmth, self.skipped = weights, warmth, 0
        self.x, centre = (x, weights["b_dec"]) if y is None else (y, 0)  # what is reconstructed
        centre = centre if layers == 1 else 0
        self.given = x - centre
        self.variance = normalizer * self.x.shape[1]  # of the whole vector
        self.h = self.given @ weights["W_enc"].T + weights["b_enc"]
        if "W_skip" in weights:
            self.skipped = x @ weights["W_skip"].T

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z @ self.w["W_dec"] + self.w["b_dec"] + self.skipped

    def penalty(self, coefficient: float, sums: torch.Tensor) -> torch.Tensor:
        return self.warmth * coefficient * sums.mean() / self.variance

    def square(self, x_hat: torch.Tensor) -> torch.Tensor:
        return ((x_hat - self.x) ** 2).sum(1).mean() / self.variance


def keep(h: torch.Tensor, k: int, rank: torch.Tensor | None = None) -> torch.Tensor:
    """h where it is among the k largest of its row, by another rank if there is one."""
    chosen = torch.topk(h if rank is None else rank, k, dim=1).indices
    return torch.zeros_like(h).scatter(1, chosen, h.gather(1, chosen))


def keep_of_batch(h: torch.Tensor, k: int) -> torch.Tensor:
    h = torch.relu(h)
    chosen = torch.topk(h.flatten(), k * len(h)).indices
    return torch.zeros_like(h).flatten().scatter(0, chosen, h.flatten()[chosen]).reshape(h.shape)


# Each gives the activations, the reconstruction that stands for the SAE, and the parts of the loss without AuxK.


def top_k(b: Batch):
    z = torch.relu(keep(b.h, K))
    return z, b.decode(z), {"mse": b.square(b.decode(z))}


def multi_top_k(b: Batch):
    z, many = torch.relu(keep(b.h, K)), torch.relu(keep(b.h, 4 * K))
    return z, b.decode(z), {"mse": b.square(b.decode(z)) + b.square(b.decode(many)) / 8}


def abs_top_k(b: Batch):
    z = keep(b.h, K, b.h.abs())
    return z, b.decode(z), {"mse": b.square(b.decode(z))}


def batch_top_k(b: Batch):
    z = keep_of_batch(b.h, K)
    return z, b.decode(z), {"mse": b.square(b.decode(z))}


def matryoshka(b: Batch):
    z = keep_of_batch(b.h, K)
    parts = []
    for prefix, weight in zip(PREFIXES, PREFIX_WEIGHTS):
        parts.append(weight * b.square(z[:, :prefix] @ b.w["W_dec"][:prefix] + b.w["b_dec"]))
    return z, b.decode(z), {"mse": sum(parts)}


def relu(b: Batch):
    z = torch.relu(b.h)
    l1 = (z * b.w["W_dec"].norm(dim=1)).sum(1)
    return z, b.decode(z), {"mse": b.square(b.decode(z)), "sparsity": b.penalty(L1, l1)}


class Estimated(torch.autograd.Function):
    """JumpReLU or the step, whose gradient by the threshold is estimated from the scores near it."""

    @staticmethod
    def forward(context, h, threshold, step):
        context.save_for_backward(h, threshold)
        context.step = step
        return (h > threshold).to(h) if step else h * (h > threshold)

    @staticmethod
    def backward(context, g):
        h, threshold = context.saved_tensors
        near = ((h - threshold).abs() < BANDWIDTH / 2) / BANDWIDTH * g
        by_h = torch.zeros_like(h) if context.step else (h > threshold) * g
        return by_h, -(near if context.step else threshold * near).sum(0), None


def jump_relu(b: Batch, penalty: str = "step"):
    z = Estimated.apply(b.h, b.w["threshold"], False)
    l0 = Estimated.apply(b.h, b.w["threshold"], True).sum(1)
    if penalty == "tanh":
        s = torch.tanh(TANH_SCALE * z * b.w["W_dec"].norm(dim=1)).sum(1)
    else:
        s = l0 if penalty == "step" else 2 / TARGET_L0 * (l0 - TARGET_L0) ** 2
    return z, b.decode(z), {"mse": b.square(b.decode(z)), "sparsity": b.penalty(L0, s)}


def jump_relu_tanh(b: Batch):
    return jump_relu(b, "tanh")


def jump_relu_quadratic(b: Batch):
    return jump_relu(b, "quadratic")


def gated(b: Batch):
    product = b.given @ b.w["W_enc"].T
    gate = product + b.w["b_gate"]
    z = (gate > 0) * torch.relu(product * b.w["r_mag"].exp() + b.w["b_enc"])
    frozen = torch.relu(gate) @ b.w["W_dec"].detach() + b.w["b_dec"].detach()
    parts = {"mse": b.square(b.decode(z)), "aux": b.square(frozen), "sparsity": b.penalty(GATE_L1, torch.relu(gate).sum(1))}
    return z, b.decode(z), parts


def crosscoder(b: Batch):
    z = torch.relu(b.h)
    l1 = (z * row_norms(b.w["W_dec"], LAYERS).T).sum(1)
    return z, b.decode(z), {"mse": b.square(b.decode(z)), "sparsity": b.penalty(L1, l1)}


def top_k_crosscoder(b: Batch):
    z = torch.relu(keep(b.h, K, b.h * row_norms(b.w["W_dec"], LAYERS).T))
    return z, b.decode(z), {"mse": b.square(b.decode(z))}


def batch_top_k_crosscoder(b: Batch):
    z = torch.relu(b.h)
    codes = z * row_norms(b.w["W_dec"], LAYERS).T
    z = z * (keep_of_batch(codes, K) > 0)
    return z, b.decode(z), {"mse": b.square(b.decode(z))}


RECIPES = {f.__name__: f for f in (top_k, multi_top_k, abs_top_k, batch_top_k, matryoshka, relu, jump_relu, jump_relu_tanh)}
RECIPES |= {f.__name__: f for f in (jump_relu_quadratic, gated)}
RECIPES |= {"transcoder": top_k, "skip_transcoder": relu}
RECIPES |= dict(zip(CROSSCODERS, (crosscoder, top_k_crosscoder, batch_top_k_crosscoder)))
WITH_AUX = {"top_k", "multi_top_k", "abs_top_k", "batch_top_k", "matryoshka", "transcoder", *CROSSCODERS[1:]}


def aux_k(recipe: str, b: Batch, x_hat: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    if not dead.any():
        return torch.zeros((), dtype=F64)
    e, k = (b.x - x_hat).detach(), min(K_AUX, int(dead.sum()))
    if recipe == "abs_top_k":
        a = keep(b.h, k, b.h.abs().masked_fill(~dead, -1)) * dead
    else:
        a = torch.relu(keep(b.h, k, b.h.masked_fill(~dead, -torch.inf)) * dead)
    return ALPHA * ((a @ b.w["W_dec"] - e) ** 2).mean() / ((e - e.mean(0)) ** 2).mean()


def train(recipe: str) -> dict[str, torch.Tensor]:
    first_weights = start(recipe)
    batches = data(STEPS * T, D, 1).reshape(STEPS, T, D)
    targets = target(batches) if "transcoder" in recipe else [None] * STEPS
    sample = (targets if "transcoder" in recipe else batches).flatten(0, 1)
    normalizer = ((sample - sample.mean(0)) ** 2).mean().item()
    weights = {name: value.clone().requires_grad_() for name, value in first_weights.items()}
    adam = Adam(weights, layers(recipe))
    ema = adam.ema
    unfired = torch.zeros(N, dtype=torch.int64)
    reports, smallest = [], []
    for step in range(1, STEPS + 1):
        batch = Batch(batches[step - 1], weights, normalizer, min(1, step / SPARSITY_WARMUP), targets[step - 1], layers(recipe))
        z, x_hat, parts = RECIPES[recipe](batch)
        unfired = torch.where((z.abs() > 1e-3).any(0), 0, unfired + T)
        dead = unfired >= DEAD_AFTER
        if recipe in WITH_AUX:
            parts["aux"] = aux_k(recipe, batch, x_hat, dead)
        for value in weights.values():
            value.grad = None
        sum(parts.values()).backward()
        norm = adam.step(step)
        with torch.no_grad():
            if "threshold" in weights:
                weights["threshold"].clamp_(min=0)
        fvu = ((x_hat - batch.x) ** 2).sum() / ((batch.x - batch.x.mean(0)) ** 2).sum()
        part = lambda name: parts.get(name, torch.zeros(())).item()
        l0 = (z != 0).sum(1).double().mean().item()
        reports.append([part("mse"), part("aux"), part("sparsity"), fvu.item(), l0, dead.sum().item(), norm.item()])
        smallest.append(z[z > 0].min().item())
    # The comparison means something only with every part of the loss alive, dead latents, and gradients that are clipped.
    alive = torch.tensor(reports) > 0
    assert (alive[:, 1].sum() > 10) == ("aux" in parts) and (alive[:, 2].sum() > 10) == ("sparsity" in parts), recipe
    assert alive[:, 0].all() and sum(r[6] > CLIP for r in reports) > 10, (recipe, reports)
    print("{:20s} mse {:.4f} → {:.4f}  aux {:.5f}  sparsity {:.4f}  l0 {:.2f}  dead {:.0f}  |grad| {:.3f}".format(
        recipe, reports[0][0], *reports[-1][:3], *reports[-1][4:]))
    for value in ema.values():
        value /= 1 - EMA_DECAY**STEPS
    ema["W_dec"] /= row_norms(ema["W_dec"], layers(recipe))
    out = {"batches": batches.float(), "reports": torch.tensor(reports, dtype=F64), "smallest": torch.tensor(smallest, dtype=F64)}
    if "transcoder" in recipe:
        out["targets"] = targets.float()
    out |= {f"start.{name}": value.float() for name, value in first_weights.items()}
    out |= {f"end.{name}": value.detach() for name, value in weights.items()}
    out |= {f"ema.{name}": value for name, value in ema.items()}
    return out


def gradients(recipe: str, x: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss without AuxK and its gradients at the start, not divided by the variance."""
    weights = {name: value.clone().requires_grad_() for name, value in start(recipe).items()}
    loss = sum(RECIPES[recipe](Batch(x, weights, 1 / D))[2].values())
    loss.backward()
    return loss.item(), {name: value.grad for name, value in weights.items()}


def agree(what: str, ours: tuple, loss: float, theirs: dict[str, torch.Tensor]) -> None:
    assert abs(ours[0] - loss) < 1e-9 * abs(loss), (what, ours[0], loss)
    for name, value in theirs.items():
        gap = (ours[1][name] - value).norm() / value.norm()
        assert value.norm() > 0 and gap < 1e-9, (what, name, gap)
    print(f"{what}: loss and gradients agree")


def hold_against_dictionary_learning() -> None:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

    x, at = data(T, D, 1), start("matryoshka")
    common = {"steps": 9, "warmup_steps": 0, "activation_dim": D, "dict_size": N, "k": K, "layer": 0, "lm_name": "", "device": "cpu"}
    trainer = BatchTopKTrainer(**common)
    trainer.ae.double()
    with torch.no_grad():
        trainer.ae.encoder.weight.copy_(at["W_enc"]), trainer.ae.encoder.bias.copy_(at["b_enc"])
        trainer.ae.decoder.weight.copy_(at["W_dec"].T), trainer.ae.b_dec.copy_(at["b_dec"])
    loss = trainer.loss(x, step=0)
    loss.backward()
    theirs = {"W_enc": trainer.ae.encoder.weight.grad, "b_enc": trainer.ae.encoder.bias.grad}
    theirs |= {"W_dec": trainer.ae.decoder.weight.grad.T, "b_dec": trainer.ae.b_dec.grad}
    agree("dictionary_learning's BatchTopK", gradients("batch_top_k", x), loss.item(), theirs)

    sizes = [b - a for a, b in zip([0, *PREFIXES], PREFIXES)]
    trainer = MatryoshkaBatchTopKTrainer(
        **common, group_fractions=[size / N for size in sizes], group_weights=[len(sizes) * w for w in PREFIX_WEIGHTS]
    )  # its loss is the mean over groups, ours the sum
    trainer.ae.double()
    with torch.no_grad():
        trainer.ae.W_enc.copy_(at["W_enc"].T), trainer.ae.b_enc.copy_(at["b_enc"])
        trainer.ae.W_dec.copy_(at["W_dec"]), trainer.ae.b_dec.copy_(at["b_dec"])
    loss = trainer.loss(x, step=0)
    loss.backward()
    theirs = {"W_enc": trainer.ae.W_enc.grad.T, "b_enc": trainer.ae.b_enc.grad}
    theirs |= {"W_dec": trainer.ae.W_dec.grad, "b_dec": trainer.ae.b_dec.grad}
    agree("dictionary_learning's Matryoshka", gradients("matryoshka", x), loss.item(), theirs)

    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate

    common.pop("k")
    for recipe, trainer in [
        ("relu", StandardTrainerAprilUpdate(**common, sparsity_warmup_steps=None, l1_penalty=L1)),
        ("gated", GatedSAETrainer(**common, sparsity_warmup_steps=None, l1_penalty=GATE_L1)),
    ]:
        ae, at = trainer.ae.double(), start(recipe)
        ours = {"W_enc": ae.encoder.weight, "W_dec": ae.decoder.weight}
        if recipe == "relu":
            ours |= {"b_enc": ae.encoder.bias, "b_dec": ae.bias}
        else:
            ours |= {"b_enc": ae.mag_bias, "b_gate": ae.gate_bias, "r_mag": ae.r_mag, "b_dec": ae.decoder_bias}
        turned = lambda name, value: value.T if name == "W_dec" else value
        with torch.no_grad():
            for name, value in ours.items():
                value.copy_(turned(name, at[name]))
        loss = trainer.loss(x, step=0)
        loss.backward()
        theirs = {name: turned(name, value.grad) for name, value in ours.items()}
        agree(f"dictionary_learning's {type(trainer).__name__}", gradients(recipe, x), loss.item(), theirs)


def hold_against_sparsify() -> None:
    """Its gradients reach the decoder alone, whatever the loss."""
    import sparsify.sparse_coder
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.utils import eager_decode

    sparsify.sparse_coder.decoder_impl = eager_decode  # its own, for machines without a GPU
    x, at = data(T, D, 1), start("multi_top_k")
    coder = SparseCoder(D, SparseCoderConfig(num_latents=N, k=K, multi_topk=True), dtype=F64)
    with torch.no_grad():
        coder.encoder.weight.copy_(at["W_enc"]), coder.encoder.bias.copy_(at["b_enc"])
        coder.W_dec.copy_(at["W_dec"]), coder.b_dec.copy_(at["b_dec"])
    out = coder(x)
    loss = (out.fvu + out.multi_topk_fvu / 8) * ((x - x.mean(0)) ** 2).sum() / T
    loss.backward()
    agree("sparsify's Multi-TopK", gradients("multi_top_k", x), loss.item(), {"W_dec": coder.W_dec.grad})

    at, y = start("skip_transcoder"), target(x)
    coder = SparseCoder(D, SparseCoderConfig(num_latents=N, k=N, skip_connection=True, transcode=True), dtype=F64)
    # It knows one width only: what goes beyond is left out here.
    with torch.no_grad():
        coder.encoder.weight.copy_(at["W_enc"]), coder.encoder.bias.copy_(at["b_enc"])
        coder.W_dec = torch.nn.Parameter(at["W_dec"][:, :D].clone())
        coder.b_dec.copy_(at["b_dec"][:D]), coder.W_skip.copy_(at["W_skip"][:D])
    loss = coder(x, y[:, :D]).fvu * ((y - y.mean(0))[:, :D] ** 2).sum() / T
    loss.backward()
    w = {name: value.clone().requires_grad_() for name, value in at.items()}
    b = Batch(x, w, 1 / D, y=y)
    (((b.decode(torch.relu(b.h)) - y)[:, :D] ** 2).sum() / T).backward()
    for name, theirs in [("W_skip", coder.W_skip.grad), ("b_dec", coder.b_dec.grad)]:
        ours = w[name].grad[:D]
        assert (ours - theirs).norm() < 1e-9 * theirs.norm(), name
    print("sparsify's skip transcoder: gradients agree")


def hold_against_saelens() -> None:
    from sae_lens.saes.abstopk_sae import AbsTopK

    h = Batch(data(T, D, 1), start("abs_top_k"), 1).h
    assert torch.equal(AbsTopK(K)(h), keep(h, K, h.abs()))

    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    x = data(T, D, 1)
    for recipe, mode in [("jump_relu", "step"), ("jump_relu_tanh", "tanh"), ("jump_relu_quadratic", "quadratic")]:
        config = JumpReLUTrainingSAEConfig(
            d_in=D, d_sae=N, dtype="float64", device="cpu", jumprelu_bandwidth=BANDWIDTH, jumprelu_sparsity_loss_mode=mode,
            l0_coefficient=L0, target_l0=TARGET_L0, jumprelu_tanh_scale=TANH_SCALE, apply_b_dec_to_input=True,
        )
        sae, at = JumpReLUTrainingSAE(config), start(recipe)
        sae.threshold = torch.nn.Parameter(sae.threshold.data.double())
        turned = lambda name, value: value.T if name == "W_enc" else value
        with torch.no_grad():
            for name, value in at.items():
                getattr(sae, name).copy_(turned(name, value))
        step = TrainStepInput(sae_in=x, coefficients={"l0": L0}, dead_neuron_mask=None, n_training_steps=1, is_logging_step=False)
        loss = sae.training_forward_pass(step).loss
        loss.backward()
        theirs = {name: turned(name, getattr(sae, name).grad) for name in at}
        agree(f"SAELens's JumpReLU, {mode}", gradients(recipe, x), loss.item(), theirs)


if __name__ == "__main__":
    hold_against_dictionary_learning()
    hold_against_sparsify()
    hold_against_saelens()
    out = Path(__file__).parent / "training_recipes"
    out.mkdir(exist_ok=True)
    for recipe in RECIPES:
        if recipe != "top_k":  # make_training.py's
            save_file(train(recipe), out / f"{recipe}.safetensors")
