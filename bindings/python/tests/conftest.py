"""Small models of every kind, and activations for them."""

import numpy as np
import pytest

import libsae

N, D, K = 48, 20, 5


def weights(n=N, d=D, seed=0):
    random = np.random.default_rng(seed)
    w_enc, w_dec = (random.standard_normal((n, d)).astype(np.float32) for _ in range(2))
    return {"W_enc": w_enc, "W_dec": w_dec / 3, "b_enc": random.standard_normal(n).astype(np.float32) / 9,
            "b_dec": random.standard_normal(d).astype(np.float32) / 5}


def make(kind="top_k", **options):
    w = weights()
    if kind == "jump_relu":
        w["threshold"] = np.full(N, 0.7, np.float32)
    if kind == "transcoder":
        w["W_dec"], w["b_dec"] = w["W_dec"][:, :12].copy(), w["b_dec"][:12].copy()
        options.setdefault("flags", libsae.ModelFlags.KEEPS_B_DEC)
    if kind == "skip":
        w["W_skip"] = np.random.default_rng(9).standard_normal((D, D)).astype(np.float32)
    architecture = {"jump_relu": libsae.Architecture.JUMP_RELU, "relu": libsae.Architecture.RELU}.get(kind, libsae.Architecture.TOP_K)
    if architecture == libsae.Architecture.TOP_K:
        options.setdefault("k", K)
    return libsae.Model.from_weights(w, architecture=architecture, **options)


def activations(tokens=9, d=D, seed=1):
    return np.random.default_rng(seed).standard_normal((tokens, d)).astype(np.float32)


@pytest.fixture
def model():
    return make()


@pytest.fixture
def session(model):
    return model.session(slots=4)


@pytest.fixture
def x():
    return activations()
