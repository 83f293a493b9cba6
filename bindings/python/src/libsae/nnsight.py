"""SAEs inside a trace of nnsight: features of a module's output, and edits to it.

    model = nnsight.LanguageModel("gpt2")
    sae = libsae.torch.SAE.load_from_disk(path)
    with model.trace("The Eiffel Tower is in"):
        features = libsae.nnsight.encode(model.transformer.h[8], sae).save()
        libsae.nnsight.edit(model.transformer.h[8], sae, [libsae.Edit.add(7, 4.0)])
        logits = model.lm_head.output.save()

For nnsight from 0.5 on, where what stands in a trace runs on real tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .session import Edit
from .torch import SAE, Sparse


def stream(module: Any) -> Any:
    """A module's output `[batch, position, d]`, the first of several if there are."""
    output = module.output
    return output[0] if isinstance(output, tuple) else output


def encode(module: Any, sae: SAE) -> Any:
    """Dense features of its output, `[batch, position, n_latents]`."""
    return sae.encode(stream(module).detach())


def encode_sparse(module: Any, sae: SAE, width: int = 0) -> Sparse:
    """Sparse features of its output, batch and positions in one dimension."""
    return sae.encode_sparse(stream(module).detach(), width)


def edit(module: Any, sae: SAE, edits: Iterable[Edit], where: Any = None) -> None:
    """Changes its output by edits, on the positions where the mask `where` `[batch, position]` is true, by default all. What the
    SAE does not reconstruct is kept."""
    hidden = sae.steer(stream(module), edits, where)
    output = module.output
    module.output = (hidden, *output[1:]) if isinstance(output, tuple) else hidden
