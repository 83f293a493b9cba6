"""The doctor: whether a model and activations fit, and if not, the likely fault."""

from __future__ import annotations

import json
from ctypes import byref
from dataclasses import dataclass
from typing import Any

from . import _abi
from ._arrays import borrow, ints, optional
from ._library import Owner, ask, call, lib
from ._options import struct, text
from .model import Model
from .session import Pool

VERDICTS = {
    _abi.SAE_VERDICT_FITS: "fits", _abi.SAE_VERDICT_DOUBTFUL: "doubtful", _abi.SAE_VERDICT_MISFIT: "misfit",
    _abi.SAE_VERDICT_CANNOT_TELL: "cannot tell",
}


@dataclass(frozen=True)
class Finding:
    """What was found, how bad it is, how it shows, and what to do. Codes are C's `SAE_FINDING_…`, severities 1 (a note) to 3."""

    code: int
    severity: int
    factor: float
    fvu_mended: float
    title: str | None
    evidence: str | None
    advice: str | None


class Report(Owner):
    """What the doctor says of a model and a sample of activations."""

    def __init__(self) -> None:
        raise TypeError("reports are made by libsae.doctor")

    @property
    def verdict(self) -> str:
        """"fits", "doubtful", "misfit" or "cannot tell"."""
        return VERDICTS.get(self._numbers.verdict, "unknown")

    @property
    def findings(self) -> list[Finding]:
        """The worst first, of equals the likeliest cause first."""
        found = []
        for i in range(self._numbers.n_findings):
            raw = struct(_abi.sae_finding)
            call(lib.sae_report_finding, self._handle, i, byref(raw))
            found.append(Finding(raw.code, raw.severity, raw.factor, raw.fvu_mended, text(raw.title), text(raw.evidence), text(raw.advice)))
        return found

    def json(self) -> Any:
        """The whole report, as JSON says it."""
        return json.loads(ask(lib.sae_report_json, self._handle))

    def __str__(self) -> str:
        return text(ask(lib.sae_report_text, self._handle)) or ""

    @property
    def _numbers(self) -> Any:
        out = struct(_abi.sae_report_info)
        call(lib.sae_report_get, self._handle, byref(out))
        return out


def doctor(
    model: Model, x: Any, *, target: Any = None, positions: Any = None, baseline: Report | None = None, pool: Pool | None = None, max_rows: int = 0
) -> Report:
    """Examines whether activations `x` `[T, d_in]` are what a model expects. Some thousand rows, of many contexts, are a good
    sample. `target` `[T, d_out]`: what a transcoder's output is compared with; `positions` `[T]`: each row's position in its
    context, -1 if unknown; `baseline`: a report of activations known to be good."""
    views = [borrow("x", x), optional("target", target), optional("positions", None if positions is None else ints(x, positions))]
    options = struct(_abi.sae_doctor_options, dict(target=views[1][0] or None, positions=views[2][0] or None, max_rows=max_rows))
    # The handles live on here, even where their owners are closed meanwhile.
    held = [(name, owner._handle) for name, owner in (("baseline", baseline), ("pool", pool)) if owner is not None]
    for name, handle in held:
        setattr(options, name, handle._as_parameter_)
    report = object.__new__(Report)
    report._own("report", lib.sae_doctor, model._handle, views[0][0], byref(options))
    return report
