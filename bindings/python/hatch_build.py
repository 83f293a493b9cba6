"""What the wheel has beside Python's files: the shared library and its header for ctypes, made while it is built.

The library is the one that the environment variable LIBSAE names, or is built by cargo. Since it is called by ctypes alone, one
wheel serves every Python."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NAME = {"darwin": "libsae.dylib", "win32": "sae.dll"}.get(sys.platform, "libsae.so")


class Version(MetadataHookInterface):
    """The crate's version."""

    def update(self, metadata):
        manifest = (ROOT / "Cargo.toml").read_text(encoding="utf-8")
        metadata["version"] = re.search(r'^version = "(.+)"$', manifest, re.M).group(1)


class Native(BuildHookInterface):
    """The files that are not Python's, and the platform they are for."""

    def initialize(self, version, build_data):
        folder = Path(self.directory) / "native"
        folder.mkdir(parents=True, exist_ok=True)
        header = folder / "_abi.py"
        subprocess.run([sys.executable, HERE / "generate_abi.py", ROOT / "include" / "sae.h", header], check=True)
        library = Path(os.environ.get("LIBSAE") or build())
        include = {header: "libsae/_abi.py", library.resolve(): f"libsae/{NAME}"}
        include.update({ROOT / f"LICENSE-{name}": f"libsae/LICENSE-{name}" for name in ("MIT", "APACHE")})
        build_data["force_include"].update({str(path): target for path, target in include.items()})
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + re.sub(r"[-.]", "_", sysconfig.get_platform())


def build():
    subprocess.run(["cargo", "build", "--release", "--lib"], cwd=ROOT, check=True)
    return ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / NAME
