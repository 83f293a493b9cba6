"""The operators: their schemas, what they do, how their results look, and the gradient of decoding."""

from __future__ import annotations

import itertools
import weakref
from typing import Any, NamedTuple

import torch

from ..features import Features
from ..model import ModelFlags, Normalization
from ..session import Session

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
        writes = "!" in schema

        def run(*given: Any) -> Any:
            if writes and torch.is_grad_enabled() and any(getattr(value, "requires_grad", False) for value in given):
                raise NotImplementedError(f"libsae::{name} has no gradient, and would cut it off; use torch.no_grad(), or another form")
            return function(*map(_plain, given))

        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        for device in ("CPU", "CUDA"):
            _library.impl(name, run, device)
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
