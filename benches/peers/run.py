"""Our operations beside their peers, in one process, as ratios; ceilings of the machine in the same run. See docs/performance.md.

`--quick` shows that the program works; its figures mean nothing.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

os.environ |= {"SPARSIFY_DISABLE_TRITON": "1", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}

import torch

from ceilings import Ceilings, floor
from data import INPUTS, SHAPES, TRAINING_SHAPE
from inference import BF16, OURS, PLAIN, PLAIN_BF16, READ, Case
from libsae import Library
from training import Training
from turns import by_turns, summary

ROOT = Path(__file__).resolve().parents[2]
TOKENS = (1, 16, 256, 2048)
PACKAGES = ("torch", "sae-lens", "eai-sparsify", "dictionary-learning", "numpy")
ALL_OURS = (OURS, PLAIN, BF16, PLAIN_BF16)
TORCH = ("torch f32", "torch bf16")
COMPILED = ("torch.compile f32", "torch.compile bf16")
LIBRARIES = ("sae-lens", "sparsify")
TRAINERS = ("sparsify", "sparsify, signum", "sae-lens", "sae-lens, sparse", "dictionary_learning TopK", "dictionary_learning BatchTopK")


def plan(full):
    """What is measured: (operation, shape, tokens, inputs, threads, peers). The default leaves out what takes long and says little
    more: large batches of the widest SAEs, one thread beyond the first shape, all libraries beyond the shapes with a goal."""
    first, gemma = SHAPES[0], SHAPES[3]
    for shape in SHAPES:
        for tokens in TOKENS:
            goal = shape in (first, gemma)
            peers = ALL_OURS + TORCH + ((READ,) if tokens <= 16 else ())
            if shape == first:
                peers += COMPILED + LIBRARIES
            elif full or (shape == gemma and tokens == 256):
                peers += COMPILED[1:] + LIBRARIES
            if tokens == 2048 and shape != first and not full:
                peers = (OURS, BF16) + TORCH
            if full or (goal and (tokens > 1 or shape == first)) or tokens in (1, 256):
                yield "encode TopK", shape, tokens, "normal", 2, peers
            if full or (shape == first and tokens <= 256):
                yield "encode TopK", shape, tokens, "normal", 1, ALL_OURS + TORCH + ((READ,) if tokens <= 16 else ())
    for inputs in INPUTS[1:]:
        for shape in (first, gemma) if full else (first,):
            for tokens in (1, 256):
                yield "encode TopK", shape, tokens, inputs, 2, ALL_OURS + TORCH
    for operation, peer in (("encode JumpReLU", "sae-lens"), ("encode BatchTopK", "dictionary_learning")):
        for shape in (first, gemma):
            for tokens in (16, 256) if shape == first or full else (256,):
                peers = ("torch f32", peer) if shape == first or full else ("torch f32",)
                yield operation, shape, tokens, "normal", 2, peers
    for shape in (first, gemma):
        for tokens in (1, 256) if shape == first or full else (256,):
            for threads in (2, 1) if shape == first or full else (2,):
                peers = ("torch embedding_bag", "sparsify") + (("sae-lens",) if shape == first or full else ())
                yield "decode", shape, tokens, "normal", threads, peers
    for tokens in (1, 256):
        yield "steer by 16 features", first, tokens, "normal", 2, ("torch f32",)
    yield "train step", TRAINING_SHAPE, 2048, "normal", 2, TRAINERS
    yield "train step", TRAINING_SHAPE, 2048, "normal", 1, ("sparsify",)
    yield "train step, 5 % dead", TRAINING_SHAPE, 2048, "normal", 2, ("sparsify", "sae-lens", "dictionary_learning TopK")


def quick():
    small = (64, 1024, 8)
    for tokens in (1, 16):
        yield "encode TopK", small, tokens, "normal", 2, ALL_OURS + TORCH + LIBRARIES + (READ,)
    yield "encode TopK", small, 16, "normal", 1, ALL_OURS + TORCH + COMPILED
    yield "encode TopK", small, 16, "heavy-tailed, ties", 2, ALL_OURS + TORCH
    yield "encode JumpReLU", small, 16, "normal", 2, ("torch f32", "sae-lens")
    yield "encode BatchTopK", small, 16, "normal", 2, ("torch f32", "dictionary_learning")
    yield "decode", small, 16, "normal", 2, ("torch embedding_bag", "sparsify", "sae-lens")
    yield "steer by 16 features", small, 16, "normal", 2, ("torch f32",)
    yield "train step", small, 512, "normal", 2, TRAINERS
    yield "train step, 5 % dead", small, 512, "normal", 2, ("sparsify", "sae-lens", "dictionary_learning TopK")


def prepare(library, ceilings, entry, cases):
    """The contestants of an entry, and what ours must at least do. Keeps one SAE, for the entries after it."""
    operation, shape, tokens, inputs, threads, peers = entry
    extra = {}
    if operation.startswith("train step"):
        cases.clear()
        training = Training(library, shape, tokens, threads, dead="dead" in operation)
        contestants, works = training.contestants(peers)
        extra["dead_latents"] = training.dead_latents
        return contestants, works, extra
    if (shape, inputs) not in cases:
        cases.clear()
        gc.collect()
        cases[shape, inputs] = Case(library, ceilings, shape, inputs)
    case = cases[shape, inputs]
    if operation in ("encode JumpReLU", "encode BatchTopK"):
        return *case.threshold(tokens, threads, operation.split()[1], peers), extra
    name = {"encode TopK": "encode", "decode": "decode", "steer by 16 features": "steer"}[operation]
    return *getattr(case, name)(tokens, threads, peers), extra


def measure(library, ceilings, entry, cases, arguments):
    operation, shape, tokens, inputs, threads, _ = entry
    torch.set_num_threads(threads)
    torch._dynamo.reset()
    training = operation.startswith("train step")
    with torch.set_grad_enabled(training):
        contestants, works, extra = prepare(library, ceilings, entry, cases)
        times = by_turns(contestants, arguments.seconds, arguments.rounds, arguments.warm)
    group = {"operation": operation, "shape": shape, "tokens": tokens, "inputs": inputs, "threads": threads, **extra}
    group["times"] = {name: summary(taken) for name, taken in times.items()}
    group["work"] = {name: asdict(work) for name, work in works.items()}
    return group


def show(group, rates):
    shape, ours = tuple(group["shape"]), group["times"][OURS]["ms"]
    print(f"\n{group['operation']}, {shape}, {group['tokens']} tokens, {group['inputs']}, {group['threads']} threads", flush=True)
    for name, time_ in group["times"].items():
        bound = ""
        if name in group["work"]:
            ms, what = floor(rates[str(group["threads"])], group["work"][name])
            bound = f"   {100 * ms / time_['ms']:3.0f} % of the ceiling of {what}"
        print(f"  {name:<30}{time_['ms']:>11.3f} ms {time_['ms'] / ours:>8.2f} ×{bound}", flush=True)


def machine():
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    field = lambda name: next((l.split(":", 1)[1].strip() for l in cpu.splitlines() if l.startswith(name)), "")  # noqa: E731
    kinds = [f for f in field("flags").split() if f.startswith(("avx", "amx", "fma", "f16c"))] or field("Features").split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": field("model name") or platform.machine(), "cores": os.cpu_count(), "memory_gib": round(memory, 1), "instructions": kinds}


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", required=True, help="libsae.so")
    parser.add_argument("--out", type=Path, required=True, help="where the figures go, as JSON")
    parser.add_argument("--operations", help="only these: parts of their names, with commas")
    parser.add_argument("--shapes", help="only these: their number of latents, with commas")
    parser.add_argument("--tokens", help="only these numbers of tokens, with commas")
    parser.add_argument("--threads", help="only these numbers of threads, with commas")
    parser.add_argument("--seconds", type=float, default=3, help="for each group of contestants, or longer for --rounds")
    parser.add_argument("--rounds", type=int, default=5, help="the least number of calls of each")
    parser.add_argument("--warm", action="store_true", help="an unmeasured call before each, so that caches hold its own data")
    parser.add_argument("--full", action="store_true", help="every shape with every number of tokens and every peer; takes hours")
    parser.add_argument("--quick", action="store_true", help="small shapes: shows that the program works")
    return parser.parse_args()


def entries(arguments):
    """What of the plan was asked for, in an order that makes each SAE once."""
    chosen = lambda text, value: text is None or str(value) in text.split(",")  # noqa: E731
    some = [
        e for e in (quick() if arguments.quick else plan(arguments.full))
        if (arguments.operations is None or any(part in e[0] for part in arguments.operations.split(",")))
        and chosen(arguments.shapes, e[1][1]) and chosen(arguments.tokens, e[2]) and chosen(arguments.threads, e[4])
    ]
    # dictionary_learning last: it imports nnsight, which replaces functions of torch's for the whole process, so that every
    # call takes a little longer and torch.compile fails.
    late = lambda e: any(peer.startswith("dictionary_learning") for peer in e[5])  # noqa: E731
    return sorted(some, key=lambda e: (late(e), e[0].startswith("train"), SHAPES.index(e[1]) if e[1] in SHAPES else 9, e[3]))


def about(arguments):
    """What must be known of a run to judge its figures."""
    git = lambda *a: subprocess.run(["git", *a], cwd=ROOT, capture_output=True, text=True).stdout.strip()  # noqa: E731
    return {
        "date": datetime.now().isoformat(timespec="minutes"), "commit": git("rev-parse", "--short", "HEAD"),
        "changed_since": bool(git("status", "--porcelain", "--untracked-files=no")),
        "command": shlex.join(["make", "bench", *([f"ARGS={given}"] if (given := asked(arguments)) else [])]),
        "machine": machine(), "load_average_before": round(os.getloadavg()[0], 2),
        "caches": "warm: each call follows one of its own" if arguments.warm else "as others left them: before each call another of its group has run, each round in an order drawn anew",
        "quick": arguments.quick, "versions": {p: version(p) for p in PACKAGES} | {"python": platform.python_version()},
    }


def asked(arguments):
    """The options beyond the paths, which say nothing elsewhere."""
    parts, skip = [], False
    for part in sys.argv[1:]:
        if not skip and part not in ("--library", "--out"):
            parts.append(part)
        skip = part in ("--library", "--out")
    return shlex.join(parts)


def main():
    arguments = options()
    library, ceilings = Library(str(ROOT / "include/sae.h"), arguments.library), Ceilings()
    figures, started = about(arguments), time.time()
    todo, groups, left_out = entries(arguments), [], []
    all_threads = sorted({e[4] for e in todo} | {1})
    for threads in all_threads:
        ceilings.measure(threads)
        print(f"{threads} threads: " + ", ".join(f"{k} {v if isinstance(v, str) else round(v, 1)}" for k, v in ceilings.rates[str(threads)].items()), flush=True)
    figures |= {"ceilings": ceilings.rates, "groups": groups, "left_out": left_out}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    cases = {}
    for entry in todo:
        try:
            groups.append(measure(library, ceilings, entry, cases, arguments))
            show(groups[-1], ceilings.rates)
        except (MemoryError, RuntimeError) as error:  # torch says so when memory is short
            if "alloc" not in str(error).lower() and "memory" not in str(error).lower():
                raise
            left_out.append({"operation": entry[0], "shape": entry[1], "tokens": entry[2], "why": str(error).splitlines()[0]})
            print(f"left out: {left_out[-1]}", flush=True)
            cases.clear()
        if entry is todo[-1]:  # once more, lest the first time was disturbed
            for threads in all_threads:
                ceilings.measure(threads)
        figures |= {"minutes": round((time.time() - started) / 60, 1), "complete": len(groups) + len(left_out) == len(todo)}
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
