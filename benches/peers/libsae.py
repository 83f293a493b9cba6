"""The C library from Python, bound through its own header: what the compiler makes of sae.h is what is called."""

import re
import subprocess
import weakref

import cffi

DTYPE = {"torch.float32": (2, 32), "torch.float16": (2, 16), "torch.bfloat16": (4, 16), "torch.int32": (0, 32)}


class Library:
    def __init__(self, header, library):
        text = open(header).read()
        self.constants = {name: int(value) for name, value in re.findall(r"^#define (SAE_\w+) (-?\d+)$", text, re.M)}
        source = subprocess.run(["cc", "-E", "-P", header], check=True, capture_output=True, text=True).stdout
        source = source[source.index("typedef struct sae_"):]  # the system's own headers come before
        source = re.sub(r"_Static_assert\s*\(.*?\);", "", source, flags=re.S)
        self.ffi = cffi.FFI()
        self.ffi.cdef("typedef int32_t sae_status;\n" * ("int32_t sae_status;" not in source) + source)
        self.c = self.ffi.dlopen(library)
        self.alive = weakref.WeakKeyDictionary()  # what an object of C's points to, as long as it lives

    def call(self, name, *arguments):
        """Calls a fallible function; its error becomes an exception."""
        error = self.ffi.new("sae_error **")
        if getattr(self.c, name)(*arguments, error):
            message = self.ffi.string(self.c.sae_error_message(error[0])).decode()
            self.c.sae_error_free(error[0])
            raise RuntimeError(f"{name}: {message}")

    def prepared(self, name, *arguments):
        """The same call again and again, at the least that Python costs; errors are looked for once."""
        function, null = getattr(self.c, name), self.ffi.NULL
        self.call(name, *arguments)

        def run():
            function(*arguments, null)

        return run

    def options(self, kind, **fields):
        """A sized struct with the given fields, the rest zero. Keeps alive what it points to."""
        struct = self.ffi.new(f"{kind} *")
        struct.struct_size = self.ffi.sizeof(kind)
        for name, value in fields.items():
            setattr(struct, name, value)
        self.alive[struct] = list(fields.values())
        return struct

    def make(self, function, kind, *arguments):
        """Calls a function that makes an object; it is freed with the last reference."""
        out = self.ffi.new(f"{kind} **")
        self.call(function, *arguments, out)
        return self.ffi.gc(out[0], getattr(self.c, f"{kind}_free"))

    def tensor(self, value):
        """A view of a contiguous torch tensor, which it keeps alive."""
        assert value.is_contiguous()
        shape = self.ffi.new("int64_t[]", list(value.shape))
        view = self.ffi.new("sae_tensor *")
        view.data = self.ffi.cast("void *", value.data_ptr())
        view.device.device_type = 1
        view.ndim = value.dim()
        view.dtype.code, view.dtype.bits = DTYPE[str(value.dtype)]
        view.dtype.lanes = 1
        view.shape = shape
        self.alive[view] = (shape, value)
        return view

    def model(self, architecture, weights, **description):
        """A model that borrows the matrices of `weights`, torch tensors by name."""
        views = [self.tensor(w) for w in weights.values()]
        names = [self.ffi.new("char[]", name.encode()) for name in weights]
        given = self.ffi.new("sae_named_tensor[]", len(views))
        for slot, name, view in zip(given, names, views):
            slot.name, slot.tensor = name, view[0]
        n, d = weights["W_enc"].shape
        desc = self.options(
            "sae_model_desc", architecture=self.constants[f"SAE_ARCHITECTURE_{architecture}"], d_in=d, n_latents=n, **description
        )
        options = self.options("sae_load_options", flags=self.constants["SAE_LOAD_BORROW"])
        model = self.make("sae_model_from_weights", "sae_model", desc, given, len(views), options)
        self.alive[model] = views
        return model

    def screens(self, model, size):
        """Whether a session of default options keeps a copy of W_enc as `size` bytes, by what it says it needs."""
        resident = []
        for flags in (0, self.constants["SAE_SESSION_NO_SCREEN"]):
            memory = self.options("sae_memory")
            self.call("sae_session_memory", model, self.options("sae_session_options", flags=flags), memory)
            resident.append(memory.resident)
        return resident[0] - resident[1] >= size

    def session(self, model, rows, pool, **fields):
        options = self.options("sae_session_options", max_tokens=rows, pool=pool, **fields)
        session = self.make("sae_session_create", "sae_session", model, options)
        self.alive[session] = (model, pool)
        return session

    def features(self, rows, width):
        """Memory for features: the struct, and its values, indices and counts."""
        import torch  # what only loads models does not need it

        values = torch.zeros(rows, width)
        indices = torch.zeros(rows, width, dtype=torch.int32)
        counts = torch.zeros(rows, dtype=torch.int32)
        views = [self.tensor(t) for t in (values, indices, counts)]
        struct = self.options("sae_features")
        struct.values, struct.indices, struct.counts = (view[0] for view in views)
        self.alive[struct] = views
        return struct, values, indices, counts
