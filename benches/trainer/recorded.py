"""libsae's trainer beside a plain PyTorch one, on the same recorded activations in the same order.

    python recorded.py --recording DIR --trainer PATH [--out DIR] [--seeds 3] [--threads 2]

DIR holds `training.npy` and `held_out.npy`, [rows, d] float16, from different documents. PATH is the program made by
`cargo build --release --example train_recorded`. Each trainer runs with every seed for one pass and for four; what they
made is judged by the same code (evaluate.py) on the held-out activations. Needs numpy, torch and safetensors.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import numpy as np
import torch
from safetensors.torch import load_file

import draw
import evaluate
import plain_torch

K, LATENTS, PASSES, BATCH, CLIP = 32, 4608, (1, 4), 512, 1.0
LEARNING_RATE, WARMUP_STEPS, DECAY_FRACTION = 3e-3, 20, 0.3


def options(d, total_tokens, seed):
    """What both trainers are given; the rest is at its default."""
    return {
        "d": d,
        "n_latents": LATENTS,
        "k": K,
        "k_aux": d // 2,
        "learning_rate": LEARNING_RATE,
        "warmup_steps": WARMUP_STEPS,
        "total_tokens": total_tokens,
        "decay_fraction": DECAY_FRACTION,
        "clip_norm": CLIP,
        "seed": seed,
    }


def train_libsae(program, recording, order, chosen, threads, folder):
    order.astype("<u4").tofile(folder / "order.u32")
    job = {
        "activations": str(recording),
        "order": str(folder / "order.u32"),
        "batch": BATCH,
        "threads": threads,
        "options": chosen,
        "weights": str(folder / "weights.safetensors"),
        "ema": str(folder / "ema.safetensors"),
    }
    (folder / "job.json").write_text(json.dumps(job))
    subprocess.run([program, folder / "job.json"], check=True)
    return load_file(folder / "weights.safetensors"), load_file(folder / "ema.safetensors")


def save(results, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (folder / "trainer.svg").write_text(draw.svg(results))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", type=pathlib.Path, required=True)
    parser.add_argument("--trainer", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent.parent / "results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    training = torch.from_numpy(np.load(arguments.recording / "training.npy"))
    held_out = torch.from_numpy(np.load(arguments.recording / "held_out.npy")).float()
    rows, d = training.shape
    results = {
        "tokens": rows,
        "held_out_tokens": len(held_out),
        "k": K,
        "passes": PASSES,
        "batch": BATCH,
        "options": options(d, "rows x passes", "0, 1, …"),
        "threads": arguments.threads,
        "pca_fvu": evaluate.pca(training, held_out, K),
        "runs": [],
    }
    print(f"{rows} tokens, {len(held_out)} held out; PCA of rank {K}: FVU {results['pca_fvu']:.4f}")
    print(f"{'trainer':14} passes seed  FVU     FVU (EMA)  L0     never fires")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        training.numpy().astype("<f2").tofile(folder / "training.f16")
        for passes in PASSES:
            for seed in range(arguments.seeds):
                shuffle = np.random.default_rng(seed)
                order = np.concatenate([shuffle.permutation(rows) for _ in range(passes)])
                chosen = options(d, rows * passes, seed)
                for trainer in draw.COLOURS:
                    if trainer == "libsae":
                        made = train_libsae(
                            arguments.trainer, folder / "training.f16", order, chosen, arguments.threads, folder
                        )
                    else:
                        made = plain_torch.train(training, torch.from_numpy(order), BATCH, chosen)
                    weights, ema = (evaluate.sae(one, held_out, K) for one in made)
                    run = {"trainer": trainer, "passes": passes, "seed": seed}
                    results["runs"].append(run | weights | {"fvu_of_ema": ema["fvu"]})
                    print(
                        f"{trainer:14} {passes:6} {seed:4}  {weights['fvu']:.4f}  {ema['fvu']:.4f}     "
                        f"{weights['l0']:.2f}  {weights['never_fires']:9.2%}",
                        flush=True,
                    )
                    save(results, arguments.out)
    print()
    for passes in PASSES:
        ours, theirs = (
            np.mean([r["fvu"] for r in results["runs"] if (r["passes"], r["trainer"]) == (passes, trainer)])
            for trainer in draw.COLOURS
        )
        verdict = "as good" if ours <= theirs + 0.005 else "WORSE"
        print(f"{passes} pass(es): libsae {ours:.4f}, plain PyTorch {theirs:.4f}: {ours - theirs:+.4f}, {verdict}")


if __name__ == "__main__":
    main()
