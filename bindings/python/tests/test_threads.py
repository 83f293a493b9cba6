"""Many threads, many objects, and nothing that grows."""

import gc
import threading

import numpy as np
import pytest
import torch

import libsae
from conftest import D, K, activations, make
from exporter import Exporter


def in_threads(count, work):
    failures = []

    def run(i):
        try:
            work(i)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


@pytest.mark.parametrize("shared", ["a model", "a session"])
def test_32_threads(shared):
    model = make()
    inputs = [activations(1 + i % 40, seed=i) for i in range(32)]
    expected = [model.session().encode(x) for x in inputs]
    one = model.session()

    def work(i):
        session = one if shared == "a session" else model.session()
        out = libsae.Features.empty(len(inputs[i]), K)
        for _ in range(100):
            session.encode(inputs[i], out=out)
            assert np.array_equal(out.values, expected[i].values) and np.array_equal(out.indices, expected[i].indices)

    in_threads(32, work)


def test_closing_waits_for_nobody_and_frees_nothing_in_use():
    model = make()
    x = activations(400)
    expected = model.session().encode(x).values
    for _ in range(8):
        session = model.session()
        done = 0

        def work(_, session=session):
            nonlocal done
            try:
                while True:
                    assert np.array_equal(session.encode(x).values, expected)
                    done += 1
            except libsae.BadState:
                pass

        closer = threading.Thread(target=lambda: (gc.collect(), session.close()))
        closer.start()
        in_threads(4, work)
        closer.join()


def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096


def test_10_000_objects_leave_nothing():
    x = activations(3)

    def cycle(times):
        for _ in range(times):
            with make() as model, model.session(threads=1) as session:
                session.decode(session.encode(x))
                try:
                    session.encode(x[:, :2])
                except libsae.InvalidTensor:
                    pass

    cycle(2000)
    gc.collect()
    before = resident()
    cycle(10_000)
    gc.collect()
    assert resident() - before < 4 << 20, f"grew by {resident() - before} bytes"


@pytest.mark.parametrize("fresh", [np.ones, torch.ones, lambda shape: Exporter(np.ones(shape, np.float32))], ids=["numpy", "torch", "other"])
def test_calls_keep_no_array(fresh):
    session = make().session(max_tokens=20_000)
    before = resident()
    for _ in range(100):
        x = fresh((10_000, D))  # 0.8 MB or 1.6
        try:
            session.encode_selected(x, [1])
        except libsae.InvalidTensor:
            assert isinstance(x, np.ndarray) and x.dtype == np.float64  # refused calls let go too
    del x
    gc.collect()
    assert resident() - before < 40 << 20
