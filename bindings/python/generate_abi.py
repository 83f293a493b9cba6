"""Writes `_abi.py`, the whole of sae.h for ctypes: `generate_abi.py sae.h _abi.py`.

The header is made by a machine and so is regular enough for regular expressions; whatever they do not understand is an
error. What comes out is held against a C compiler's sizes and offsets by tests/test_abi.py.
"""

import re
import sys
from pathlib import Path

SCALARS = {
    "int32_t": "c_int32", "uint32_t": "c_uint32", "int64_t": "c_int64", "uint64_t": "c_uint64", "uint8_t": "c_uint8",
    "uint16_t": "c_uint16", "size_t": "c_size_t", "float": "c_float", "double": "c_double", "sae_status": "c_int32",
    "void": "None",
}
HEAD = '''"""sae.h for ctypes. Made by generate_abi.py; do not edit."""

from ctypes import CFUNCTYPE, POINTER, Structure
from ctypes import c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any
'''


class Header:
    def __init__(self, text: str) -> None:
        self.constants = re.findall(r"^#define (SAE_\w+) (-?\d+)$", text, re.M)
        code = re.sub(r"//.*|^#(?:.*\\\n)*.*", "", text, flags=re.M)  # neither comments nor directives
        code = code[code.index("typedef struct sae_error"):]
        self.opaque = set(re.findall(r"typedef struct (\w+) \1;", code))
        self.callbacks = re.findall(r"typedef (\w+) \(\*(\w+)\)\((.*?)\);", code, re.S)
        self.structs = re.findall(r"typedef struct (\w+) \{(.*?)\} \1;", code, re.S)
        self.functions = re.findall(r"^([\w ]+?[ *]+)(sae_\w+)\(([^()]*)\);", code, re.M)
        rest = re.sub(r"typedef struct \w+ \{.*?\} \w+;", "", code, flags=re.S)
        known = len(self.opaque) + len(self.callbacks) + len(self.functions) + 1  # and sae_status
        if rest.count(";") != known:
            raise SystemExit(f"sae.h: of {rest.count(';')} declarations, {known} are understood")

    def type(self, text: str, *, field: bool) -> str:
        """The ctypes name of a C type. Pointers are addresses, but texts, and in fields arrays of numbers and options."""
        name, stars = text.replace("const", "").replace("*", "").strip(), text.count("*")
        structs, callbacks = [s for s, _ in self.structs], [c for _, c, _ in self.callbacks]
        if stars == 1 and name == "char":
            return "c_char_p"
        if stars == 1 and field and (name in ("int64_t", "uint32_t", "float") or name == "sae_convention"):
            return f"POINTER({SCALARS.get(name, name)})"
        if stars and (name in SCALARS or name in structs or name in self.opaque or name == "char"):
            return "c_void_p"
        if not stars and name in SCALARS:
            return SCALARS[name]
        if not stars and (name in callbacks or (field and name in structs)):
            return name
        raise SystemExit(f"sae.h: the type {text!r} is not known")

    def arguments(self, text: str) -> str:
        parts = [re.fullmatch(r"(.*?)\w+", " ".join(part.split())) for part in text.split(",")]
        if text.strip() == "void":
            return ""
        return ", ".join(self.type(part.group(1), field=False) for part in parts if part)

    def python(self) -> str:
        lines = [HEAD]
        lines += [f"{name} = {value}" for name, value in self.constants]
        for result, name, arguments in self.callbacks:
            lines.append(f"{name}: Any = CFUNCTYPE({self.type(result, field=False)}, {self.arguments(arguments)})")
        for name, body in self.structs:
            lines += ["", "", f"class {name}(Structure):", "    _fields_ = ["]
            for field in filter(None, map(str.strip, body.split(";"))):
                if callback := re.search(r"\(\*(\w+)\)", field):
                    lines.append(f'        ("{callback.group(1)}", c_void_p),')
                    continue
                found = re.fullmatch(r"(.*?)(\w+)(?:\[(\d+)\])?", " ".join(field.split()), re.S)
                if not found:
                    raise SystemExit(f"sae.h: the field {field!r} of {name} is not understood")
                of, base, count = found.groups()
                lines.append(f'        ("{base}", {self.type(of, field=True)}{" * " + count if count else ""}),')
            lines.append("    ]")
        lines += ["", "", "# Each function: what it returns, and takes.", "FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {"]
        for result, name, arguments in self.functions:
            lines.append(f'    "{name}": ({self.type(result, field=False)}, [{self.arguments(arguments)}]),')
        return "\n".join([*lines, "}", ""])


if __name__ == "__main__":
    header, out = map(Path, sys.argv[1:])
    out.write_text(Header(header.read_text(encoding="utf-8")).python(), encoding="utf-8")
