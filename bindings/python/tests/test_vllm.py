"""The adapter on a model that keeps vLLM's interface, with the weights of a Llama of transformers' as its measure."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import libsae
from conftest import weights
from libsae import Edit
from libsae.vllm import Requests, attach

WIDTH, N, K, LAYER = 32, 64, 4, "model.layers.1"


class Norm(torch.nn.Module):
    """vLLM's RMSNorm: with a residual it adds first, and returns the sum too."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x, residual=None):
        return self.norm(x) if residual is None else (self.norm(x + residual), x + residual)


class DecoderLayer(torch.nn.Module):
    """vLLM's decoder layer: rows of all requests in one dimension, the stream in two parts."""

    def __init__(self, theirs, rotary):
        super().__init__()
        self.attention, self.mlp = theirs.self_attn, theirs.mlp
        self.input_layernorm, self.post_attention_layernorm = Norm(theirs.input_layernorm), Norm(theirs.post_attention_layernorm)
        self.rotary = rotary

    def forward(self, positions, hidden_states, residual):
        if residual is None:
            residual, hidden_states = hidden_states, self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        rope = self.rotary(hidden_states[None], positions[None])
        mask = positions[None, :] <= positions[:, None]  # one request's rows; the tests batch by hand
        mask = torch.where(mask, 0.0, float("-inf"))[None, None]
        hidden_states = self.attention(hidden_states[None], position_embeddings=rope, attention_mask=mask)[0][0]
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


class Inner(torch.nn.Module):
    def __init__(self, theirs):
        super().__init__()
        self.embed_tokens, self.norm = theirs.embed_tokens, Norm(theirs.norm)
        self.layers = torch.nn.ModuleList(DecoderLayer(layer, theirs.rotary_emb) for layer in theirs.layers)

    def forward(self, ids, positions):
        hidden, residual = self.embed_tokens(ids), None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        return self.norm(hidden, residual)[0]


class Model(torch.nn.Module):
    def __init__(self, theirs):
        super().__init__()
        self.model, self.lm_head = Inner(theirs.model), theirs.lm_head

    def forward(self, ids, positions):
        return self.lm_head(self.model(ids, positions))


@pytest.fixture
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=100, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        attn_implementation="eager")).eval()


@pytest.fixture
def sae():
    return libsae.Model.from_weights(weights(N, WIDTH), architecture=libsae.Architecture.TOP_K, k=K)


IDS, POSITIONS = torch.arange(3, 17), torch.arange(14)


@torch.no_grad()
def test_the_double_is_the_model(llama):
    assert torch.allclose(Model(llama)(IDS, POSITIONS), llama(IDS[None]).logits[0], atol=1e-4)


@torch.no_grad()
def test_requests_are_steered_alone(llama, sae):
    stream = {}
    hook = llama.model.layers[1].register_forward_hook(lambda _m, _i, out: stream.update(x=(out[0] if isinstance(out, tuple) else out)))
    llama(IDS[None])
    hook.remove()
    x = stream["x"].reshape(-1, WIDTH).clone()

    edits = [Edit.add(5, 3.0), Edit.scale(9, 2.0)]
    requests = Requests(max_tokens=20, slots=2)
    double = Model(llama)
    layer = attach(double, {LAYER: sae}, requests, width=K)[LAYER]
    assert torch.allclose(double(IDS, POSITIONS), llama(IDS[None]).logits[0], atol=1e-4)  # no edits, no change
    found = sae.session().encode(x.numpy())
    assert np.allclose(layer.features.values[:14].numpy(), found.values, atol=1e-4)

    requests.add("b", {LAYER: edits})
    requests.schedule([("a", 6), ("b", 5)])  # and 3 rows of padding
    oracle = sae.session()
    oracle.set_edits(0, edits)
    expected = x.clone()
    expected[6:11] = torch.from_numpy(oracle.steer(x[6:11].numpy()))
    hook = llama.model.layers[1].register_forward_hook(lambda _m, _i, out: (expected[None], *out[1:]) if isinstance(out, tuple) else expected[None])
    assert torch.allclose(double(IDS, POSITIONS), llama(IDS[None]).logits[0], atol=1e-4)
    hook.remove()

    requests.remove("b")
    requests.schedule([("a", 6), ("b", 5)])
    assert torch.allclose(double(IDS, POSITIONS), llama(IDS[None]).logits[0], atol=1e-4)


@torch.no_grad()
def test_a_compiled_model_follows_the_host(llama, sae):
    requests = Requests(max_tokens=16, slots=3)
    double = Model(llama)
    kept = attach(double, {LAYER: sae}, requests, width=K)
    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    for edits, batch in (
        ({}, [("a", 14)]), ({"a": [Edit.add(2, 5.0)]}, [("a", 9), ("b", 5)]),
        ({"a": [Edit.ablate(1)], "b": [Edit.set(2, 4.0)]}, [("b", 3), ("a", 11)]), ({}, [("c", 14)]),
    ):
        for request, of in edits.items():
            requests.add(request, {LAYER: of})
        requests.schedule(batch)
        found = compiled(IDS, POSITIONS)
        assert torch.equal(found, double(IDS, POSITIONS))
    assert kept[LAYER].features.counts[:14].max() == K


def test_requests_are_refused_by_name(llama, sae):
    requests = Requests(max_tokens=8, slots=1)
    attach(Model(llama), {LAYER: sae}, requests)
    with pytest.raises(KeyError, match="model.layers.7"):
        requests.add("a", {"model.layers.7": []})
    with pytest.raises(libsae.InvalidArgument, match="latent|feature|64"):
        requests.add("a", {LAYER: [Edit.ablate(N)]})
    requests.add("a", {LAYER: [Edit.ablate(1)]})
    with pytest.raises(RuntimeError, match="slots"):
        requests.add("b", {})
    requests.remove("a")
    requests.remove("never seen")
    requests.add("b", {})
    with pytest.raises(ValueError, match="9 tokens"):
        requests.schedule([("b", 9)])
