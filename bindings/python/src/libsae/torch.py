"""Operators for torch, which torch.compile takes as they are, and `SAE`, a module of the names that users of SAELens know.

The operators (`torch.ops.libsae.*`) take the number that `number(session)` gives. They run on torch's current stream, wait for
nothing and read no tensor's content on the host, so they can be captured into CUDA graphs: with the `_out` forms and `steer_`
outside of torch's own memory pool too. Edits stand outside graphs: `Session.set_edits` changes what later launches do.

Gradients: `decode` passes them to `values` (and through a skip path to `x`); a token's mean and scale count as constants. The
others have none, and say so when a gradient is asked of them; detach their input, or use `torch.no_grad()`.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from .features import Features
from .model import Model, ModelFlags, Normalization
from .session import Edit, Session

_sessions: weakref.WeakValueDictionary[int, Session] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def number(session: Session) -> int:
    """The number by which operators know a session. It does not keep it: who runs a compiled graph keeps its sessions."""
    for known, other in list(_sessions.items()):
        if other is session:
            return known
    new = next(_numbers)
    _sessions[new] = session
    return new


def _session(known: int) -> Session:
    session = _sessions.get(known)
    if session is None:
        raise RuntimeError(f"libsae: there is no session {known}; keep sessions as long as what was compiled with them")
    return session


class Sparse(NamedTuple):
    """Features as four tensors, see `libsae.Features`; `row_state` is `[T, 0]` where there is none."""

    values: Any
    indices: Any
    counts: Any
    row_state: Any


_library = torch.library.Library("libsae", "DEF")


def _operator(schema: str, fake: Any) -> Any:
    """Declares an operator, with what it does on every device and how its results look."""

    def define(function: Any) -> Any:
        name = schema[: schema.index("(")]
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        for device in ("CPU", "CUDA"):
            _library.impl(name, lambda *given, **named: function(*map(_plain, given), **named), device)
        torch.library.register_fake(f"libsae::{name}", fake, lib=_library)
        return function

    return define


def _plain(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) and value.requires_grad else value


def _features(values: Any, indices: Any, counts: Any, row_state: Any) -> Features:
    return Features(values, indices, counts, row_state if row_state.shape[1] else None)


def _empty_features(x: Any, session: Session, width: int) -> Sparse:
    tokens = x.shape[0]
    return Sparse(
        x.new_empty(tokens, width or session.width, dtype=torch.float32), x.new_empty(tokens, width or session.width, dtype=torch.int32),
        x.new_empty(tokens, dtype=torch.int32), x.new_empty(tokens, session.info.row_state_width, dtype=torch.float32),
    )


def _fake_encode(x: Any, addend: Any, session: int, width: int = 0, flags: int = 0) -> Any:
    return tuple(_empty_features(x, _session(session), width))


@_operator("encode(Tensor x, Tensor? addend, int session, int width=0, int flags=0) -> (Tensor, Tensor, Tensor, Tensor)", _fake_encode)
def _encode(x: Any, addend: Any, session: int, width: int = 0, flags: int = 0) -> Any:
    out = _empty_features(x, _session(session), width)
    _session(session).encode(x, addend, out=_features(*out), flags=flags)
    return tuple(out)


@_operator("encode_out(Tensor x, Tensor? addend, int session, Tensor(a!) values, Tensor(b!) indices, Tensor(c!) counts, "
           "Tensor(d!) row_state, int flags=0) -> ()", lambda *_, **__: None)
def _encode_out(x: Any, addend: Any, session: int, values: Any, indices: Any, counts: Any, row_state: Any, flags: int = 0) -> None:
    _session(session).encode(x, addend, out=_features(values, indices, counts, row_state), flags=flags)


def _fake_dense(x: Any, session: int, pre_activations: bool = False) -> Any:
    return x.new_empty(x.shape[0], _session(session).info.n_latents, dtype=torch.float32)


@_operator("encode_dense(Tensor x, int session, bool pre_activations=False) -> Tensor", _fake_dense)
def _encode_dense(x: Any, session: int, pre_activations: bool = False) -> Any:
    return _session(session).encode_dense(x, pre_activations=pre_activations)


def _fake_selected(x: Any, latents: Any, addend: Any, session: int) -> Any:
    return x.new_empty(x.shape[0], latents.shape[0], dtype=torch.float32)


@_operator("encode_selected(Tensor x, Tensor latents, Tensor? addend, int session) -> Tensor", _fake_selected)
def _encode_selected(x: Any, latents: Any, addend: Any, session: int) -> Any:
    return _session(session).encode_selected(x, latents, addend)


def _fake_decode(values: Any, indices: Any, counts: Any, row_state: Any, x: Any, session: int) -> Any:
    return values.new_empty(_session(session)._rows_out(values.shape[0]), dtype=torch.float32)


@_operator("decode(Tensor values, Tensor indices, Tensor counts, Tensor row_state, Tensor? x, int session) -> Tensor", _fake_decode)
def _decode(values: Any, indices: Any, counts: Any, row_state: Any, x: Any, session: int) -> Any:
    return _session(session).decode(_features(values, indices, counts, row_state), x)


@_operator("decode_out(Tensor values, Tensor indices, Tensor counts, Tensor row_state, Tensor? x, int session, Tensor(a!) out) -> ()",
           lambda *_, **__: None)
def _decode_out(values: Any, indices: Any, counts: Any, row_state: Any, x: Any, session: int, out: Any) -> None:
    _session(session).decode(_features(values, indices, counts, row_state), x, out=out)


def _fake_reconstruct(x: Any, addend: Any, session: int) -> Any:
    return x.new_empty(_session(session)._rows_out(x.shape[0]))


@_operator("reconstruct(Tensor x, Tensor? addend, int session) -> Tensor", _fake_reconstruct)
def _reconstruct(x: Any, addend: Any, session: int) -> Any:
    return _session(session).reconstruct(x, addend)


def _fake_steer(x: Any, addend: Any, row_slot: Any, y: Any, session: int) -> Any:
    edited = x if y is None else y
    return edited.new_empty(edited.shape)


@_operator("steer(Tensor x, Tensor? addend, Tensor? row_slot, Tensor? y, int session) -> Tensor", _fake_steer)
def _steer(x: Any, addend: Any, row_slot: Any, y: Any, session: int) -> Any:
    return _session(session).steer(x, addend, row_slot=row_slot, y=y)


@_operator("steer_(Tensor(a!) x, Tensor? addend, Tensor? row_slot, int session) -> ()", lambda *_, **__: None)
def _steer_in_place(x: Any, addend: Any, row_slot: Any, session: int) -> None:
    _session(session).steer(x, addend, row_slot=row_slot, out=x)


def _no_gradient(name: str) -> None:
    def backward(*_: Any) -> Any:
        raise NotImplementedError(f"libsae::{name} has no gradient; detach its input, or use torch.no_grad()")

    torch.library.register_autograd(f"libsae::{name}", backward, lib=_library)


for _name in ("encode", "encode_dense", "encode_selected", "reconstruct", "steer"):
    _no_gradient(_name)


def _keep_for_decode(ctx: Any, inputs: Any, output: Any) -> None:
    values, indices, _counts, row_state, x, session = inputs
    ctx.save_for_backward(values, indices, row_state)
    ctx.session, ctx.x_dtype = session, None if x is None else x.dtype


def _decode_backward(ctx: Any, gradient: Any) -> Any:
    values, indices, row_state = ctx.saved_tensors
    of_values = of_x = None
    if ctx.needs_input_grad[0]:
        of_values = torch.ops.libsae.decode_backward(gradient, indices, row_state, ctx.session).to(values.dtype)
    if ctx.needs_input_grad[4] and ModelFlags.HAS_SKIP in _session(ctx.session).info.flags:
        of_x = torch.ops.libsae.skip_backward(gradient, ctx.session).to(ctx.x_dtype)
    return of_values, None, None, None, of_x, None


def _fake_decode_backward(gradient: Any, indices: Any, row_state: Any, session: int) -> Any:
    return gradient.new_empty(indices.shape, dtype=torch.float32)


@_operator("decode_backward(Tensor gradient, Tensor indices, Tensor row_state, int session) -> Tensor", _fake_decode_backward)
def _gradient_of_values(gradient: Any, indices: Any, row_state: Any, session: int) -> Any:
    owner = _session(session)
    rows = _decoder(owner, gradient)
    chosen = rows[(indices - owner.info.first_latent).clamp(0, len(rows) - 1).long()]
    along = gradient.float().reshape(len(indices), -1) * _scale(owner, row_state)
    return torch.einsum("td,tsd->ts", along, chosen) * (indices >= 0)


def _fake_skip_backward(gradient: Any, session: int) -> Any:
    return gradient.new_empty(gradient.shape[0], _session(session).info.d_in, dtype=torch.float32)


@_operator("skip_backward(Tensor gradient, int session) -> Tensor", _fake_skip_backward)
def _gradient_of_skip(gradient: Any, session: int) -> Any:
    return gradient.float().reshape(len(gradient), -1) @ _session(session).model.read("W_skip", like=gradient)


def _decoder(session: Session, like: Any) -> Any:
    """What a unit of each latent adds to an output before its scale, `[n_latents, d_out]`; read when a gradient first needs it."""
    kept = getattr(session, "_decoder_rows", None)
    if kept is None or kept.device != like.device:
        kept = session.model.read("W_dec", like=like)
        if ModelFlags.RESCALES in session.info.flags:
            kept = kept / kept.norm(dim=1, keepdim=True)
        session._decoder_rows = kept  # type: ignore[attr-defined]
    return kept


def _scale(session: Session, row_state: Any) -> Any:
    """What decoding multiplies each token's output by, `[T, 1]`."""
    info = session.info
    if ModelFlags.STAYS_NORMALIZED in info.flags or info.normalization == Normalization.NONE:
        return 1.0
    kept = row_state[:, -1:]
    return kept if info.normalization == Normalization.LAYER_NORM else 1 / kept


torch.library.register_autograd("libsae::decode", _decode_backward, setup_context=_keep_for_decode, lib=_library)


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
        return self._in_parts(lambda part: torch.ops.libsae.encode_dense(part, self._number), rows).reshape(*lead, -1)

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
        return self._decode(self._sparse(features.reshape(-1, features.shape[-1])), given).reshape(*lead, -1)

    def forward(self, x: Any) -> Any:
        """The reconstruction, in x's dtype."""
        rows, lead = self._rows(x)
        return self._in_parts(lambda part: torch.ops.libsae.reconstruct(part, None, self._number), rows).reshape(*lead, -1)

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
