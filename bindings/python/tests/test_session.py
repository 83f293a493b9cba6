"""Sessions against the definition in numpy, and against themselves: other memory, other types, other orders, other threads."""

import numpy as np
import pytest
import torch
from ml_dtypes import bfloat16

import libsae
from conftest import D, K, N, activations, make, weights
from exporter import Exporter
from libsae import Edit


def scores(x, w=None):
    w = w or weights()
    return (x.astype(np.float64) - w["b_dec"]) @ w["W_enc"].T.astype(np.float64) + w["b_enc"]


def test_encode_is_what_the_definition_says(session, x):
    z = scores(x)
    order = np.argsort(-z, axis=1)[:, :K]
    best = np.take_along_axis(z, order, 1)
    features = session.encode(x)
    positive = best > 0
    assert np.array_equal(features.counts, positive.sum(1))
    assert np.array_equal(features.indices, np.where(positive, order, -1))
    assert np.allclose(features.values, np.where(positive, best, 0), atol=1e-5)
    assert features.row(0) == [(int(i), float(v)) for i, v in zip(features.indices[0], features.values[0]) if i >= 0]
    assert [len(row) for row in features] == list(features.counts) and len(features) == len(x)


def test_dense_selected_decode_and_reconstruct_agree(session, x):
    features = session.encode(x)
    dense = session.encode_dense(x)
    assert np.array_equal(features.dense(N), dense)
    assert np.allclose(session.encode_dense(x, pre_activations=True), scores(x), atol=1e-5)
    assert np.array_equal(session.encode_selected(x, range(5, 25)), dense[:, 5:25])
    w = weights()
    x_hat = session.decode(features)
    assert np.allclose(x_hat, dense @ w["W_dec"] + w["b_dec"], atol=1e-5)
    both = libsae.Features.empty(len(x), K)
    assert np.array_equal(session.reconstruct(x, features=both), x_hat) and np.array_equal(both.indices, features.indices)
    assert np.array_equal(session.encode(x, width=2).indices, features.indices[:, :2])
    by_index = session.encode(x, flags=libsae.Run.ORDER_INDEX)
    assert np.array_equal(by_index.dense(N), dense) and all(list(r) == sorted(r) for r in by_index.indices)


@pytest.mark.parametrize("kind", ["top_k", "jump_relu", "relu"])
def test_every_memory_gives_the_same_bits(kind, x):
    session = make(kind).session(max_width=N)
    expected = session.encode(x)
    wide = np.zeros((len(x), D + 7), np.float32)
    wide[:, 3:3 + D] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    tensor = torch.from_numpy(x.copy())
    for given in (wide[:, 3:3 + D], frozen, tensor, torch.from_numpy(wide)[:, 3:3 + D], tensor.expand(len(x), D), Exporter(x), Exporter(x, versioned=True)):
        found = session.encode(given)
        for field in ("values", "indices", "counts"):
            assert np.array_equal(np.asarray(getattr(found, field)), getattr(expected, field)), (type(given), field)
        assert torch.is_tensor(found.values) == torch.is_tensor(given)
        assert np.array_equal(np.asarray(session.decode(found)), session.decode(expected))


def test_sixteen_bits(session, x):
    halves = x.astype(np.float16)
    assert np.array_equal(session.encode(halves).values, session.encode(halves.astype(np.float32)).values)
    ours, theirs = x.astype(bfloat16), torch.from_numpy(x).bfloat16()
    expected = session.encode(theirs.float().numpy())
    for given in (ours, theirs):
        assert np.array_equal(np.asarray(session.encode(given).values), expected.values)
    steered = session.reconstruct(theirs)
    assert steered.dtype == torch.bfloat16 and session.reconstruct(ours).dtype == bfloat16
    assert np.array_equal(session.reconstruct(ours).astype(np.float32), steered.float().numpy())
    out = torch.empty(len(x), D, dtype=torch.bfloat16)
    assert session.decode(session.encode(theirs), out=out) is out


def test_addends_are_added(session, x):
    a, b = x.astype(np.float16), activations(seed=5).astype(np.float16)
    assert np.array_equal(session.encode(a, b).values, session.encode(a.astype(np.float32) + b.astype(np.float32)).values)
    rounded = session.encode(a, b, flags=libsae.Run.ROUND_SUM)
    assert np.array_equal(rounded.values, session.encode(a + b).values)


def test_rows_that_are_not_finite(session, x):
    x[3, 2], x[5, 0] = np.inf, np.nan
    features = session.encode(x)
    assert list(np.flatnonzero(features.counts == -1)) == [3, 5] and features.row(3) == []
    x_hat = session.decode(features)
    assert np.isnan(x_hat[[3, 5]]).all() and np.isfinite(np.delete(x_hat, [3, 5], 0)).all()
    assert np.isnan(features.dense(N)[3]).all()


def test_no_tokens(session):
    none = np.zeros((0, D), np.float32)
    assert len(session.encode(none)) == 0 and session.reconstruct(none).shape == (0, D)


