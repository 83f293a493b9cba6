"""What Python hands to a GPU's sessions, with a library in the driver's place that does everything on the processor."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_streams_and_graphs(tmp_path):
    library = tmp_path / "libcuda.so"
    subprocess.run(
        ["g++", "-std=c++17", "-O0", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-w", "-Wl,-soname,libcuda.so", "-I",
         ROOT / "src/backend/cuda/kernels", ROOT / "tests/cuda_driver/libcuda.cpp", "-o", library], check=True)
    done = subprocess.run([sys.executable, Path(__file__).with_name("on_fake_gpu.py"), library], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[1]) > 10
