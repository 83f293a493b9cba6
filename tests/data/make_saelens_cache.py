"""Makes saelens_cache: activations as SAELens caches them, written by its own code (sae-lens 6.54.12, with datasets).

Two shards of a hook's activations, [5, 3, 4] and [2, 3, 4] f32, brought together: element i of the whole is i / 2. The model
that would compute them is left out.

    python make_saelens_cache.py
"""

import shutil
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Array2D, Features, Sequence, Value
from sae_lens.cache_activations_runner import CacheActivationsRunner

HOOK = "blocks.3.hook_resid_post"
CONTEXT, D = 3, 4
OUT = Path(__file__).parent / "saelens_cache"


def runner(sequences: int) -> SimpleNamespace:
    features = {
        HOOK: Array2D(shape=(CONTEXT, D), dtype="float32"),
        "token_ids": Sequence(Value(dtype="int32"), length=CONTEXT),
    }
    cfg = SimpleNamespace(hook_name=HOOK, n_seq_in_buffer=sequences, d_in=D)
    return SimpleNamespace(cfg=cfg, context_size=CONTEXT, features=Features(features))


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    shards = OUT / ".tmp_shards"
    first = 0
    for i, sequences in enumerate([5, 2]):
        tokens = torch.arange(first, first + sequences * CONTEXT)
        activations = (tokens[:, None] * D + torch.arange(D)) / 2
        shard = CacheActivationsRunner._create_shard(runner(sequences), (activations, tokens))
        shard.save_to_disk(str(shards / f"shard_{i:05d}"), num_shards=1)
        first += len(tokens)
    CacheActivationsRunner._consolidate_shards(shards, OUT, copy_files=False)


main()