def test_steering_is_the_sum_of_its_edits(session, x):
    w = weights()
    features = session.encode(x)
    dense = features.dense(N)
    latent = int(features.indices[0, 0])
    session.set_edits(0, [Edit.add(2, 1.5), Edit.ablate(latent)])
    session.set_edits(2, [Edit.scale(latent, 3.0, limit=1.0)])
    slots = np.array([0, -1, 2, 0, -1, -1, 2, 2, 0], np.int32)
    delta = np.zeros((len(x), N), np.float32)
    delta[slots == 0, 2] += 1.5
    delta[slots == 0, latent] -= dense[slots == 0, latent]
    delta[slots == 2, latent] += np.clip(2 * dense[slots == 2, latent], -1, 1)
    expected = x + delta @ w["W_dec"]
    steered = session.steer(x, row_slot=slots)
    assert np.allclose(steered, expected, atol=1e-5) and np.array_equal(steered[slots < 0], x[slots < 0])
    assert np.array_equal(session.steer(x, row_slot=slots, known=features), steered)
    assert np.array_equal(session.steer(x, row_slot=slots.tolist()), steered)
    other = activations(seed=8)
    assert np.allclose(session.steer(x, row_slot=slots, y=other), other + delta @ w["W_dec"], atol=1e-5)
    assert np.allclose(session.steer(x / 2, x / 2, row_slot=slots), steered - x / 2, atol=1e-5)
    mine = x.copy()
    assert session.steer_(mine, row_slot=slots) is mine and np.array_equal(mine, steered)
    tensor = torch.from_numpy(x.copy())
    assert np.array_equal(session.steer_(tensor, row_slot=torch.from_numpy(slots)).numpy(), steered)
    session.set_edits(0, [])
    assert np.array_equal(session.steer(x), x)


def test_models_of_other_shapes(x):
    skip = make("skip").session()
    features = skip.encode(x)
    assert np.array_equal(skip.decode(features, x), skip.reconstruct(x))
    with pytest.raises(libsae.Error, match="skip"):
        skip.decode(features)
    transcoder = make("transcoder").session()
    assert transcoder.reconstruct(x).shape == (len(x), 12)
    normed = make(normalization=libsae.Normalization.LAYER_NORM, flags=libsae.ModelFlags.CENTERS).session()
    features = normed.encode(x)
    assert features.row_state.shape == (len(x), normed.info.row_state_width) and normed.info.row_state_width > 0
    assert np.array_equal(normed.decode(features), normed.reconstruct(x))


def test_crosscoders_have_layers():
    w = weights(d=2 * D)
    model = libsae.Model.from_weights(w, architecture=libsae.Architecture.TOP_K, k=K, layers_in=2, layers_out=2)
    x = activations(6, 2 * D).reshape(6, 2, D)
    session = model.session()
    assert session.reconstruct(x).shape == (6, 2, D)
    assert np.array_equal(session.decode(session.encode(x)), session.reconstruct(x))


def test_shards_make_the_whole(model, x):
    whole = model.session().encode(x)
    w = weights()
    parts = []
    for first in (0, 16, 32):
        part = {name: value if name == "b_dec" else value[first:first + 16] for name, value in w.items()}
        shard = libsae.Model.from_weights(part, architecture=libsae.Architecture.TOP_K, k=K, first_latent=first, shard_of=N)
        parts.append(shard.session().encode(x))
        assert np.array_equal(shard.read("W_enc"), part["W_enc"])
    merged = model.session().merge(parts)
    assert np.array_equal(merged.values, whole.values) and np.array_equal(merged.indices, whole.indices)


def test_features_of_other_hands(session, x):
    features = session.encode(x)
    bare = libsae.Features(features.values, features.indices)
    assert np.array_equal(bare.counts, features.counts) and np.array_equal(session.decode(bare), session.decode(features))
    with pytest.raises(AttributeError, match="values"):
        features.values = features.indices
    stray = libsae.Features(np.ones((1, 1), np.float32), np.array([[N + 3]], np.int32))
    assert np.array_equal(session.decode(stray)[0], weights()["b_dec"])
    with pytest.raises(libsae.InvalidArgument, match="out of range"):
        session.check()


