"""What a call costs from Python beside C, in one process, on the same session and memory, by turns: `overhead.py [--keep FILE]`.

The SAE is as small as can be (d = 8, 16 latents, one token), so that the call is what is measured. The least of many rounds."""

import argparse
import ctypes
import json
import platform
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import libsae
import libsae.torch
from libsae import _arrays
from libsae._library import lib

ROUNDS, CALLS = 20, 3000


def c_loop():
    folder = tempfile.mkdtemp()
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", Path(__file__).with_name("loop.c"), "-o", f"{folder}/loop.so"], check=True)
    loop = ctypes.CDLL(f"{folder}/loop.so").loop
    loop.restype, loop.argtypes = ctypes.c_double, [ctypes.c_void_p, ctypes.c_int64] + [ctypes.c_void_p] * 5
    return loop


def contestants():
    w = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    session = libsae.Model.from_weights({"W_enc": w, "W_dec": w.copy()}, architecture=libsae.Architecture.TOP_K, k=2).session()
    x = np.ones((1, 8), np.float32)
    out, x_hat = libsae.Features.empty(1, 2), np.zeros((1, 8), np.float32)
    t, t_hat = torch.from_numpy(x.copy()), torch.zeros(1, 8)
    t_out = libsae.Features.empty(1, 2, like=t)
    known = libsae.torch.number(session)
    parts = (t_out.values, t_out.indices, t_out.counts, torch.zeros(1, 0))
    view, (given, keep), (into, keep2) = out._struct("out", write=True, stream=None), _arrays.borrow("x", x), _arrays.borrow("x_hat", x_hat)
    handle, loop = session._handle._as_parameter_, c_loop()
    steering = ctypes.addressof(session._steering)

    def c(function, *arguments):
        address = ctypes.cast(function, ctypes.c_void_p).value

        def run(n):
            seconds = loop(address, n, handle, None, *arguments)
            assert seconds >= 0 and keep and keep2
            return seconds

        return run

    def python(call):
        def run(n):
            start = time.perf_counter()
            for _ in range(n):
                call()
            return time.perf_counter() - start

        return run

    ops = torch.ops.libsae
    return {
        "encode": {
            "C": c(lib.sae_encode, given, None, view.address),
            "numpy, out given": python(lambda: session.encode(x, out=out)),
            "numpy, new arrays": python(lambda: session.encode(x)),
            "torch, out given": python(lambda: session.encode(t, out=t_out)),
            "torch, new tensors": python(lambda: session.encode(t)),
            "torch operator, out given": python(lambda: ops.encode_out(t, None, known, *parts)),
        },
        "decode": {
            "C": c(lib.sae_decode, view.address, None, into),
            "numpy, out given": python(lambda: session.decode(out, out=x_hat)),
            "torch, out given": python(lambda: session.decode(t_out, out=t_hat)),
            "torch operator, out given": python(lambda: ops.decode_out(*parts, None, known, t_hat)),
        },
        "steer": {
            "C": c(lib.sae_steer, given, None, steering),
            "numpy, in place": python(lambda: session.steer_(x)),
            "torch, in place": python(lambda: session.steer_(t)),
            "torch operator, in place": python(lambda: ops.steer_(t, None, None, known)),
        },
    }


def measure(operation):
    best = dict.fromkeys(operation, float("inf"))
    for _ in range(ROUNDS):
        for name, run in operation.items():
            best[name] = min(best[name], run(CALLS) / CALLS * 1e9)
    return {name: round(ns) for name, ns in best.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", type=Path)
    keep = parser.parse_args().keep
    with torch.no_grad():
        found = {name: measure(operation) for name, operation in contestants().items()}
    for name, times in found.items():
        for who, ns in times.items():
            print(f"{name:8} {who:28} {ns:7} ns" + ("" if who == "C" else f", {ns - times['C']} more than C"))
    if keep:
        kept = json.loads(keep.read_text()) if keep.exists() else {}
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        kept["python"] = {
            "date": time.strftime("%Y-%m-%d"), "commit": commit, "command": "make -C bindings/python bench KEEP=1",
            "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__}, "unit": "ns per call",
            **found,
        }
        keep.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
