"""The example's SAE and activations give the expected bits, in numpy's memory and in torch's."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import libsae

DATA = Path(__file__).parents[3] / "examples" / "data"


def expected(name, dtype, *shape):
    return np.fromfile(DATA / "expected" / name, dtype).reshape(shape)


@pytest.mark.parametrize("memory", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("options", [{}, {"threads": 2}, {"kernels": "scalar"}], ids=["default", "two threads", "scalar"])
def test_the_bits_are_the_expected_ones(memory, options):
    model = libsae.Model.load(DATA / "sae.safetensors")
    assert (model.info.d_in, model.info.k, model.info.dtype) == (576, 16, "bfloat16")
    session = model.session(**options)
    x = memory(np.load(DATA / "activations.npy"))
    features = session.encode(x)

    def same(found, name, dtype, *shape):
        assert np.asarray(found).tobytes() == expected(name, dtype, *shape).tobytes(), name

    same(features.indices, "indices.i32", np.int32, 32, 16)
    same(features.values, "values.f32", np.float32, 32, 16)
    same(features.counts, "counts.i32", np.int32, 32)
    same(session.decode(features), "x_hat.f32", np.float32, 32, 576)
    raw = expected("edits.raw", np.dtype("<i4,<i4,<f4,<f4,<u4,3<u4"), 4)
    session.set_edits(0, [libsae.Edit(int(f), int(op), float(s), float(limit), bool(flags)) for f, op, s, limit, flags, _ in raw])
    same(session.steer(x), "steered.f32", np.float32, 32, 576)


def test_rows_are_those_of_the_json():
    said = json.loads((DATA / "expected.json").read_text())
    features = libsae.Model.load(DATA / "sae.safetensors").session().encode(np.load(DATA / "activations.npy"))
    assert [[(int(i), float(np.float32(v))) for i, v in row] for row in said["features"]] == list(features)


def test_the_example_says_so(tmp_path):
    program = DATA.parent / "python" / "features.py"
    done = subprocess.run([sys.executable, program, DATA], capture_output=True, text=True)
    assert done.returncode == 0 and "the expected bits" in done.stdout, done.stdout + done.stderr
    shutil.copytree(DATA, tmp_path / "data")
    counts = np.fromfile(tmp_path / "data/expected/counts.i32", np.int32)
    (counts + 1).tofile(tmp_path / "data/expected/counts.i32")
    done = subprocess.run([sys.executable, program, tmp_path / "data"], capture_output=True, text=True)
    assert done.returncode == 1 and "not the expected bits: counts.i32" in done.stdout
