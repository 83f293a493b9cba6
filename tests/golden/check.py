"""Makes every golden anew, in a folder of its own, and compares with those that are checked in.

    python check.py

Models must be the same to the last bit; what oracles computed from them may differ by 1e-5 of the row's largest value,
since sums depend on the machine. So may the few weights that are not drawn but computed: logarithms, scales, whitening.
"""

import json
import math
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

HERE = Path(__file__).parent
TOLERANCE = 1e-5
COMPUTED_WEIGHTS = ("log_jumprelu_threshold", "log_threshold", "activation_global_scale", "matrix", "inverse_matrix")


def main() -> None:
    makers = sorted(path.name for path in HERE.glob("make_*.py"))
    with tempfile.TemporaryDirectory() as made, ThreadPoolExecutor(2) as pool:
        for path in HERE.glob("*.py"):
            shutil.copy(path, made)
        done = pool.map(lambda maker: make(Path(made), maker), makers)
        for number, maker in enumerate(done, 1):
            print(f"[{number}/{len(makers)}] {maker}", flush=True)
        kept, anew = files(HERE), files(Path(made))
        faults = [f"{name} is checked in, but no maker makes it" for name in sorted(kept - anew)]
        faults += [f"{name} is made, but not checked in" for name in sorted(anew - kept)]
        faults += filter(None, (compare(HERE / name, Path(made) / name) for name in sorted(kept & anew)))
    if faults:
        sys.exit("\n".join(faults) + f"\n{len(faults)} of {len(kept)} files differ: run the makers, and look at why")
    print(f"{len(kept)} files of {len(makers)} makers are as they were")


def make(folder: Path, maker: str) -> str:
    out = ["training.safetensors"] if maker == "make_training.py" else []
    run = subprocess.run([sys.executable, maker, *out], cwd=folder, capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"{maker} failed:\n{run.stderr[-3000:]}")
    return maker


def files(root: Path) -> set[str]:
    ours = (path for path in root.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
    return {str(path.relative_to(root)) for path in ours} - {"requirements.txt"}


def compare(kept: Path, anew: Path) -> str | None:
    """What is different, in words."""
    if kept.read_bytes() == anew.read_bytes():
        return None
    name = kept.relative_to(HERE)
    match kept.suffix:
        case ".json":
            return None if json.loads(kept.read_text()) == json.loads(anew.read_text()) else f"{name} differs"
        case ".safetensors":
            a, b = tensors_of(kept), tensors_of(anew)
        case ".pt" | ".pth":
            a, b = (flat(torch.load(path, weights_only=True)) for path in (kept, anew))
        case ".npz":
            a, b = (dict(np.load(path)) for path in (kept, anew))
        case _:
            return f"{name} differs"
    if a.keys() != b.keys():
        return f"{name} holds {sorted(a)}, made anew it holds {sorted(b)}"
    # Models lie in folders of their own; beside them, and at the top, is what was computed.
    computed = kept.suffix == ".safetensors" and kept.parent.parent in (HERE, HERE.parent)
    different = [key for key in a if not same(a[key], b[key], computed and key != "x" or key.split(".")[-1] in COMPUTED_WEIGHTS)]
    return f"{name}: {', '.join(different)} differ" if different else None


def tensors_of(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()} | {"metadata": file.metadata()}


def flat(value, path: str = "") -> dict:
    """The leaves of nested dictionaries and lists, by their paths."""
    if isinstance(value, dict):
        return {k: v for key, child in value.items() for k, v in flat(child, f"{path}.{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for key, child in enumerate(value) for k, v in flat(child, f"{path}.{key}").items()}
    return {path: value}


def same(a, b, computed: bool) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=True)
    if not isinstance(a, torch.Tensor):
        return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if not computed or not a.dtype.is_floating_point:
        return torch.equal(a, b)
    a, b = torch.atleast_1d(a.double()), torch.atleast_1d(b.double())
    rows = a.nan_to_num().reshape(a.shape[0], -1).abs().amax(1).reshape(-1, *[1] * (a.dim() - 1))
    return bool(((a - b).abs() <= TOLERANCE * rows).logical_or(a.isnan() & b.isnan()).all())


if __name__ == "__main__":
    main()
