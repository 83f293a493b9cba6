"""The operators: torch's own checks, eager and compiled, gradients, and the module that SAELens's users know."""

import numpy as np
import pytest
import torch

import libsae
import libsae.torch as ours
from conftest import D, K, N, activations, make
from libsae import Edit

OPS = torch.ops.libsae
LAYER_NORM = dict(normalization=libsae.Normalization.LAYER_NORM)


@pytest.fixture
def x():
    return torch.from_numpy(activations())


@pytest.fixture
def session():
    """All that can be: a state of each row, a skip path, slots."""
    session = make("skip", **LAYER_NORM).session(slots=3)
    session.set_edits(0, [Edit.add(3, 2.0), Edit.scale(5, 0.5)])
    session.set_edits(2, [Edit.ablate(7)])
    return session


def test_opcheck(session, x):
    known = ours.number(session)
    slots = torch.tensor([0, -1, 2, 0, 0, 2, -1, -1, 0], dtype=torch.int32)
    sparse = OPS.encode(x, None, known)
    out = [torch.empty_like(t) for t in sparse]
    for op, arguments in (
        (OPS.encode, (x, None, known)), (OPS.encode, (x.bfloat16(), x.bfloat16(), known, 3, int(libsae.Run.ORDER_INDEX))),
        (OPS.encode_out, (x, x, known, *out)), (OPS.encode_dense, (x, known, True)),
        (OPS.encode_selected, (x, torch.arange(6, dtype=torch.int32), None, known)),
        (OPS.decode, (*sparse, x, known)), (OPS.decode_out, (*sparse, x, known, torch.empty(9, D))),
        (OPS.decode, (sparse[0].clone().requires_grad_(), *sparse[1:], x.clone().requires_grad_(), known)),
        (OPS.reconstruct, (x.half(), None, known)), (OPS.steer, (x, x, slots, None, known)), (OPS.steer, (x, None, None, x + 1, known)),
        (OPS.steer_, (x.clone(), x, slots, known)),
    ):
        torch.library.opcheck(op.default, arguments)


def test_eager_is_the_session(session, x):
    known = ours.number(session)
    assert ours.number(session) == known
    expected = session.encode(x.numpy())
    found = OPS.encode(x, None, known)
    for one, name in zip(found, ("values", "indices", "counts")):
        assert np.array_equal(one.numpy(), getattr(expected, name))
    assert np.array_equal(OPS.decode(*found, x, known).numpy(), session.decode(expected, x.numpy()))
    out = [torch.empty_like(t) for t in found]
    OPS.encode_out(x, None, known, *out)
    assert all(map(torch.equal, out, found))
    assert np.array_equal(OPS.steer(x, None, None, None, known).numpy(), session.steer(x.numpy()))
    assert np.array_equal(OPS.reconstruct(x, None, known).numpy(), session.reconstruct(x.numpy()))


def test_compiled_is_eager(session):
    known = ours.number(session)

    def layer(hidden, residual, slots):
        hidden = hidden * 2
        OPS.steer_(hidden, residual, slots, known)
        values, indices, counts, state = OPS.encode(hidden, residual, known)
        return hidden + 1, OPS.decode(values * 0.5, indices, counts, state, hidden + residual, known)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (9, 4, 1):
        given = [torch.from_numpy(activations(tokens, seed=s)) for s in (3, 4)] + [torch.arange(tokens, dtype=torch.int32) % 4 - 1]
        with torch.no_grad():
            for eager, made in zip(layer(*given), compiled(*given)):
                assert torch.equal(eager, made)
    session.set_edits(0, [])  # outside of the graph, for the next launch
    assert all(map(torch.equal, layer(*given), compiled(*given)))


def test_inference_mode(session):
    known = ours.number(session)
    with torch.inference_mode():
        x = torch.from_numpy(activations()) * 1
        steered = OPS.steer(x, None, None, None, known)
        compiled = torch.compile(lambda h: (OPS.steer_(h, None, None, known), h * 1)[1], fullgraph=True, backend="aot_eager")
        assert x.is_inference() and torch.equal(compiled(x.clone()), steered)
        OPS.steer_(x, None, None, known)
        assert torch.equal(x, steered)


def test_inductor_too(x):
    session = make().session()
    known = ours.number(session)
    session.set_edits(0, [Edit.add(1, 3.0)])
    compiled = torch.compile(lambda h: OPS.steer(torch.relu(h) * 3, None, None, None, known).sum(1), fullgraph=True)
    assert torch.allclose(compiled(x), OPS.steer(torch.relu(x) * 3, None, None, None, known).sum(1), atol=1e-5)


