"""A real model and an SAE of it: what nnsight's trace and vLLM's layers see is what the SAE was trained on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nnsight import NNsight

import libsae
import libsae.nnsight
import libsae.torch
from libsae import Edit
from libsae.vllm import Requests, attach
from smollm2 import BLOCK, IDS, smollm2
from test_vllm import Model

LAYER = f"model.layers.{BLOCK}"


@pytest.fixture(scope="module")
def sae():
    return libsae.torch.SAE.load_from_disk(Path(__file__).parents[3] / "examples" / "data" / "sae.safetensors")


@torch.no_grad()
def stream(change=None):
    """The residual stream after the block, and the logits, which `change` may change."""
    seen = {}

    def hook(_module, _inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        seen["x"] = hidden.clone()
        if change is not None:
            hidden = change(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = smollm2().model.layers[BLOCK].register_forward_hook(hook)
    logits = smollm2()(torch.tensor([IDS])).logits
    handle.remove()
    return seen["x"], logits


def test_the_stream_is_what_the_sae_was_trained_on(sae):
    x = stream()[0][0, 1:]  # not the attention sink
    assert libsae.doctor(sae.session.model, x).verdict in ("fits", "cannot tell", "doubtful")
    error = (sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert error < 0.6, error  # 0.44 on held-out rows; nonsense would be 1 and more


def test_nnsight_sees_and_edits_it(sae):
    x, unchanged = stream()
    latent = int(sae.encode_sparse(x[0, 5:6]).indices[0, 0])
    edits = [Edit.scale(latent, 4.0)]
    oracle = libsae.torch.SAE(sae.session.model)
    _, expected = stream(lambda hidden: oracle.steer(hidden, edits))
    model = NNsight(smollm2())
    with torch.no_grad(), model.trace(torch.tensor([IDS])):
        features = libsae.nnsight.encode(model.model.layers[BLOCK], sae).save()
        libsae.nnsight.edit(model.model.layers[BLOCK], sae, edits)
        logits = model.lm_head.output.save()
    assert torch.allclose(features, sae.encode(x), atol=1e-2)
    assert torch.allclose(logits, expected, atol=1e-2) and not torch.allclose(logits, unchanged, atol=0.1)


@torch.no_grad()
def test_vllms_layers_see_and_steer_it(sae):
    x, unchanged = stream()
    edits = [Edit.add(int(sae.encode_sparse(x[0, 5:6]).indices[0, 0]), 60.0)]
    requests = Requests(max_tokens=32, slots=2)
    double = Model(smollm2())
    layer = attach(double, {LAYER: sae.session.model}, requests, width=16)[LAYER]
    ids, positions = torch.tensor(IDS), torch.arange(len(IDS))
    assert torch.allclose(double(ids, positions), unchanged[0], atol=1e-2)
    expected = sae.session.encode(x[0].numpy())
    assert np.mean(layer.features.indices[:len(IDS)].numpy() == expected.indices) > 0.9  # the sum in two parts rounds otherwise
    requests.add("one", {LAYER: edits})
    requests.schedule([("one", len(IDS))])
    oracle = libsae.torch.SAE(sae.session.model)
    _, steered = stream(lambda hidden: oracle.steer(hidden, edits))
    assert torch.allclose(double(ids, positions), steered[0], atol=2e-2) and not torch.allclose(steered, unchanged, atol=0.1)
