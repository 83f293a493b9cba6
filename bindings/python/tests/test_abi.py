"""The header as ctypes has it is the header as a C compiler has it."""

import ctypes
import re
import subprocess
from pathlib import Path

from libsae import _abi
from libsae._library import lib

ROOT = Path(__file__).parents[3]
STRUCTS = {name: kind for name, kind in vars(_abi).items() if isinstance(kind, type) and issubclass(kind, ctypes.Structure) and kind is not ctypes.Structure}


def test_layouts_and_constants(tmp_path):
    lines = [f'printf("%zu\\n", sizeof({name}));' for name in STRUCTS]
    lines += [f'printf("%zu %zu\\n", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));' for name, kind in STRUCTS.items() for field, *_ in kind._fields_]
    constants = {name: value for name, value in vars(_abi).items() if name.startswith("SAE_")}
    lines += [f'printf("%lld\\n", (long long){name});' for name in constants]
    source = tmp_path / "layout.c"
    source.write_text('#include "sae.h"\n#include <stdio.h>\nint main(void) {\n' + "\n".join(lines) + "\nreturn 0; }\n")
    subprocess.run(["cc", "-I", ROOT / "include", source, "-o", tmp_path / "layout"], check=True)
    found = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True).stdout.splitlines()
    expected = [str(ctypes.sizeof(kind)) for kind in STRUCTS.values()]
    expected += [f"{getattr(kind, field).offset} {getattr(kind, field).size}" for kind in STRUCTS.values() for field, *_ in kind._fields_]
    expected += [str(value) for value in constants.values()]
    assert len(STRUCTS) >= 25 and found == expected


def test_every_symbol_has_a_prototype():
    symbols = (ROOT / "tests/capi/symbols.txt").read_text().split()
    assert set(symbols) == set(_abi.FUNCTIONS)
    assert all(hasattr(lib, name) for name in symbols)


def test_every_constant_is_there():
    header = (ROOT / "include/sae.h").read_text()
    defined = {name for name in re.findall(r"^#define (SAE_\w+) -?\d+$", header, re.M)}
    assert defined == {name for name in vars(_abi) if name.startswith("SAE_")} and len(defined) > 100
