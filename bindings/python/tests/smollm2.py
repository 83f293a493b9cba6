"""SmolLM2-135M's first layers as transformers has them, with the weights that examples/llama_cpp fetches (GGUF, 4 bits)."""

import os
import struct
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

FILE = Path(os.environ.get("LIBSAE_TEST_MODEL") or Path(__file__).parents[3] / "build" / "llama_cpp" / "model.gguf")
BLOCK = 14  # examples/data's SAE is of the stream after it
IDS = [1, 504, 1838, 9741, 3514, 6351, 1187, 260, 4626, 28, 284, 260, 827, 1122, 2643, 281, 357, 284, 5328, 418, 260, 3417, 335, 260, 550,
       2103, 30]
"""The little boat went slowly down the river, and the two children sat in it and looked at the trees on the other side."""

SIMPLE = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
F32, Q4_1, Q8_0 = 0, 3, 8


def read(path):
    """The numbers that a GGUF file says of the model, and its tensors by name, unpacked when they are called."""
    data = memoryview(np.memmap(path, np.uint8, "r"))
    place = 24
    n_tensors, n_values = struct.unpack_from("<QQ", data, 8)

    def take(form):
        nonlocal place
        (value,) = struct.unpack_from(form, data, place)
        place += struct.calcsize(form)
        return value

    def text():
        nonlocal place
        length = take("<Q")
        place += length
        return bytes(data[place - length:place]).decode()

    def value(kind):
        if kind == STRING:
            return text()
        if kind == ARRAY:
            of, count = take("<I"), take("<Q")
            return [value(of) for _ in range(count)]
        return take(SIMPLE[kind])

    said = {}
    for _ in range(n_values):
        name = text()
        said[name] = value(take("<I"))
    described = {}
    for _ in range(n_tensors):
        name = text()
        shape = [take("<Q") for _ in range(take("<I"))][::-1]
        described[name] = shape, take("<I"), take("<Q")
    start = -(-place // 32) * 32

    def tensor(name):
        shape, kind, offset = described[name]
        count = int(np.prod(shape))
        at = data[start + offset:]
        if kind == F32:
            numbers = np.frombuffer(at, np.float32, count)
        elif kind == Q8_0:
            blocks = np.frombuffer(at, [("d", np.float16), ("q", np.int8, 32)], count // 32)
            numbers = blocks["d"].astype(np.float32)[:, None] * blocks["q"]
        elif kind == Q4_1:
            blocks = np.frombuffer(at, [("d", np.float16), ("m", np.float16), ("q", np.uint8, 16)], count // 32)
            nibbles = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], 1)
            numbers = blocks["d"].astype(np.float32)[:, None] * nibbles + blocks["m"].astype(np.float32)[:, None]
        else:
            raise ValueError(f"{path}: {name} is of type {kind}")
        return torch.from_numpy(numbers.reshape(shape).copy())

    return said, tensor


@lru_cache(maxsize=1)
def smollm2():
    said, tensor = read(FILE)
    heads, kv_heads = said["llama.attention.head_count"], said["llama.attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=len(said["tokenizer.ggml.tokens"]), hidden_size=said["llama.embedding_length"], num_hidden_layers=BLOCK + 2,
        intermediate_size=said["llama.feed_forward_length"], num_attention_heads=heads, num_key_value_heads=kv_heads,
        rope_theta=said["llama.rope.freq_base"], rms_norm_eps=said["llama.attention.layer_norm_rms_epsilon"], tie_word_embeddings=True,
        attn_implementation="eager")
    with torch.device("meta"):
        model = LlamaForCausalLM(config)

    def by_pairs(weight, heads):  # GGUF has the halves of each head's rotation side by side
        return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)

    state = {"model.embed_tokens.weight": tensor("token_embd.weight"), "model.norm.weight": tensor("output_norm.weight")}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    names = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down"}
    for i in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            weight = tensor(f"blk.{i}.{theirs}.weight")
            if theirs in ("attn_q", "attn_k"):
                weight = by_pairs(weight, heads if theirs == "attn_q" else kv_heads)
            state[f"model.layers.{i}.{ours}.weight"] = weight
    model.load_state_dict(state, assign=True)
    rotary = type(model.model.rotary_emb)(config)  # its frequencies are no weights, and were only meant
    model.model.rotary_emb = rotary
    return model.eval()
