"""Operators for torch, which torch.compile takes as they are, and `SAE`, a module with the names that users of SAELens know.

The operators (`torch.ops.libsae.*`) take the number that `number(session)` gives. They run on torch's current stream, wait for
nothing and read no tensor's content on the host, so they can be captured into CUDA graphs: with the `_out` forms and `steer_`
outside of torch's own memory pool too. Edits stand outside graphs: `Session.set_edits` changes what later launches do.

Gradients: `decode` passes them to `values` (and through a skip path to `x`); a token's mean and scale count as constants. The
others have none, and say so when a gradient is asked of them; detach their input, or use `torch.no_grad()`.
"""

from .module import SAE
from .operators import Sparse, number

__all__ = ["SAE", "Sparse", "number"]
