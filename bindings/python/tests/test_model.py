"""Models: made, saved, loaded, read, remade, and refused."""

import gc
import sys

import numpy as np
import pytest

import libsae
from conftest import D, K, N, activations, make, weights


def test_what_is_saved_is_loaded(tmp_path, model):
    path = tmp_path / "sae.safetensors"
    model.save(path)
    again = libsae.Model.load(path)
    info = again.info
    assert (info.architecture, info.d_in, info.n_latents, info.k, info.format) == (libsae.Architecture.TOP_K, D, N, K, "native")
    x = activations()
    assert np.array_equal(again.session().encode(x).values, model.session().encode(x).values)
    assert libsae.Model.load(str(path).encode()).info == info
    assert libsae.Model.memory(path).resident == info.bytes
    half = libsae.Model.load(path, dtype="bf16", map=False)
    assert half.info.dtype == "bfloat16" and libsae.Model.load(path, map=True).info.dtype == "float32"
    model.save(tmp_path / "lens", format="saelens")
    assert libsae.Model.load(tmp_path / "lens").info.format == "saelens"


def test_conventions_are_kept(tmp_path):
    convention = libsae.Convention(
        model_name="gpt2", hook_point="blocks.8.hook_resid_post", excluded_positions=[0, 3], context_size=64, prepend_bos=False)
    made = make(convention=convention)
    made.save(tmp_path / "a.safetensors")
    info = libsae.Model.load(tmp_path / "a.safetensors").info
    assert (info.model_name, info.hook_point_hugging_face, info.hook_point_ggml) == ("gpt2", "transformer.h.8", "l_out-8")
    assert (info.excluded_positions, info.context_size, info.prepend_bos, info.folded_layer_norm) == ((0, 3), 64, False, None)
    changed = libsae.Model.load(tmp_path / "a.safetensors", convention={"prepend_bos": True}).info
    assert changed.prepend_bos is True and changed.model_name == "gpt2"


def test_weights_are_read_as_given():
    w = weights()
    model = make()
    for name, given in w.items():
        assert np.array_equal(model.read(name), given)
    assert np.array_equal(model.read("W_dec", 7, 3), w["W_dec"][7:10])
    assert model.read("W_dec", 7, 3, dtype="float16").dtype == np.float16
    skip = make("skip")
    assert skip.read("W_skip").shape == (D, D)


def test_borrowed_weights_live_as_long_as_they_are_used():
    w = weights()
    counts = {name: sys.getrefcount(w[name]) for name in ("W_enc", "W_dec")}
    model = libsae.Model.from_weights(w, architecture=libsae.Architecture.TOP_K, k=K, borrow_matrices=True)
    session = model.session()
    x = activations()
    before = session.encode(x).values
    model.close()
    assert all(sys.getrefcount(w[name]) > count for name, count in counts.items())
    assert np.array_equal(session.encode(x).values, before)
    session.close()
    gc.collect()
    assert {name: sys.getrefcount(w[name]) for name in counts} == counts


def test_models_made_of_models(model):
    x = activations(200)
    features = model.session().encode(x)
    assert model.with_k(2).info.k == 2
    assert np.array_equal(model.with_k(2).session().encode(x).values, features.values[:, :2])
    assert model.subset(range(3, 11)).info.n_latents == 8 and model.prefix(16).info.n_latents == 16
    assert np.array_equal(model.with_k(2).subset([3, 1]).read("W_enc"), weights()["W_enc"][[3, 1]])
    threshold = model.with_threshold(x)
    assert threshold.info.architecture == libsae.Architecture.JUMP_RELU
    assert abs(threshold.session().encode(x).counts.mean() - K) < 0.5
    scaled = model.fold_activation_scale(2.0)
    assert np.allclose(scaled.session().encode(x / 2).values, features.values, atol=1e-5)
    with pytest.raises(libsae.Error, match="RESCALES|norm|winners|win"):
        model.fold_decoder_norms()
    assert np.allclose(np.linalg.norm(make("relu").fold_decoder_norms().read("W_dec"), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("call, error, words", [
    (lambda: libsae.Model.load("/nowhere/sae.safetensors"), libsae.FileError, "/nowhere/sae.safetensors"),
    (lambda: libsae.Model.load("sae.safetensors\0.txt"), libsae.InvalidArgument, "NUL"),
    (lambda: libsae.Model.load(__file__), libsae.Error, "test_model.py"),
    (lambda: libsae.Model.load("/nowhere", colour="red"), TypeError, "colour"),
    (lambda: libsae.Model.load("/nowhere", dtype="int8"), libsae.InvalidArgument, "int8"),
    (lambda: libsae.Model.load("/nowhere", device="tpu"), libsae.InvalidArgument, "tpu"),
    (lambda: make(k=-1), libsae.InvalidArgument, "k"),
    (lambda: make(device="cuda:0"), libsae.NoDevice, "."),
    (lambda: make().with_k("three"), libsae.InvalidArgument, "argument"),
    (lambda: make().read("W_up"), libsae.InvalidArgument, "W_up"),
    (lambda: make().read("W_dec", 40, 30), libsae.InvalidArgument, "first"),
    (lambda: libsae.Model.from_weights({"W_enc": weights()["W_enc"]}, architecture=1, k=3), libsae.InvalidArgument, "W_dec"),
    (lambda: libsae.Model.from_weights({**weights(), "W_enc": weights()["W_enc"].T}, architecture=1, k=3), libsae.Error, "W_enc|W_dec|stride"),
    (lambda: libsae.Model.from_weights({**weights(), "b_enc": np.full(N, np.nan, np.float32)}, architecture=1, k=3), libsae.NotFinite, "b_enc"),
    (lambda: libsae.Model(), TypeError, "load"),
])
def test_what_is_wrong_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_closed_things_say_so(model):
    session = model.session()
    session.close()
    session.close()
    with pytest.raises(libsae.BadState, match="closed"):
        session.encode(activations())
    with model as m:
        m.info
    with pytest.raises(libsae.BadState, match="closed"):
        model.save("/nowhere")
    pool = libsae.Pool(2)
    assert pool.threads == 2
    pool.close()
    with pytest.raises(libsae.BadState):
        pool.threads


def test_formats_and_versions():
    assert libsae.formats()["saelens"] and not libsae.formats()["gemma_scope"]
    assert libsae.__version__ == libsae.version() and "scalar" in libsae.kernels()
