"""What a call costs in each language: the smallest calls there are, so that what a binding adds shows beside the library's own work.

The same programs in C, Go and Julia run one after another, several times over, and the fastest round of each counts: whatever else
the machine does only adds.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CALLS = ["encode", "decode", "steer"]


def programs(prefix, go, julia, out):
    """Builds what must be built; each language's command, and the environment for all."""
    env = dict(
        os.environ,
        PKG_CONFIG_PATH=f"{prefix}/lib/pkgconfig",
        LD_LIBRARY_PATH=f"{prefix}/lib",
        SAE_LIBRARY=f"{prefix}/lib/libsae.so",
        GOPROXY="off",
        GOTOOLCHAIN="local",
    )
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "libsae"], env=env, check=True, capture_output=True, text=True)
    subprocess.run(["gcc", "-std=c11", "-O2", HERE / "call.c", *flags.stdout.split(), "-o", f"{out}/call-c"], env=env, check=True)
    subprocess.run([go, "build", "-o", f"{out}/call-go", "."], cwd=HERE / "go", env=env, check=True)
    commands = {
        "C": [f"{out}/call-c"],
        "Go": [f"{out}/call-go"],
        "Julia": [julia, "--startup-file=no", f"--project={ROOT}/bindings/julia", HERE / "call.jl"],
    }
    return commands, env


def said(command, env):
    text = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    return {name: float(ns) for name, ns in re.findall(r"^(\w+) ([\d.]+)$", text, re.M)}


def versions(go, julia):
    ask = lambda *command: subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return {
        "C": ask("gcc", "-dumpfullversion"),
        "Go": ask(go, "env", "GOVERSION").removeprefix("go"),
        "Julia": ask(julia, "--startup-file=no", "-e", "print(VERSION)"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", type=pathlib.Path, default=ROOT / "build", help="where the library is installed")
    parser.add_argument("--go", default=ROOT / "build/go/bin/go")
    parser.add_argument("--julia", default=ROOT / "build/julia/julia")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build/bindings.json")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as out:
        commands, env = programs(options.prefix.resolve(), options.go, options.julia, out)
        measured = {language: [] for language in commands}
        for _ in range(options.times):
            for language, command in commands.items():
                measured[language].append(said(command, env))
    processor = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    result = {
        "what": "nanoseconds per call, one token, d = 8, 16 latents, k = 2, one thread",
        "processor": processor[1] if processor else "unknown",
        "load_average": os.getloadavg()[0],
        "versions": versions(options.go, options.julia),
        "calls": {
            call: {language: min(run[call] for run in runs) for language, runs in measured.items()}
            for call in CALLS
        },
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    for call, by_language in result["calls"].items():
        print(call, *(f"{language} {ns:.0f} ns (+{ns - by_language['C']:.0f})" for language, ns in by_language.items()), sep="  ")


if __name__ == "__main__":
    main()
