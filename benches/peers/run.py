"""Our operations beside PyTorch's, in one process: encode with top-k, decode, and a training step, as ratios.

Each pair is timed by turns, so that whatever else the machine does hits both; the ratio is of the medians. Above 1 means
that libsae is faster.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import embedding_bag, linear, normalize

from libsae import Library

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {"small": (576, 4608, 32), "medium": (768, 32768, 32), "large": (2304, 65536, 64)}
TOKENS = (1, 16, 256)
TRAINING_TOKENS = 512


def by_turns(ours, theirs, seconds):
    """Median times of functions that take turns; each runs at least five times."""
    ours(), theirs()
    times = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for function, taken in zip((ours, theirs), times):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return tuple(map(statistics.median, times))


class Case:
    """One SAE, in both libraries."""

    def __init__(self, sae, shape, threads):
        self.d, self.n, self.k = shape
        self.lib = sae
        torch.manual_seed(0)
        self.w_dec = normalize(torch.randn(self.n, self.d), dim=1)
        self.w_enc = self.w_dec.clone()
        self.b_enc = torch.zeros(self.n)
        self.b_dec = torch.randn(self.d) / 10
        self.pool = sae.make("sae_pool_create", "sae_pool", threads)
        self.model = self.load()
        options = sae.options("sae_session_options", max_tokens=max(TOKENS), max_width=self.k, pool=self.pool)
        self.session = sae.make("sae_session_create", "sae_session", self.model, options)

    def load(self):
        config = {
            "architecture": "topk", "k": self.k, "d_in": self.d, "d_sae": self.n, "dtype": "float32",
            "apply_b_dec_to_input": True, "normalize_activations": "none", "rescale_acts_by_decoder_norm": False,
            "reshape_activations": "none", "metadata": {"sae_lens_version": "6.0.0"},
        }
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            (folder / "cfg.json").write_text(json.dumps(config))
            tensors = {"W_enc": self.w_enc.T.contiguous(), "W_dec": self.w_dec, "b_enc": self.b_enc, "b_dec": self.b_dec}
            save_file(tensors, folder / "sae_weights.safetensors")
            return self.lib.make("sae_model_load", "sae_model", str(folder).encode(), self.lib.ffi.NULL)

    def features(self, rows):
        values = torch.zeros(rows, self.k)
        indices = torch.zeros(rows, self.k, dtype=torch.int32)
        counts = torch.zeros(rows, dtype=torch.int32)
        struct = self.lib.options("sae_features")
        for name, value in (("values", values), ("indices", indices), ("counts", counts)):
            setattr(struct, name, self.lib.tensor(value)[0])  # the view's shape is kept alive by the library
        return struct, values, indices

    def encode(self, rows, dtype):
        """Theirs in `dtype`, ours always f32 weights and the exact result."""
        null = self.lib.ffi.NULL
        x = torch.randn(rows, self.d)
        x_view, (out, values, indices) = self.lib.tensor(x), self.features(rows)
        w_enc, b_enc, b_dec = (t.to(dtype) for t in (self.w_enc, self.b_enc, self.b_dec))

        def ours():
            self.lib.call("sae_encode", self.session, null, x_view, null, out)

        def theirs():
            return torch.topk(linear(x.to(dtype) - b_dec, w_enc, b_enc), self.k, sorted=False)

        ours()
        if dtype == torch.float32:
            found, expected = values.sort(descending=True).values, theirs().values.sort(descending=True).values.relu()
            assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4), "the two disagree"
        return ours, theirs

    def decode(self, rows):
        null = self.lib.ffi.NULL
        x = torch.randn(rows, self.d)
        out, values, indices = self.features(rows)
        self.lib.call("sae_encode", self.session, null, self.lib.tensor(x), null, out)
        x_hat = torch.zeros(rows, self.d)
        x_hat_view = self.lib.tensor(x_hat)
        long = indices.long().clamp_min(0)

        def ours():
            self.lib.call("sae_decode", self.session, null, out, null, x_hat_view)

        def theirs():
            return embedding_bag(long, self.w_dec, per_sample_weights=values, mode="sum") + self.b_dec

        ours()
        assert torch.allclose(x_hat, theirs(), rtol=1e-3, atol=1e-4), "the two disagree"
        return ours, theirs

    def train_step(self):
        """A whole step of each: forward, sparse or dense backward, projection, clipping, Adam, renormalisation, EMA."""
        null = self.lib.ffi.NULL
        x = torch.randn(TRAINING_TOKENS, self.d)
        options = self.lib.options(
            "sae_train_options", d=self.d, n_latents=self.n, k=self.k, learning_rate=1e-4, clip_norm=1.0,
            max_batch_tokens=TRAINING_TOKENS, pool=self.pool,
        )
        trainer = self.lib.make("sae_trainer_create", "sae_trainer", options)
        x_view = self.lib.tensor(x)
        self.lib.call("sae_trainer_init_from", trainer, x_view)
        batch = self.lib.options("sae_train_batch", x=x_view)
        stats = self.lib.options("sae_train_stats")

        def ours():
            self.lib.call("sae_train_step", trainer, null, batch, stats)

        weights = [t.clone().requires_grad_() for t in (self.w_enc, self.b_enc, self.w_dec, self.b_dec)]
        w_enc, b_enc, w_dec, b_dec = weights
        ema = [t.detach().clone() for t in weights]
        adam = torch.optim.Adam(weights, lr=1e-4, eps=6.25e-10)
        variance = ((x - x.mean(0)) ** 2).mean()

        def theirs():
            values, indices = torch.topk(linear(x - b_dec, w_enc, b_enc), self.k, sorted=False)
            x_hat = embedding_bag(indices, w_dec, per_sample_weights=values.relu(), mode="sum") + b_dec
            adam.zero_grad()
            (((x_hat - x) ** 2).mean() / variance).backward()
            with torch.no_grad():
                w_dec.grad -= (w_dec.grad * w_dec).sum(1, keepdim=True) * w_dec
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                torch._foreach_lerp_(ema, [w.detach() for w in weights], 0.001)
                adam.step()
                w_dec.div_(w_dec.norm(dim=1, keepdim=True))

        return ours, theirs


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", required=True)
    parser.add_argument("--shapes", default="small,medium", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3, help="for each pair")
    parser.add_argument("--out", type=Path, help="where to keep the figures, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sae = Library(str(ROOT / "include/sae.h"), arguments.library)
    rows = []

    def measure(shape, operation, peer, pair):
        ours, theirs = by_turns(*pair, arguments.seconds)
        rows.append({
            "shape": shape, "operation": operation, "peer": peer, "libsae_ms": ours * 1e3, "torch_ms": theirs * 1e3,
            "ratio": theirs / ours,
        })
        print(f"{str(shape):>18}  {operation:<24}{peer:<28}{ours * 1e3:>10.3f}{theirs * 1e3:>10.3f}{theirs / ours:>8.2f}", flush=True)

    print(f"{'(d, n, k)':>18}  {'operation':<24}{'beside':<28}{'libsae ms':>10}{'torch ms':>10}{'ratio':>8}")
    for name in arguments.shapes.split(","):
        shape = SHAPES[name]
        case = Case(sae, shape, arguments.threads)
        for tokens in TOKENS:
            for dtype, label in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
                measure(shape, f"encode, {tokens} tokens", f"linear + topk {label}", case.encode(tokens, dtype))
        measure(shape, f"decode, {max(TOKENS)} tokens", "embedding_bag f32", case.decode(max(TOKENS)))
        measure(shape, f"train step, {TRAINING_TOKENS} tokens", "eager, sparse decode", case.train_step())
    if arguments.out:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        cpu = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        arguments.out.write_text(json.dumps({
            "date": str(date.today()), "commit": commit.stdout.strip(), "command": " ".join(sys.argv),
            "machine": f"{cpu[0] if cpu else platform.machine()}, {arguments.threads} threads",
            "torch": torch.__version__, "rows": rows,
        }, indent=1) + "\n")


if __name__ == "__main__":
    main()
