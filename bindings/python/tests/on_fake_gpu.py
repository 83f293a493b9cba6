"""Run by test_gpu.py in a process whose libcuda is the one of tests/cuda_driver: sessions on streams, and in a captured graph."""

import ctypes
import sys

import numpy as np

driver = ctypes.CDLL(sys.argv[1])  # under libcuda's own name, before anything looks for it
for name, value in {"version": 13000, "devices": 1, "major": 9, "minor": 0, "lazy": 1, "seed": 3}.items():
    driver.fake_set(name.encode(), ctypes.c_longlong(value))
driver.fake_fault.restype = ctypes.c_char_p
driver.fake_get.restype = ctypes.c_longlong
driver.fake_context(1)

import libsae  # noqa: E402
from conftest import D, K, activations, make  # noqa: E402
from exporter import Exporter  # noqa: E402


def stream():
    handle = ctypes.c_void_p()
    assert driver.cuStreamCreate(ctypes.byref(handle), 1) == 0
    return handle


def on_gpu(array, **options):
    """Memory that the fake device has too."""
    return Exporter(array, device=2, **options)


def features(tokens):
    arrays = np.zeros((tokens, K), np.float32), np.zeros((tokens, K), np.int32), np.zeros(tokens, np.int32)
    exported = [on_gpu(arrays[0]), on_gpu(arrays[1], code=0), on_gpu(arrays[2], code=0)]
    return arrays, exported, libsae.Features(*exported)


x = activations(3)
session = make().session(max_tokens=3)
edits = [libsae.Edit.add(3, 2.0), libsae.Edit.ablate(5)]
session.set_edits(0, edits)
expected, steered = session.encode(x), session.steer(x)

model = make(device="cuda:0")
assert model.info.device == "cuda:0"
gpu = model.session(max_tokens=3)
gpu.set_edits(0, edits)

# On the host's stream, the legacy default one, and a stream object; producers are told which.
own = stream()
for given, told in ((own.value, own.value), (None, 1)):
    arrays, exported, out = features(3)
    source, into = on_gpu(x), on_gpu(np.zeros((3, D), np.float32))
    assert gpu.encode(source, out=out, stream=given) is out
    gpu.steer(source, out=into, stream=given)
    assert {*source.streams, *into.streams, *exported[0].streams} == {told}
    gpu.wait()
    for found, name in zip(arrays, ("values", "indices", "counts")):
        assert np.array_equal(found, getattr(expected, name)), name
    assert np.array_equal(into.array, steered)
    decoded = on_gpu(np.zeros((3, D), np.float32))
    gpu.decode(out, out=decoded, stream=given)
    gpu.wait()
    assert np.array_equal(decoded.array, session.decode(expected))

# In a graph: captured once, launched with other activations and other edits.
arrays, exported, out = features(3)
source, into = on_gpu(np.zeros_like(x)), on_gpu(np.zeros((3, D), np.float32))
captured, graph, ready = stream(), ctypes.c_void_p(), ctypes.c_void_p()
assert driver.cuStreamBeginCapture_v2(captured, 0) == 0
gpu.encode(source, out=out, stream=captured.value)
gpu.steer(source, out=into, stream=captured.value)
assert driver.cuStreamEndCapture(captured, ctypes.byref(graph)) == 0
assert driver.cuGraphInstantiateWithFlags(ctypes.byref(ready), graph, ctypes.c_ulonglong(0)) == 0
assert not arrays[0].any()  # nothing ran yet
for seed in (1, 2):
    source.array[:] = activations(3, seed=seed)
    edits = [libsae.Edit.add(3, float(seed))]
    gpu.set_edits(0, edits)
    session.set_edits(0, edits)
    assert driver.cuGraphLaunch(ready, own) == 0
    gpu.wait()
    assert np.array_equal(arrays[0], session.encode(source.array).values) and np.array_equal(into.array, session.steer(source.array))

# What does not fit is refused by name.
for call, word in (
    (lambda: gpu.encode(x), "cuda"), (lambda: session.encode(on_gpu(x), out=out), "cuda"),
    (lambda: gpu.encode(on_gpu(x), out=out, stream="s"), "stream"), (lambda: make(device="cuda:4"), "cuda:4"),
):
    try:
        call()
    except libsae.Error as e:
        assert word in str(e), e
    else:
        raise AssertionError(word)

driver.cuGraphExecDestroy(ready)
driver.cuGraphDestroy(graph)
gpu.close()
model.close()
for handle in (own, captured):
    driver.cuStreamDestroy_v2(handle)
driver.fake_context(0)
faults = driver.fake_fault().decode()
assert not faults, faults
print("launches", driver.fake_get(b"launches"))