@pytest.mark.parametrize("call, error, words", [
    (lambda s, x: s.encode(x.tolist()), TypeError, "__dlpack__.*list"),
    (lambda s, x: s.encode(x.astype(np.float64)), libsae.InvalidTensor, "^x: dtype"),
    (lambda s, x: s.encode(x.astype(">f4")), libsae.InvalidTensor, "^x: .*byte order"),
    (lambda s, x: s.encode(np.array([["a"]])), libsae.InvalidTensor, "^x: expected float32"),
    (lambda s, x: s.encode(x[:, :3]), libsae.InvalidTensor, "^x: .*20"),
    (lambda s, x: s.encode(x[:, ::-1]), libsae.InvalidTensor, "^x: .*stride"),
    (lambda s, x: s.encode(np.zeros((600, D), np.float32)), libsae.InvalidArgument, "600.*512|512.*600"),
    (lambda s, x: s.encode(x, x[:2]), libsae.InvalidTensor, "^addend"),
    (lambda s, x: s.encode(x, out=libsae.Features.empty(3, K)), libsae.InvalidTensor, "^out: features.values: expected shape"),
    (lambda s, x: s.encode(x, out=x), libsae.InvalidTensor, "^out: expected libsae.Features"),
    (lambda s, x: s.encode(x, width=N + 1), libsae.InvalidArgument, "width"),
    (lambda s, x: s.encode(x, flags=1 << 20), libsae.InvalidArgument, "flags"),
    (lambda s, x: s.encode(x, stream=7), libsae.Error, "stream"),
    (lambda s, x: s.encode(x, stream="s"), libsae.InvalidArgument, "stream"),
    (lambda s, x: s.decode(libsae.Features.empty(2, K), out=x), libsae.InvalidTensor, "x_hat"),
    (lambda s, x: s.encode(torch.from_numpy(x).requires_grad_()), libsae.InvalidTensor, "^x: requires a gradient"),
    (lambda s, x: s.encode(torch.from_numpy(x).to_sparse()), libsae.InvalidTensor, "^x: "),
    (lambda s, x: s.encode(torch.empty(2, D, device="meta")), libsae.InvalidTensor, "^x: "),
    (lambda s, x: s.encode(Exporter(x, device=2), out=libsae.Features.empty(9, K)), libsae.InvalidTensor, "^x: .*cuda"),
    (lambda s, x: s.encode(Exporter(x, device=2)), TypeError, "^out: .*must be given"),
    (lambda s, x: s.encode(Exporter(x, version=2, versioned=True)), libsae.InvalidTensor, "^x: .*2.0"),
    (lambda s, x: s.encode(Broken()), libsae.InvalidTensor, "^x: .*no unused DLPack capsule"),
    (lambda s, x: s.steer_(Exporter(x, versioned=True, read_only=True)), libsae.InvalidTensor, "^x: is read-only"),
    (lambda s, x: s.set_edits(9, [Edit.ablate(0)]), libsae.InvalidArgument, "slot"),
    (lambda s, x: s.set_edits(0, [Edit.ablate(N)]), libsae.InvalidArgument, "48"),
    (lambda s, x: s.steer(x, row_slot=np.zeros(len(x), np.int64)), libsae.InvalidTensor, "row_slot"),
    (lambda s, x: s.steer(x, row_slot=7), TypeError, "int"),
    (lambda s, x: s.merge([]), libsae.InvalidArgument, "parts"),
    (lambda s, x: s.model.session(max_tokens=-1), libsae.InvalidArgument, "max_tokens"),
    (lambda s, x: s.model.session(kernels="abacus"), libsae.Error, "abacus"),
])
def test_what_is_wrong_is_named(session, x, call, error, words):
    before = x.copy()
    with pytest.raises(error, match=words):
        call(session, x)
    assert np.array_equal(x, before) and session.encode(x) is not None  # it serves on


class Broken:
    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **_):
        return "a capsule"


def test_read_only_outputs_stay(session, x):
    out = np.zeros_like(x)
    out.flags.writeable = False
    with pytest.raises(libsae.InvalidTensor, match="^out: is read-only"):
        session.reconstruct(x, out=out)
    features = libsae.Features.empty(len(x), K)
    features.values.flags.writeable = False
    with pytest.raises(libsae.InvalidTensor, match=r"^out\.values: is read-only"):
        session.encode(x, out=features)
    with pytest.raises(libsae.InvalidTensor, match="^x: is read-only"):
        session.steer_(out)
    assert not out.any()


def test_threads_change_no_bit(model):
    x = activations(300)
    expected = model.session().encode(x)
    pool = libsae.Pool(3)
    for session in (model.session(threads=2), model.session(pool=pool), model.session(pool=pool, kernels="scalar")):
        assert np.array_equal(session.encode(x).values, expected.values)
    assert session.kernels == "scalar"


def test_producers_are_told_the_stream():
    from libsae import _arrays

    for given, told in ((None, 1), (1, 1), (4711, 4711)):
        exporter = Exporter(activations(), device=2)
        address, _keep = _arrays.borrow("x", exporter, stream=given)
        assert exporter.streams == [told] and address
    exporter = Exporter(activations())
    _arrays.borrow("x", exporter, stream=4711)
    assert exporter.streams == [None]  # the CPU has none


def test_stream_handles():
    from libsae.session import _stream

    class Torch:
        cuda_stream = 77

    class Protocol:
        def __cuda_stream__(self):
            return 0, 78

    assert [_stream(None, s) for s in (None, 0, 1, 76, Torch(), Protocol())] == [0, 0, 0, 76, 77, 78]
