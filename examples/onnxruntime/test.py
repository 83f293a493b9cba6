"""Graphs with libsae's operators in ONNX Runtime: the bits of examples/data, every type, several runs at once, refusals.

    test.py LIBRARY DATA        LIBRARY: libsae_onnxruntime.so; DATA: examples/data
"""

import json
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from safetensors.numpy import save_file

LIBRARY, DATA = sys.argv[1], Path(sys.argv[2])
MODEL = str(DATA / "sae.safetensors")
D, K, N = 576, 16, 384
FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32


def value(name, type_=FLOAT, shape=None):
    return helper.make_tensor_value_info(name, type_, shape)


def session(nodes, inputs, outputs, threads=2):
    graph = helper.make_graph(nodes, "graph", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("libsae", 1)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(LIBRARY)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, domain="libsae", **({"model": MODEL} | attributes))


def expected(name, dtype, *shape):
    return np.fromfile(DATA / "expected" / name, dtype).reshape(shape)


def same(found, wanted):
    assert found.dtype == wanted.dtype and found.shape == wanted.shape, (found.dtype, found.shape, wanted.dtype, wanted.shape)
    assert found.tobytes() == wanted.tobytes(), f"{(found != wanted).sum()} of {found.size} numbers differ"


def refusal(run):
    try:
        run()
    except Exception as error:  # the runtime has no common class of its own
        return str(error)
    raise AssertionError("not refused")


X = np.load(DATA / "activations.npy")
INDICES, VALUES = expected("indices.i32", np.int32, 32, K), expected("values.f32", np.float32, 32, K)
COUNTS, X_HAT = expected("counts.i32", np.int32, 32), expected("x_hat.f32", np.float32, 32, D)
EDITS = np.fromfile(DATA / "expected" / "edits.raw", np.dtype([("feature", "<i4"), ("op", "<i4"), ("strength", "<f4"), ("limit", "<f4"), ("rest", "<u4", 4)]))
STEERED = expected("steered.f32", np.float32, 32, D)
EDIT_INPUTS = [value("features", INT32, ["e"]), value("ops", INT32, ["e"]), value("strengths", FLOAT, ["e"])]
EDIT_FEED = {"features": EDITS["feature"].copy(), "ops": EDITS["op"].copy(), "strengths": EDITS["strength"].copy()}
assert not EDITS["limit"].any() and not EDITS["rest"].any()


def encoding_and_decoding_give_the_expected_bits():
    graph = session(
        [node("SaeEncode", ["x"], ["values", "indices", "counts"]), node("SaeDecode", ["values", "indices", "counts"], ["x_hat"])],
        [value("x", FLOAT, ["t", D])],
        [value("values"), value("indices", INT32), value("counts", INT32), value("x_hat")],
    )
    for found, wanted in zip(graph.run(None, {"x": X}), (VALUES, INDICES, COUNTS, X_HAT)):
        same(found, wanted)
    # Other numbers of tokens than before, and more of them than the first session had room for.
    many = graph.run(None, {"x": np.tile(X, (9, 1))})
    same(many[3], np.tile(X_HAT, (9, 1)))
    assert graph.run(None, {"x": X[:0]})[0].shape == (0, K)
    bad = X.copy()
    bad[3, 7] = np.nan
    values, indices, counts, x_hat = graph.run(None, {"x": bad})
    assert counts[3] == -1 and (indices[3] == -1).all() and np.isnan(x_hat[3]).all()
    same(np.delete(x_hat, 3, 0), np.delete(X_HAT, 3, 0))


def batches_and_addends_and_widths():
    graph = session(
        [node("SaeEncode", ["x", "addend"], ["values", "indices", "counts"], width=5)],
        [value("x", FLOAT, ["b", "t", D]), value("addend", FLOAT, ["b", "t", D])],
        [value("values"), value("indices", INT32), value("counts", INT32)],
    )
    half = (X / 2).reshape(4, 8, D)
    values, indices, counts = graph.run(None, {"x": half, "addend": half})
    same(values, VALUES.reshape(4, 8, K)[..., :5].copy())
    same(indices, INDICES.reshape(4, 8, K)[..., :5].copy())
    same(counts, COUNTS.reshape(4, 8))


def steering_gives_the_expected_bits_and_follows_its_inputs():
    graph = session(
        [node("SaeSteer", ["x", "features", "ops", "strengths"], ["y"]), helper.make_node("Add", ["y", "y"], ["z"])],
        [value("x", FLOAT, ["t", D]), *EDIT_INPUTS],
        [value("y"), value("z")],
    )
    y, z = graph.run(None, {"x": X} | EDIT_FEED)
    same(y, STEERED)
    same(z, STEERED + STEERED)
    none = {name: array[:0] for name, array in EDIT_FEED.items()}
    same(graph.run(None, {"x": X} | none)[0], X)
    same(graph.run(None, {"x": X} | EDIT_FEED)[0], STEERED)


def each_row_has_its_slot():
    graph = session(
        [node("SaeSteer", ["x", "features", "ops", "strengths", "row_slot", "slots", "limits"], ["y"], slots=3)],
        [value("x", FLOAT, ["t", D]), *EDIT_INPUTS, value("row_slot", INT32, ["t"]), value("slots", INT32, ["e"]), value("limits", FLOAT, ["e"])],
        [value("y")],
    )
    rows = np.arange(32, dtype=np.int32) % 3 - 1  # nobody, slot 0, slot 1
    feed = {"x": X, "row_slot": rows, "slots": np.ones(len(EDITS), np.int32), "limits": np.zeros(len(EDITS), np.float32)} | EDIT_FEED
    (y,) = graph.run(None, feed)
    same(y, np.where((rows == 1)[:, None], STEERED, X))
    said = refusal(lambda: graph.run(None, feed | {"slots": np.full(len(EDITS), 3, np.int32)}))
    assert "slots[0]" in said and "found 3" in said, said


