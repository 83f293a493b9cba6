"""The C library from Python, bound through its own header: what the compiler makes of sae.h is what is called."""

import re
import subprocess

import cffi

FLOAT = {"torch.float32": (2, 32), "torch.float16": (2, 16), "torch.bfloat16": (4, 16), "torch.int32": (0, 32)}


class Library:
    def __init__(self, header, library):
        source = subprocess.run(["cc", "-E", "-P", header], check=True, capture_output=True, text=True).stdout
        source = source[source.index("typedef struct sae_"):]  # the system's own headers come before
        source = re.sub(r"_Static_assert\s*\(.*?\);", "", source, flags=re.S)
        self.ffi = cffi.FFI()
        self.ffi.cdef("typedef int32_t sae_status;\n" * ("int32_t sae_status;" not in source) + source)
        self.c = self.ffi.dlopen(library)

    def call(self, name, *arguments):
        """Calls a fallible function; its error becomes an exception."""
        error = self.ffi.new("sae_error **")
        if getattr(self.c, name)(*arguments, error):
            message = self.ffi.string(self.c.sae_error_message(error[0])).decode()
            self.c.sae_error_free(error[0])
            raise RuntimeError(f"{name}: {message}")

    def options(self, kind, **fields):
        """A sized struct with the given fields, the rest zero."""
        struct = self.ffi.new(f"{kind} *")
        struct.struct_size = self.ffi.sizeof(kind)
        for name, value in fields.items():
            setattr(struct, name, value)
        return struct

    def make(self, function, kind, *arguments):
        """Calls a function that makes an object; it is freed with the last reference."""
        out = self.ffi.new(f"{kind} **")
        self.call(function, *arguments, out)
        return self.ffi.gc(out[0], getattr(self.c, f"{kind}_free"))

    def tensor(self, value):
        """A view of a contiguous torch tensor, which must stay alive as long."""
        assert value.is_contiguous()
        shape = self.ffi.new("int64_t[]", list(value.shape))
        view = self.ffi.new("sae_tensor *")
        view.data = self.ffi.cast("void *", value.data_ptr())
        view.device.device_type = 1
        view.ndim = value.dim()
        view.dtype.code, view.dtype.bits = FLOAT[str(value.dtype)]
        view.dtype.lanes = 1
        view.shape = shape
        self.keep(view, (shape, value))
        return view

    def keep(self, owner, what):
        self.__dict__.setdefault("kept", []).append((owner, what))
