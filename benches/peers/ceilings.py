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
    """What an operation must at least do: bytes read, bytes read and written back, and operations of a kind."""

    read: float = 0
    update: float = 0
    operations: float = 0
    kind: str = "f32"


class Ceilings:
    def __init__(self, seconds=0.3):
        self.seconds = seconds
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
        """The best of some passes: GB/s over memory much larger than caches, and 10⁹ operations a second."""
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
        self.rates[str(threads)] = rates

    def reader(self, value, threads):
        """Reads a tensor once."""
        p, size = self.ffi.cast("void *", value.data_ptr()), value.nbytes
        return lambda: self.c.read_once(p, size, threads)

    def floor(self, work, threads):
        """The least time in milliseconds, and what sets it: `memory` or the kind of product."""
        rates = self.rates[str(threads)]
        memory = (work.read / rates["read_gb_s"] + work.update / rates["update_gb_s"]) / 1e6
        rate = rates.get(f"{work.kind}_gop_s")
        products = work.operations / rate / 1e6 if rate else 0.0
        return (memory, "memory") if memory >= products else (products, f"{work.kind} products")
