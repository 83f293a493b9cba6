"""What the library has to say where no call can, in Python's log."""

from __future__ import annotations

import logging
from typing import Any

from . import _abi
from ._library import call, lib

LEVELS = {_abi.SAE_LOG_ERROR: logging.ERROR, _abi.SAE_LOG_WARNING: logging.WARNING, _abi.SAE_LOG_INFO: logging.INFO}

_callback: Any = None


def log_to(logger: logging.Logger | None = None, level: int = logging.WARNING) -> None:
    """Has everything from `level` up told to a logger, by default "libsae", for the whole process and for good. `BadState` the
    second time. Lines come on whatever thread has something to say."""
    global _callback
    target = logger or logging.getLogger("libsae")

    @_abi.sae_log_callback  # type: ignore[untyped-decorator]
    def tell(kind: int, message: bytes, length: int, _: Any) -> None:
        target.log(LEVELS.get(kind, logging.INFO), message[:length].decode("utf-8", "replace"))

    most = max((kind for kind, of in LEVELS.items() if of >= level), default=_abi.SAE_LOG_ERROR)
    call(lib.sae_log_set, tell, most, None)
    _callback = tell  # C keeps its address for good
