"""Prints whose code is inside the compiled library, and under which licences: third_party.py TARGET.

The crates that the library is built of for the target, without those that only run while it is built, with the texts of their
licences as they ship them; of a crate that ships none, the name of its licence.
"""

import json
import pathlib
import subprocess
import sys


def metadata(target):
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--filter-platform", target]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def linked(found):
    """The packages whose code ends up in the library: from the root along ordinary dependencies, past procedural macros."""
    packages = {package["id"]: package for package in found["packages"]}
    nodes = {node["id"]: node for node in found["resolve"]["nodes"]}
    root = found["resolve"]["root"]
    seen, ahead = set(), [root]
    while ahead:
        here = ahead.pop()
        if here in seen or any("proc-macro" in target["kind"] for target in packages[here]["targets"]):
            continue
        seen.add(here)
        for dependency in nodes[here]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                ahead.append(dependency["pkg"])
    return sorted((packages[i] for i in seen - {root}), key=lambda package: (package["name"], package["version"]))


def texts(package):
    folder = pathlib.Path(package["manifest_path"]).parent
    names = ("LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE")
    return sorted(file for file in folder.iterdir() if file.is_file() and file.name.upper().startswith(names))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    packages = linked(metadata(sys.argv[1]))
    sysroot = pathlib.Path(subprocess.check_output(["rustc", "--print", "sysroot"], text=True).strip())
    print("libsae contains the following works of others, each under the licence named.\n")
    print("Rust's standard library: MIT OR Apache-2.0 (https://www.rust-lang.org)")
    for package in packages:
        if not package["license"]:
            sys.exit(f"{package['name']} {package['version']} names no licence: whether it may be passed on must be looked up")
        print(f"{package['name']} {package['version']}: {package['license']} ({package['repository'] or 'no address'})")
    # One text that many crates share is printed once, however its lines are broken.
    printed = {}

    def note(text, whose):
        printed.setdefault(" ".join(text.split()), (text.strip(), []))[1].append(whose)

    for package in packages:
        for file in texts(package):
            note(file.read_text(encoding="utf-8", errors="replace"), f"{package['name']} {package['version']}, {file.name}")
    standard = sysroot / "share/doc/rust/licenses/MIT.txt"
    if standard.exists():
        note(standard.read_text(), "Rust's standard library")
    for text, whose in printed.values():
        print("\n" + "-" * 100)
        print("\n".join(whose))
        print("-" * 100 + "\n")
        print(text)


if __name__ == "__main__":
    main()
