"""Sparse features: which latents are active on each token, and how strongly."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import _abi
from ._arrays import borrow, empty, is_torch, shape
from .errors import InvalidTensor

FIELDS = ("values", "indices", "counts", "row_state")
_PLACES = [(field, getattr(_abi.sae_features, field).offset) for field in FIELDS]
_SIZE, _TENSOR_SIZE = ctypes.sizeof(_abi.sae_features), ctypes.sizeof(_abi.sae_tensor)


class Features:
    """The features of T tokens in four arrays, of numpy, torch or another that has `__dlpack__`:

    - `values` `[T, width]` float32 (or float16, bfloat16): activations, strongest first; unused slots hold 0.
    - `indices` `[T, width]` int32: the latents, by their indices in the whole model; unused slots hold -1.
    - `counts` `[T]` int32: how many latents were active, even if more than `width`; -1 if the token was not finite.
    - `row_state` `[T, info.row_state_width]` float32: what decoding needs of each token; `None` if that width is 0.
    """

    __slots__ = ("values", "indices", "counts", "row_state", "_views")

    values: Any
    indices: Any
    counts: Any
    row_state: Any
    _views: dict[bool, Any]

    def __init__(self, values: Any, indices: Any, counts: Any = None, row_state: Any = None) -> None:
        """Of arrays that are there. `counts` are by default the numbers of used slots."""
        if counts is None:
            found = (indices >= 0).sum(-1)
            counts = found.int() if is_torch(found) else found.astype(np.int32)
        for name, array in zip(FIELDS, (values, indices, counts, row_state)):
            object.__setattr__(self, name, array)
        object.__setattr__(self, "_views", {})

    def __setattr__(self, name: str, _: Any) -> None:
        raise AttributeError(f"{name}: features keep their arrays; write into them, or make others")

    @classmethod
    def empty(cls, tokens: int, width: int, row_state_width: int = 0, *, like: Any = None, dtype: str = "float32") -> Features:
        """Memory for the features of so many tokens: torch's on the device of `like` if that is a torch tensor, else numpy's."""
        return cls(
            empty(like, (tokens, width), dtype), empty(like, (tokens, width), "int32"), empty(like, (tokens,), "int32"),
            empty(like, (tokens, row_state_width), "float32") if row_state_width else None,
        )

    def __len__(self) -> int:
        """Tokens."""
        return int(shape(self.counts)[0])

    @property
    def width(self) -> int:
        """Slots per token."""
        return int(shape(self.values)[1])

    def row(self, token: int) -> list[tuple[int, float]]:
        """The latents that are listed for a token, with their activations."""
        used = [i for i, latent in enumerate(self.indices[token].tolist()) if latent >= 0]
        indices, values = self.indices[token].tolist(), self.values[token].tolist()
        return [(indices[i], values[i]) for i in used]

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        return (self.row(token) for token in range(len(self)))

    def dense(self, n_latents: int) -> Any:
        """The listed activations as `[T, n_latents]`, 0 elsewhere; NaN on tokens that were not finite."""
        out = empty(self.values, (len(self), n_latents + 1), self.values.dtype)
        out[:] = 0
        targets = self.indices.long() if is_torch(self.indices) else self.indices.astype(np.int64)
        targets = targets + (targets < 0) * (n_latents + 1)  # unused slots go into a last column, which is cut off
        if is_torch(out):
            out.scatter_(1, targets, self.values)
        else:
            np.put_along_axis(out, targets, self.values, 1)
        out[self.counts < 0] = float("nan")
        return out[:, :n_latents]

    def __repr__(self) -> str:
        return f"<libsae.Features of {len(self)} tokens, {self.width} slots each>"

    def _struct(self, name: str, *, write: bool, stream: int | None) -> Any:
        """As C sees them. Kept, but for arrays whose producers must be told the stream each time."""
        view = self._views.get(write)
        if view is None:
            view = _abi.sae_features()
            view.struct_size = _SIZE
            view.address = start = ctypes.addressof(view)
            view.keep, lasting = [], True
            for field, offset in _PLACES:
                array = getattr(self, field)
                if array is not None:
                    address, keep = borrow(field, array, write=write, stream=stream, within=name)
                    ctypes.memmove(start + offset, address, _TENSOR_SIZE)
                    view.keep.append(keep)
                    lasting = lasting and (type(array) is np.ndarray or is_torch(array))
            if lasting:
                self._views[write] = view
        return view


def check(name: str, features: object) -> Features:
    """That something is features."""
    if not isinstance(features, Features):
        raise InvalidTensor(f"{name}: expected libsae.Features, found {type(features).__name__}")
    return features
