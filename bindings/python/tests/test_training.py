"""Trainers, buffers and the doctor, as far as Python stands between."""

import threading
import time

import numpy as np
import pytest
import torch

import libsae
from conftest import activations, make, weights

D, N, K = 16, 64, 4


def planted(tokens, seed=0):
    """Tokens that are sums of a few of 32 directions."""
    random = np.random.default_rng(seed)
    directions = np.random.default_rng(99).standard_normal((32, D))
    codes = random.random((tokens, 32)) * (random.random((tokens, 32)) < 0.1)
    return (codes @ directions).astype(np.float32)


def test_a_run_learns_resumes_and_exports(tmp_path):
    trainer = libsae.Trainer(d=D, n_latents=N, k=K, learning_rate=3e-3, convention={"model_name": "planted"}, threads=2)
    trainer.init_from(planted(2000))
    first = trainer.step(planted(512, 1))
    for step in range(2, 60):
        last = trainer.step(torch.from_numpy(planted(512, step)))
    assert last.step == 59 and last.applied == 1 and last.fvu < first.fvu / 2
    trainer.save(tmp_path / "run")
    resumed = libsae.Trainer.resume(tmp_path / "run")
    assert resumed.progress == trainer.progress and resumed.progress.rows_given == 59 * 512
    assert resumed.step(planted(512, 60)) == trainer.step(planted(512, 60))
    weights, average = trainer.export(), trainer.export(libsae.Export.EMA)
    assert weights.info.model_name == "planted" and weights.info.k == K
    assert not np.array_equal(weights.read("W_enc"), average.read("W_enc"))
    assert np.array_equal(resumed.export().read("W_enc"), weights.read("W_enc"))


def test_options_reach_c():
    trainer = libsae.Trainer(d=D, n_latents=N, k=K, recipe=libsae.Recipe.MATRYOSHKA, prefixes=[16, 64], prefix_weights=[2.0, 1.0], ema=False, aux=False)
    trainer.init_from(planted(500))
    stats = trainer.step(planted(64), row_mask=[0] * 10 + [1] * 54, accumulate=True)
    assert (stats.tokens, stats.tokens_masked, stats.applied) == (54, 10, 0)
    assert trainer.export().info.prefixes == (16, 64)
    with pytest.raises(libsae.Error, match="average|EMA|ema"):
        trainer.export(libsae.Export.EMA)
    transcoder = libsae.Trainer(d=D, n_latents=N, k=K, transcoder=True, skip=True, d_out=6)
    transcoder.init_from(planted(500), planted(500, 1)[:, :6].copy())
    assert transcoder.step(planted(64), target=planted(64, 1)[:, :6].copy()).applied == 1
    assert transcoder.export().info.d_out == 6 and libsae.ModelFlags.HAS_SKIP in transcoder.export().info.flags
    crosscoder = libsae.Trainer(d=D // 2, layers=2, n_latents=N, k=K)
    crosscoder.init_from(planted(500).reshape(500, 2, D // 2))
    before = crosscoder.step(planted(64).reshape(64, 2, D // 2)).learning_rate
    crosscoder.set_rate(0.25)
    assert crosscoder.step(planted(64).reshape(64, 2, D // 2)).learning_rate == pytest.approx(before / 4)
    assert crosscoder.export().info.layers_in == 2
    warm = libsae.Trainer(d=D, n_latents=N, k=K)
    warm.warm_start(libsae.Model.from_weights(weights(N, D), architecture=1, k=K), planted(500))
    assert warm.progress.started == 1


@pytest.mark.parametrize("call, error, words", [
    (lambda: libsae.Trainer(d=D, n_latents=N), libsae.InvalidArgument, "k"),
    (lambda: libsae.Trainer(d=D, n_latents=N, k=K, speed=3), TypeError, "speed"),
    (lambda: libsae.Trainer(d=D, n_latents=N, k=K).step(planted(8)), libsae.BadState, "init_from|start"),
    (lambda: libsae.Trainer.resume("/nowhere"), libsae.FileError, "/nowhere"),
    (lambda: libsae.Buffer(seed=1), TypeError, "d, the width"),
    (lambda: libsae.Buffer(d=D, memory_bytes=1), libsae.Error, "memory_bytes|1"),
    (lambda: libsae.Buffer(d=D, memory_bytes=1 << 20).push(planted(3), documents=[1]), ValueError, "documents"),
])
def test_what_is_wrong_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_buffer_gives_every_row_once(tmp_path):
    rows = planted(3000)
    rows[:, 0] = np.arange(3000)
    buffer = libsae.Buffer(d=D, memory_bytes=1 << 17, seed=7)
    assert buffer.state.capacity < 3000 and buffer.take(8, wait=0).shape == (0, D)

    def produce():
        for start in range(0, 3000, 100):
            assert buffer.push(rows[start:start + 100]) == 100
        buffer.finish()

    producer = threading.Thread(target=produce)
    producer.start()
    seen = []
    while (batch := buffer.take(64)) is not None:
        seen.extend(batch[:, 0])
    producer.join()
    assert sorted(seen) == list(range(3000)) and seen != sorted(seen)
    assert buffer.state.taken == 3000 and buffer.state.closed == 1
    with pytest.raises(libsae.BadState, match="closed"):
        buffer.push(rows[:5])


def test_a_full_buffer_says_how_much_it_took():
    buffer = libsae.Buffer(d=D, memory_bytes=1 << 18)
    began = time.monotonic()
    taken = buffer.push(planted(9000), wait=0.05)
    assert taken == buffer.state.capacity and 0.04 < time.monotonic() - began
    rows = buffer.take(32, like=torch.empty(0))
    assert torch.is_tensor(rows) and rows.shape == (32, D)


def test_buffers_with_documents_are_saved_and_restored(tmp_path):
    options = dict(d=D, memory_bytes=1 << 20, seed=3, documents=True)
    buffer = libsae.Buffer(**options)
    buffer.push(planted(200), documents=range(200))
    buffer.save(tmp_path / "buffer")
    again = libsae.Buffer.restore(tmp_path / "buffer", **options)
    for one in (buffer, again):
        one.finish()
    (rows, documents), (rows2, documents2) = buffer.take(150), again.take(150)
    assert np.array_equal(rows, rows2) and np.array_equal(documents, documents2)
    assert np.array_equal(rows, planted(200)[documents])
    assert libsae.Buffer.memory(d=D, memory_bytes=1 << 20).capacity == libsae.Buffer(d=D, memory_bytes=1 << 20).state.capacity


def test_the_doctor_sees_a_wrong_scale():
    trainer = libsae.Trainer(d=D, n_latents=N, k=K, learning_rate=3e-3)
    trainer.init_from(planted(2000))
    for step in range(150):
        trainer.step(planted(512, step))
    model = trainer.export()
    good = libsae.doctor(model, planted(2000, 1000))
    bad = libsae.doctor(model, planted(2000, 1000) * 40, baseline=good)
    assert good.verdict == "fits" and bad.verdict != "fits"
    assert bad.findings and bad.findings[0].advice and bad.findings[0].title in str(bad)
    assert bad.json()


def test_what_c_logs_comes_in_python(tmp_path):
    import subprocess
    import sys

    make().save(tmp_path / "sae.safetensors")
    program = f"""if True:
        import logging, libsae
        logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
        libsae.log_to(level=logging.INFO)
        libsae.Model.load({str(tmp_path / "sae.safetensors")!r})
        try:
            libsae.log_to()
        except libsae.BadState as e:
            print("refused", e)
    """
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "libsae INFO" in done.stderr and "sae.safetensors" in done.stderr and "refused" in done.stdout
