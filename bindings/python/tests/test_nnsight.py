"""Features and edits inside a trace, on a small GPT-2 of random weights."""

import numpy as np
import pytest
import torch
from nnsight import NNsight
from transformers import GPT2Config, GPT2LMHeadModel

import libsae
import libsae.nnsight
import libsae.torch
from conftest import weights
from libsae import Edit

WIDTH, N, K = 32, 64, 4
IDS = torch.arange(8).reshape(2, 4) * 7


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=16, n_embd=WIDTH, n_layer=3, n_head=4)).eval()


@pytest.fixture(scope="module")
def sae():
    return libsae.torch.SAE(libsae.Model.from_weights(weights(N, WIDTH), architecture=libsae.Architecture.TOP_K, k=K))


def plain(gpt2, change=None):
    """The model by itself: the output of its second block, and logits after it was changed."""
    seen = {}

    def hook(_module, _inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        seen["x"] = hidden.detach().clone()
        if change is not None:
            return (change(hidden), *output[1:]) if isinstance(output, tuple) else change(hidden)

    handle = gpt2.transformer.h[1].register_forward_hook(hook)
    with torch.no_grad():
        logits = gpt2(IDS).logits
    handle.remove()
    return seen["x"], logits


def test_features_of_a_trace(gpt2, sae):
    x, _ = plain(gpt2)
    model = NNsight(gpt2)
    with model.trace(IDS):
        features = libsae.nnsight.encode(model.transformer.h[1], sae).save()
        sparse = libsae.nnsight.encode_sparse(model.transformer.h[1], sae)
        values = sparse.values.save()
    assert features.shape == (2, 4, N) and torch.equal(features, sae.encode(x))
    assert torch.equal(values, sae.encode_sparse(x).values) and (features != 0).sum() == 8 * K


@pytest.mark.parametrize("where", [None, torch.tensor([[False, True, True, False]])])
def test_edits_in_a_trace(gpt2, sae, where):
    edits = [Edit.add(5, 3.0), Edit.scale(9, 2.0)]
    oracle = libsae.torch.SAE(sae.session.model)
    _, unchanged = plain(gpt2)
    _, expected = plain(gpt2, lambda hidden: oracle.steer(hidden, edits, where))
    model = NNsight(gpt2)
    with torch.no_grad(), model.trace(IDS):
        libsae.nnsight.edit(model.transformer.h[1], sae, edits, where)
        logits = model.lm_head.output.save()
    assert torch.allclose(logits, expected, atol=1e-5) and not torch.allclose(logits, unchanged, atol=1e-3)
    if where is not None:
        assert torch.allclose(logits[:, 0], unchanged[:, 0], atol=1e-5)