def half_precision_is_served():
    for onnx_type, numpy_type in ((TensorProto.FLOAT16, np.float16),):
        graph = session(
            [node("SaeEncode", ["x"], ["values", "indices", "counts"]), node("SaeSteer", ["x", "features", "ops", "strengths"], ["y"])],
            [value("x", onnx_type, ["t", D]), *EDIT_INPUTS],
            [value("values"), value("indices", INT32), value("y", onnx_type)],
        )
        narrow = X.astype(numpy_type)
        wide = session([node("SaeEncode", ["x"], ["values", "indices", "counts"])], [value("x", FLOAT, ["t", D])], [value("values"), value("indices", INT32)])
        values, indices, y = graph.run(None, {"x": narrow} | EDIT_FEED)
        for found, wanted in zip((values, indices), wide.run(None, {"x": narrow.astype(np.float32)})):
            same(found, wanted)
        assert y.dtype == numpy_type and not np.array_equal(y, narrow)
    # numpy has no bfloat16: the graph casts.
    graph = session(
        [
            helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.BFLOAT16),
            node("SaeEncode", ["narrow"], ["values", "indices", "counts"]),
            helper.make_node("Cast", ["narrow"], ["again"], to=FLOAT),
            node("SaeEncode", ["again"], ["v", "i", "c"]),
        ],
        [value("x", FLOAT, ["t", D])],
        [value("values"), value("v"), value("indices", INT32), value("i", INT32)],
    )
    values, v, indices, i = graph.run(None, {"x": X})
    same(values, v), same(indices, i)


def many_threads_share_a_session():
    graph = session(
        [node("SaeEncode", ["x"], ["values", "indices", "counts"]), node("SaeSteer", ["x", "features", "ops", "strengths"], ["y"])],
        [value("x", FLOAT, ["t", D]), *EDIT_INPUTS],
        [value("values"), value("y")],
    )
    failures = []

    def work(mine):
        try:
            for _ in range(20):
                values, y = graph.run(None, {"x": X} | (EDIT_FEED if mine % 2 else {name: array[:0] for name, array in EDIT_FEED.items()}))
                same(values, VALUES), same(y, STEERED if mine % 2 else X)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert not failures, failures[0]


def an_sae_large_enough_to_be_screened_is_served():
    n, d, k = 2048, 16, 4
    random = np.random.default_rng(0)
    w = random.standard_normal((n, d)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        weights = {"encoder.weight": w, "encoder.bias": np.zeros(n, np.float32), "W_dec": w, "b_dec": np.zeros(d, np.float32)}
        save_file(weights, Path(folder) / "sae.safetensors")
        Path(folder, "cfg.json").write_text(json.dumps({"d_in": d, "num_latents": n, "k": k, "activation": "topk", "normalize_decoder": False}))
        graph = session([node("SaeEncode", ["x"], ["v", "i", "c"], model=folder)], [value("x", FLOAT, ["t", d])], [value("v"), value("i", INT32)])
        x = random.standard_normal((100, d)).astype(np.float32)
        values, indices = graph.run(None, {"x": x})
    scores = x @ w.T
    largest = np.argsort(-scores, axis=1)[:, :k]
    assert (indices == largest).all() and np.allclose(values, np.take_along_axis(scores, largest, 1), rtol=1e-5)


def what_is_wrong_is_said():
    encode = lambda **attributes: session([node("SaeEncode", ["x"], ["v", "i", "c"], **attributes)], [value("x")], [value("v")])  # noqa: E731
    assert "missing.safetensors" in refusal(lambda: encode(model=str(DATA / "missing.safetensors")))
    assert "model" in refusal(lambda: session([helper.make_node("SaeEncode", ["x"], ["v", "i", "c"], domain="libsae")], [value("x")], [value("v")]))
    said = refusal(lambda: encode().run(None, {"x": X[:, :-1].copy()}))
    assert "576" in said and "575" in said, said
    assert "scalar" in refusal(lambda: encode().run(None, {"x": np.array(1, np.float32)}))
    decode = session([node("SaeDecode", ["v", "i", "c"], ["x"])], [value("v"), value("i", INT32), value("c", INT32)], [value("x")])
    said = refusal(lambda: decode.run(None, {"v": VALUES, "i": INDICES, "c": COUNTS[:-1]}))
    assert "counts" in said and "[32]" in said and "[31]" in said, said
    steer = session([node("SaeSteer", ["x", "features", "ops", "strengths"], ["y"])], [value("x"), *EDIT_INPUTS], [value("y")])
    said = refusal(lambda: steer.run(None, {"x": X} | EDIT_FEED | {"features": np.full(len(EDITS), N, np.int32)}))
    assert str(N) in said, said
    same(steer.run(None, {"x": X} | EDIT_FEED)[0], STEERED)  # and goes on


TESTS = [
    encoding_and_decoding_give_the_expected_bits,
    batches_and_addends_and_widths,
    steering_gives_the_expected_bits_and_follows_its_inputs,
    each_row_has_its_slot,
    half_precision_is_served,
    many_threads_share_a_session,
    an_sae_large_enough_to_be_screened_is_served,
    what_is_wrong_is_said,
]

if __name__ == "__main__":
    assert json.loads((DATA / "expected.json").read_text()), "the expected features"
    print(f"ONNX Runtime {ort.__version__}, onnx {onnx.__version__}")
    for test in TESTS:
        test()
        print(f"  ok   {test.__name__.replace('_', ' ')}")
