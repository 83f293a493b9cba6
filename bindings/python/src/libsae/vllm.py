"""SAEs inside vLLM's decoder layers: features of every token, and edits for each request of a batch by itself.

A layer of vLLM's returns `(hidden, residual)`, and the residual stream is their sum: the library takes both pointers and forms it
on the way. `attach` puts a `Layer` around each layer that has an SAE, before the model first runs, so that torch.compile and the
CUDA graphs hold what it does: two operators over buffers at fixed addresses. Between launches, the host changes what they do:
`Requests` keeps which request has which edits, and writes for each batch which row belongs to whom.

    requests = Requests(max_tokens=8192, slots=64, device="cuda")
    attach(model, {"model.layers.12": libsae.Model.load(path, device="cuda")}, requests)
    requests.add("req-1", {"model.layers.12": [libsae.Edit.add(7, 4.0)]})
    requests.schedule([("req-1", 5), ("req-2", 1)])     # tokens of each request, in the batch's order; before every launch

What a request computed under edits is in its cache: requests of other edits must not share its prefix (vLLM: `cache_salt`).

Written for the interface of vLLM's layers and tested on a model that keeps it; vLLM itself, and GPUs, have not been seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from .features import Features
from .model import Model
from .session import Edit, Session
from .torch import number


class Requests:
    """Whom to steer: a slot for each request that has edits, the same one in all layers, and the slot of each row of a batch."""

    def __init__(self, *, max_tokens: int, slots: int = 64, edits_per_slot: int = 16, device: Any = "cpu") -> None:
        self.max_tokens, self.slots, self.edits_per_slot = max_tokens, slots, edits_per_slot
        self.row_slot = torch.full((max_tokens,), -1, dtype=torch.int32, device=device)
        """`[max_tokens]`: what captured graphs read; it never moves."""
        self._sessions: dict[str, Session] = {}
        self._slot: dict[str, int] = {}
        self._free = list(reversed(range(slots)))

    def add(self, request: str, edits: Mapping[str, Iterable[Edit]]) -> None:
        """Has a request steered by these edits, by the names of layers, from its next token on. Again: by other edits.
        If one is refused, the request has none."""
        unknown = set(edits) - set(self._sessions)
        if unknown:
            raise KeyError(f"edits for {', '.join(sorted(unknown))}, but SAEs are attached to {', '.join(self._sessions) or 'no layer'}")
        known = request in self._slot
        if not known and not self._free:
            raise RuntimeError(f"all {self.slots} slots are taken; remove requests that are done, or make more slots")
        slot = self._slot[request] if known else self._free[-1]
        try:
            for name, session in self._sessions.items():
                session.set_edits(slot, edits.get(name, ()))
        except Exception:
            self._clear(slot)
            raise
        if not known:
            self._slot[request] = self._free.pop()

    def remove(self, request: str) -> None:
        """Forgets a request that is done; one that has no edits is nothing."""
        slot = self._slot.pop(request, None)
        if slot is not None:
            self._clear(slot)
            self._free.append(slot)

    def schedule(self, batch: Sequence[tuple[str, int]]) -> None:
        """Says which rows the next launch computes: each request's tokens, in order. Rows beyond them, a graph's padding, are left
        alone."""
        total = sum(tokens for _, tokens in batch)
        if total > self.max_tokens or any(tokens < 0 for _, tokens in batch):
            raise ValueError(f"a batch of {total} tokens, but there are rows for {self.max_tokens}")
        slots = torch.full((self.max_tokens,), -1, dtype=torch.int32)  # pageable, so that the copy is done with it on return
        row = 0
        for request, tokens in batch:
            slots[row:row + tokens] = self._slot.get(request, -1)
            row += tokens
        self.row_slot.copy_(slots)

    def _clear(self, slot: int) -> None:
        for session in self._sessions.values():
            session.set_edits(slot, ())


class Layer(torch.nn.Module):
    """A decoder layer of vLLM's, whose output is steered, and whose features are kept if `width` is given."""

    def __init__(self, layer: torch.nn.Module, session: Session, requests: Requests, width: int = 0) -> None:
        super().__init__()
        self.layer, self.session, self.row_slot, self.width = layer, session, requests.row_slot, width
        self._number = number(session)
        like = requests.row_slot
        self.features = Features.empty(requests.max_tokens, width, session.info.row_state_width, like=like) if width else None
        """Of the rows of the last launch, after steering; what lies behind them is old."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        output = self.layer(*arguments, **named)
        hidden, residual = output if isinstance(output, tuple) else (output, None)
        tokens = hidden.shape[0]
        torch.ops.libsae.steer_(hidden, residual, self.row_slot[:tokens], self._number)
        if self.features is not None:
            kept = self.features
            state = kept.row_state[:tokens] if kept.row_state is not None else hidden.new_empty(tokens, 0, dtype=torch.float32)
            torch.ops.libsae.encode_out(
                hidden, residual, self._number, kept.values[:tokens], kept.indices[:tokens], kept.counts[:tokens], state)
        return output


def attach(model: torch.nn.Module, saes: Mapping[str, Model], requests: Requests, *, width: int = 0, threads: int = 1) -> dict[str, Layer]:
    """Puts a `Layer` around each named layer of a model that has not run yet; they are steered as `requests` says. With `width`,
    each keeps so many features a row."""
    layers = {}
    for name, sae in saes.items():
        session = sae.session(
            max_tokens=requests.max_tokens, slots=requests.slots, edits_per_slot=requests.edits_per_slot, threads=threads,
            max_width=width)
        layers[name] = Layer(model.get_submodule(name), session, requests, width)
        requests._sessions[name] = session
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        if isinstance(owner, (torch.nn.ModuleList, torch.nn.Sequential)):
            owner[int(child)] = layer
        else:
            setattr(owner, child, layer)
    return layers