@pytest.mark.parametrize("kind, options", [
    ("top_k", {}), ("top_k", LAYER_NORM), ("top_k", dict(normalization=libsae.Normalization.CONSTANT_NORM)), ("skip", {}),
    ("top_k", dict(flags=libsae.ModelFlags.RESCALES)), ("top_k", dict(LAYER_NORM, flags=libsae.ModelFlags.STAYS_NORMALIZED)),
    ("jump_relu", dict(flags=libsae.ModelFlags.CENTERS)),
])
def test_the_gradient_of_decode(kind, options, x):
    session = make(kind, **options).session(max_width=6)
    known = ours.number(session)
    features = OPS.encode(x, None, known, 6)
    values = features[0].clone().requires_grad_()
    given = x.clone().requires_grad_()
    along = torch.randn(len(x), D, generator=torch.Generator().manual_seed(1))
    (OPS.decode(values, *features[1:], given, known) * along).sum().backward()
    base = OPS.decode(*features, x, known)
    for slot in range(6):  # decoding is affine in each value
        changed = features[0].clone()
        changed[:, slot] += (features[1][:, slot] >= 0).float() * 8
        expected = ((OPS.decode(changed, *features[1:], x, known) - base) * along).sum(1) / 8
        assert torch.allclose(values.grad[:, slot], expected, atol=2e-4), slot
    if kind == "skip":
        moved = x.clone()
        moved[:, 2] += 4
        expected = ((OPS.decode(*features, moved, known) - base) * along).sum(1) / 4
        assert torch.allclose(given.grad[:, 2], expected, atol=1e-4)
    else:
        assert given.grad is None


def test_where_there_is_no_gradient_it_is_said(x):
    session = make().session()
    known = ours.number(session)
    x.requires_grad_()
    for made in (OPS.encode(x, None, known)[0], OPS.steer(x, None, None, None, known), OPS.reconstruct(x, None, known)):
        with pytest.raises(NotImplementedError, match="has no gradient"):
            made.sum().backward()
    hidden = x * 2
    with pytest.raises(NotImplementedError, match="would cut it off"):
        OPS.steer_(hidden, None, None, known)
    with torch.no_grad():
        OPS.steer_(hidden.detach(), None, None, known)


def test_a_session_that_is_gone_is_named(x):
    known = ours.number(make().session())
    with pytest.raises(RuntimeError, match=f"no session {known}"):
        OPS.encode(x, None, known)


def lens_and_ours(tmp_path, architecture, **options):
    """An SAE of SAELens's, and ours of what it saved."""
    import sae_lens

    torch.manual_seed(0)
    kind, config = {
        "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig), "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig),
        "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig)}[architecture]
    lens = kind(config(d_in=D, d_sae=N, dtype="float32", device="cpu", **options))
    with torch.no_grad():
        for name, parameter in lens.named_parameters():
            parameter.copy_(torch.randn_like(parameter) / 3 if name != "threshold" else torch.rand_like(parameter))
    lens.save_model(tmp_path / "lens")
    return lens, ours.SAE.load_from_disk(tmp_path / "lens", max_tokens=7)


@pytest.mark.parametrize("architecture, options", [
    ("standard", {}), ("topk", {"k": 5}), ("jumprelu", {}), ("standard", {"normalize_activations": "layer_norm"})])
def test_the_module_does_what_saelens_does(tmp_path, architecture, options):
    lens, sae = lens_and_ours(tmp_path, architecture, **options)
    batch = torch.from_numpy(activations(30)).reshape(5, 6, D)
    with torch.no_grad():
        expected = lens.encode(batch)
        found = sae.encode(batch)
        assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-4)
        assert torch.allclose(sae.decode(found), lens.decode(expected), atol=1e-4)
        assert torch.allclose(sae(batch), lens(batch), atol=1e-4)
        sparse = sae.encode_sparse(batch)
        if architecture == "topk":
            assert torch.equal(sae.decode(sparse).reshape(batch.shape), sae(batch))
    assert torch.allclose(sae.W_enc, lens.W_enc) and torch.allclose(sae.W_dec, lens.W_dec) and torch.equal(sae.b_dec, lens.b_dec)
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (lens.cfg.d_in, lens.cfg.d_sae)
    if not options.get("normalize_activations"):
        mine, theirs = found.clone().requires_grad_(), found.clone().requires_grad_()
        sae.decode(mine).square().sum().backward()
        lens.decode(theirs).square().sum().backward()
        assert torch.allclose(mine.grad, theirs.grad * (found != 0), atol=1e-2)


def test_the_module_steers_where_it_is_told(x):
    sae = ours.SAE(make(), max_tokens=4)
    batch = x[:8].reshape(2, 4, D)
    where = torch.tensor([[True, False, False, True]])
    changed = sae.steer(batch, [Edit.add(3, 2.0)], where)
    assert torch.equal(changed[:, 1:3], batch[:, 1:3]) and torch.allclose(changed - batch, where[..., None] * 2 * sae.W_dec[3], atol=1e-5)
    assert torch.allclose(sae.steer(batch), batch + 2 * sae.W_dec[3], atol=1e-5)
