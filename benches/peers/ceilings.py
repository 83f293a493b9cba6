"""What the machine can do at most, measured (ceilings.c), and what an operation must at least take under these ceilings."""

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cffi
import torch

KINDS = ("f32", "int8", "bf16")


@dataclass
class Work:
    """What an operation must at least do: bytes read, bytes read and written back, and operations of each kind."""

    read: float = 0
    update: float = 0
    f32: float = 0
    int8: float = 0


class Ceilings:
    def __init__(self):
        self.ffi = cffi.FFI()
        self.ffi.cdef("""
            double read_once(void *, size_t, int); double update_once(void *, size_t, int);
            const char *product_name(int); double product_rate(int, long, int);
        """)
        with tempfile.TemporaryDirectory() as folder:
            library = f"{folder}/ceilings.so"
            source = str(Path(__file__).with_name("ceilings.c"))
            subprocess.run(["cc", "-O3", "-shared", "-fPIC", "-fvisibility=hidden", "-o", library, source, "-lpthread"], check=True)
            self.c = self.ffi.dlopen(library)
        self.rates = {}

    def measure(self, threads):
        """The best of some passes, these and earlier ones: GB/s over memory much larger than caches, and 10⁹ operations a second."""
        memory = torch.ones(2**28 // 4)
        best = lambda rate: max(rate() for _ in range(7))  # noqa: E731
        p, size = self.ffi.cast("void *", memory.data_ptr()), memory.nbytes
        rates = {
            "read_gb_s": best(lambda: size / self.c.read_once(p, size, threads)) / 1e9,
            "update_gb_s": best(lambda: size / self.c.update_once(p, size, threads)) / 1e9,
        }
        for i, kind in enumerate(KINDS):
            name = self.c.product_name(i)
            if name != self.ffi.NULL:
                rates[f"{kind}_gop_s"] = best(lambda i=i: self.c.product_rate(i, 1_000_000, threads)) / 1e9
                rates[f"{kind}_instruction"] = self.ffi.string(name).decode()
        before = self.rates.get(str(threads), {})
        self.rates[str(threads)] = {k: v if isinstance(v, str) else max(v, before.get(k, 0.0)) for k, v in rates.items()}

    def reader(self, value, threads):
        """Reads a tensor once."""
        p, size = self.ffi.cast("void *", value.data_ptr()), value.nbytes
        return lambda: self.c.read_once(p, size, threads)


def floor(rates, work):
    """The least time in milliseconds for a `Work`'s fields, and what sets it: memory, or the kind of products that takes most."""
    memory = (work["read"] / rates["read_gb_s"] + work["update"] / rates["update_gb_s"]) / 1e6
    products = {kind: work[kind] / rates[f"{kind}_gop_s"] / 1e6 for kind in ("f32", "int8") if f"{kind}_gop_s" in rates}
    if memory >= (total := sum(products.values())):
        return memory, "memory"
    return total, f"{max(products, key=products.get)} products"
