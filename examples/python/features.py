"""Encodes activations of a real language model, decodes and steers them, and says whether the bits are those expected:

    python features.py examples/data
"""

import sys
from pathlib import Path

import numpy as np

import libsae

folder = Path(sys.argv[1])
x = np.load(folder / "activations.npy")  # [tokens, d], as an engine has them
session = libsae.Model.load(folder / "sae.safetensors").session()

features = session.encode(x)
print("token 0:", ", ".join(f"latent {latent} {value:.2f}" for latent, value in features.row(0)[:4]), "…")
found = {"indices.i32": features.indices, "values.f32": features.values, "counts.i32": features.counts}
found["x_hat.f32"] = session.decode(features)

raw = np.fromfile(folder / "expected" / "edits.raw", "<i4,<i4,<f4,<f4,<u4,3<u4")
session.set_edits(0, [libsae.Edit(int(f), int(op), float(strength), float(limit), bool(flags)) for f, op, strength, limit, flags, _ in raw])
found["steered.f32"] = session.steer(x)

different = [name for name, array in found.items() if array.tobytes() != (folder / "expected" / name).read_bytes()]
print("the expected bits" if not different else f"not the expected bits: {', '.join(different)}")
sys.exit(bool(different))
