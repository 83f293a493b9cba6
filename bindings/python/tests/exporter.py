"""Somebody else's arrays, as DLPack hands them over."""

import ctypes

from libsae import _abi


class Exporter:
    """Somebody else's array: knows DLPack, and nothing of numpy. Hands out its memory on a device that it may only claim."""

    def __init__(self, array, *, versioned=False, version=1, read_only=False, device=1, code=2):
        self.array, self.versioned, self.version, self.read_only, self.device, self.code = array, versioned, version, read_only, device, code
        self.streams, self.made = [], []

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self, **options):
        if "max_version" in options and not self.versioned:
            raise TypeError("max_version")
        self.streams.append(options.get("stream"))
        return capsule(self)


def capsule(exporter):
    class Plain(ctypes.Structure):
        _fields_ = [("tensor", _abi.sae_tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]

    class Versioned(ctypes.Structure):
        _fields_ = [("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
                    ("flags", ctypes.c_uint64), ("tensor", _abi.sae_tensor)]

    made = Versioned(major=exporter.version) if exporter.versioned else Plain()
    if exporter.versioned:
        made.flags = int(exporter.read_only)
    array = exporter.array
    dims = ctypes.c_int64 * array.ndim
    made.tensor = _abi.sae_tensor(
        data=array.ctypes.data, device=_abi.sae_device(exporter.device, 0), ndim=array.ndim, dtype=_abi.sae_dtype(exporter.code, 32, 1),
        shape=dims(*array.shape), strides=dims(*(s // array.itemsize for s in array.strides)))
    new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_New", ctypes.pythonapi))
    exporter.made.append(made)  # as long as the exporter
    exporter.name = ctypes.create_string_buffer(b"dltensor_versioned" if exporter.versioned else b"dltensor")
    return new(ctypes.addressof(made), ctypes.cast(exporter.name, ctypes.c_char_p), None)
