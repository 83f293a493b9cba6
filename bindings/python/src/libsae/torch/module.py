"""An SAE as a module of torch's, with the names that users of SAELens know, over the operators."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch

from ..model import Model
from ..session import Edit
from .operators import Sparse, number


class SAE(torch.nn.Module):
    """An SAE as a module: `encode` gives dense features as SAELens does, `encode_sparse` the sparse ones, `decode` takes both.
    Inputs `[..., d_in]` may have any leading dimensions. It computes where the model lives, `.to(…)` moves nothing: load with
    `device`. `W_enc`, `W_dec`, `b_enc`, `b_dec` are copies, in SAELens's shapes."""

    def __init__(self, model: Model, *, threads: int = 1, max_tokens: int = 4096, **options: Any) -> None:
        super().__init__()
        self.session = model.session(threads=threads, max_tokens=max_tokens, **options)
        self._options = dict(options, threads=threads, max_tokens=max_tokens)
        self._number = number(self.session)
        self._row_state: Any = None
        info = model.info
        self.cfg = SimpleNamespace(
            d_in=info.d_in, d_out=info.d_out, d_sae=info.n_latents, k=info.k, architecture=info.architecture.name.lower(),
            dtype=info.dtype, device=info.device, hook_name=info.hook_point_transformer_lens or info.hook_point,
            model_name=info.model_name, prepend_bos=info.prepend_bos, context_size=info.context_size)

    @classmethod
    def load_from_disk(cls, path: str | os.PathLike[str], device: Any = "cpu", *, threads: int = 1, max_tokens: int = 4096, **options: Any) -> SAE:
        """Of a file or folder in any format that is read; `options` are those of `Model.load`."""
        return cls(Model.load(path, device=device, **options), threads=threads, max_tokens=max_tokens)

    def encode(self, x: Any) -> Any:
        """Dense features `[..., n_latents]`. Of models that scale tokens, the scale is kept for the next `decode`."""
        rows, lead = self._rows(x)
        if self.session.info.row_state_width:
            self._row_state = self._in_parts(lambda part: torch.ops.libsae.encode(part, None, self._number, 1)[3], rows)
        return _shaped(self._in_parts(lambda part: torch.ops.libsae.encode_dense(part, self._number), rows), lead)

    def encode_sparse(self, x: Any, width: int = 0) -> Sparse:
        """Sparse features of all rows, `[T, width]` where T is the product of the leading dimensions."""
        rows, _ = self._rows(x)
        parts = [torch.ops.libsae.encode(part, None, self._number, width) for part in self._split(rows)]
        return Sparse(*parts[0]) if len(parts) == 1 else Sparse(*map(torch.cat, zip(*parts)))

    def decode(self, features: Any, x: Any = None) -> Any:
        """Activations, of dense features `[..., n_latents]` (where a latent that is 0 gets no gradient) or of sparse ones
        (`[T, d_out]`). `x`: the raw input, for models with a skip path."""
        given = None if x is None else self._rows(x)[0]
        if isinstance(features, Sparse):
            return self._decode(features, given)
        lead = features.shape[:-1]
        return _shaped(self._decode(self._sparse(features.reshape(-1, features.shape[-1])), given), lead)

    def forward(self, x: Any) -> Any:
        """The reconstruction, in x's dtype."""
        rows, lead = self._rows(x)
        return _shaped(self._in_parts(lambda part: torch.ops.libsae.reconstruct(part, None, self._number), rows), lead)

    def steer(self, x: Any, edits: Iterable[Edit] | None = None, where: Any = None) -> Any:
        """`x` changed by edits, on the rows where the mask `where` `[...]` is true, by default all. Without `edits`, those that
        the session's slot 0 has."""
        if edits is not None:
            self.session.set_edits(0, edits)
        rows, lead = self._rows(x)
        if where is None:
            return self._in_parts(lambda part: torch.ops.libsae.steer(part, None, None, None, self._number), rows).reshape(x.shape)
        slots = (where.expand(lead).reshape(-1).int() - 1).to(rows.device)
        pairs = zip(self._split(rows), self._split(slots))
        return torch.cat([torch.ops.libsae.steer(part, None, slot, None, self._number) for part, slot in pairs]).reshape(x.shape)

    @property
    def W_enc(self) -> Any:
        """`[d_in, n_latents]`."""
        return self._weight("W_enc").T

    @property
    def W_dec(self) -> Any:
        """`[n_latents, d_out]`."""
        return self._weight("W_dec")

    @property
    def b_enc(self) -> Any:
        """`[n_latents]`."""
        return self._weight("b_enc")

    @property
    def b_dec(self) -> Any:
        """`[d_out]`."""
        return self._weight("b_dec")

    def _weight(self, name: str) -> Any:
        return self.session.model.read(name, like=torch.empty(0))

    def _rows(self, x: Any) -> tuple[Any, Any]:
        return x.reshape(-1, x.shape[-1]), x.shape[:-1]

    def _split(self, rows: Any) -> Any:
        return (rows,) if rows.shape[0] <= self.session.max_tokens else rows.split(self.session.max_tokens)

    def _in_parts(self, function: Any, rows: Any) -> Any:
        parts = [function(part) for part in self._split(rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(self, features: Sparse, x: Any) -> Any:
        known = self._number
        if features.values.shape[1] > self.session.width:
            known = self._wide(features.values.shape[1])
        most = self.session.max_tokens
        parts = [
            torch.ops.libsae.decode(*(tensor[i:i + most] for tensor in features), None if x is None else x[i:i + most], known)
            for i in range(0, max(features.values.shape[0], 1), most)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _wide(self, width: int) -> int:
        """A session for more slots than the own one has."""
        kept = getattr(self, "_wide_session", None)
        if kept is None or kept.width < width:
            most = min(self.session.info.n_latents, 1 << (width - 1).bit_length())
            self._wide_session = kept = self.session.model.session(**{**self._options, "max_width": most})
        return number(kept)

    def _sparse(self, dense: Any) -> Sparse:
        """Dense features as sparse ones, by index; differentiable."""
        counts = (dense != 0).sum(1)
        width = max(1, int(counts.max())) if len(dense) else 1
        places = torch.topk((dense != 0).int(), width, sorted=True).indices.sort(1).values
        values = dense.gather(1, places).float()
        indices = torch.where(values != 0, places, -1).int()
        state = self._row_state
        if not self.session.info.row_state_width:
            state = dense.new_zeros(len(dense), 0, dtype=torch.float32)
        elif state is None or len(state) != len(dense):
            raise ValueError("decode of dense features needs each token's scale: call encode on the same tokens first")
        return Sparse(values, indices, counts.int(), state.detach())


def _shaped(made: Any, lead: Any) -> Any:
    """Rows as the batch that they came from; there may be none, of which -1 would not follow."""
    return made.reshape(*lead, math.prod(made.shape[1:]))
