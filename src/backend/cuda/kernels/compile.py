"""Compiles the kernels for every target with NVRTC, which needs no GPU: `make kernels` writes compiled/, `make kernels-check`
makes everything anew and compares. The compiler's version is pinned in requirements.txt: its output is the same bytes anywhere."""

import argparse
import ctypes
import gzip
import pathlib
import re
import subprocess
import sys
import sysconfig
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
WHEELS = pathlib.Path(sysconfig.get_paths()["purelib"]) / "nvidia"
OPTIONS = ["--std=c++17", "--fmad=false", "--device-as-default-execution-space", f"-I{HERE}"]
# The virtual architecture goes into PTX, for GPUs that no cubin fits.
TARGETS = ["compute_80", "sm_80", "sm_90a", "sm_100a", "sm_120"]


class Nvrtc:
    def __init__(self):
        folder = WHEELS / "cuda_nvrtc" / "lib"
        ctypes.CDLL(next(folder.glob("libnvrtc-builtins.so.*")), mode=ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(folder / "libnvrtc.so.12")

    def call(self, name, *arguments):
        """Calls a function of the compiler's, which must succeed."""
        result = getattr(self.library, name)(*arguments)
        if result:
            self.library.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise RuntimeError(f"{name}: {self.library.nvrtcGetErrorString(result).decode()}")

    def output(self, program, kind):
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{kind}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{kind}", program, buffer)
        return buffer.raw

    def compile(self, source, target):
        program = ctypes.c_void_p()
        self.call("nvrtcCreateProgram", ctypes.byref(program), source, b"kernels.cu", 0, None, None)
        options = [option.encode() for option in [*OPTIONS, f"--gpu-architecture={target}"]]
        # Of what is wrong with the sources, the log says more than the result.
        failure = None
        try:
            self.call("nvrtcCompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*options))
        except RuntimeError as error:
            failure = error
        log = self.output(program, "ProgramLog").rstrip(b"\0").decode()
        if failure or log.strip():
            sys.exit(f"{target}: {failure or 'warnings'}\n{log}")
        code = self.output(program, "PTX").rstrip(b"\0") if target.startswith("compute") else self.output(program, "CUBIN")
        if not code:
            sys.exit(f"{target}: the compiler gave nothing")
        self.call("nvrtcDestroyProgram", ctypes.byref(program))
        return code


def resources(ptx, target):
    """What ptxas says each kernel takes: registers, spills, shared memory."""
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "kernels.ptx"
        source.write_bytes(ptx)
        ptxas = WHEELS / "cuda_nvcc" / "bin" / "ptxas"
        command = [ptxas, "-v", f"-arch={target}", source, "-o", pathlib.Path(folder) / "kernels.cubin"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    lines = []
    for entry in re.split(r"ptxas info\s+: Compiling entry function '", said)[1:]:
        name = entry.split("'")[0]
        find = lambda pattern: int((re.search(pattern, entry) or [0, "0"])[1])
        stack, stores, loads = (find(rf"(\d+) bytes {kind}") for kind in ["stack frame", "spill stores", "spill loads"])
        registers, shared = find(r"Used (\d+) registers"), find(r"(\d+) bytes smem")
        lines.append(f"{name:20} {registers:9} {stack:6} {stores:7} {loads:6} {shared:7}")
    return [f"{'kernel':20} registers  stack  stores  loads  shared", *sorted(lines)]


def make():
    nvrtc = Nvrtc()
    source = b'#include "all.cu"\n'
    files, report = {}, []
    for target in TARGETS:
        virtual = target.startswith("compute")
        files[f"{target}.{'ptx' if virtual else 'cubin'}.gz"] = nvrtc.compile(source, target)
        if not virtual:
            report += [f"{target}: what a thread takes, in registers and in bytes of stack and spills; shared bytes of a block", ""]
            report += [*resources(nvrtc.compile(source, target.replace("sm", "compute")), target), ""]
    files["report.txt"] = "\n".join(report).encode()
    return files


def unpacked(path):
    code = path.read_bytes()
    return gzip.decompress(code) if path.suffix == ".gz" else code


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="compare instead of writing")
    check = arguments.parse_args().check
    folder = HERE / "compiled"
    files = make()
    if check:
        found = {path.name for path in folder.iterdir()}
        stale = [name for name, code in files.items() if name not in found or unpacked(folder / name) != code]
        stale += found - set(files)
        if stale:
            sys.exit(f"not what the sources give: {', '.join(sorted(stale))}; make kernels")
        return
    folder.mkdir(exist_ok=True)
    for name, code in files.items():
        packed = gzip.compress(code, 9, mtime=0) if name.endswith(".gz") else code
        (folder / name).write_bytes(packed)
        print(f"{len(code):8} {len(packed):8} {name}")


main()
