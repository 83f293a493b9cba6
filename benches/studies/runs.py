"""The runs of a study, one after another, each in a process of its own; one that has left its result is not made again.

A study is a module with SPECS(arguments), the runs as dicts of plain values, and RUN(library, spec, arguments), which makes one and gives what
was measured. A result is kept as FOLDER/STUDY/NAME.json with its spec, date, commit and command. Those of benches/results/STUDY.json
count as made too, so that a study goes on from a fresh checkout.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "benches" / "peers"), str(ROOT / "benches" / "trainer")]
os.environ |= {"SPARSIFY_DISABLE_TRITON": "1", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}


def name_of(spec):
    return "-".join(str(value) for value in spec.values()).replace("/", "_").replace(" ", "_")


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    part.replace(path)


def finished(study, folder):
    """Results by name: those in the folder, and those that are checked in."""
    kept = ROOT / "benches" / "results" / f"{study}.json"
    runs = json.loads(kept.read_text())["runs"] if kept.exists() else []
    runs += [json.loads(path.read_text()) for path in sorted((folder / study).glob("*.json"))]
    return {name_of(run["spec"]): run for run in runs}


def commit(library):
    """The last change of the sources before the library was built."""
    built = str(int(pathlib.Path(library).stat().st_mtime))
    command = ["git", "-C", ROOT, "log", "-1", "--format=%h", f"--before={built}", "--", "src"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


class Cost:
    """Wall and processor time, and the most memory of the process's own (pages of mapped files left out) beyond what was there before."""

    def __enter__(self):
        self.before = self.most = anonymous()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        self.start, self.cpu = time.perf_counter(), time.process_time()
        return self

    def watch(self):
        while not self.over.wait(0.02):
            self.most = max(self.most, anonymous())

    def __exit__(self, *_):
        self.seconds, self.cpu = time.perf_counter() - self.start, time.process_time() - self.cpu
        self.over.set()
        self.thread.join()

    def figures(self):
        return {"seconds": round(self.seconds, 2), "cpu_seconds": round(self.cpu, 2), "peak_mib": round((self.most - self.before) / 2**20, 1)}


def anonymous():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def main(study, doc, specs, run, more=lambda parser: None):
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default=str(ROOT / "build" / "lib" / "libsae.so"))
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "build" / "studies", help="where results and data are")
    parser.add_argument("--only", default="", help="runs whose name this regular expression finds")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so many")
    parser.add_argument("--list", action="store_true", help="say which runs there are, and which are made")
    parser.add_argument("--run", help="make this one run, in this process")
    more(parser)
    arguments = parser.parse_args()
    if arguments.run:
        return child(study, run, json.loads(arguments.run), arguments)
    started, done = time.monotonic(), finished(study, arguments.folder)
    for spec in specs(arguments):
        name = name_of(spec)
        if not re.search(arguments.only, name):
            continue
        if arguments.list or name in done:
            print(f"{'made' if name in done else 'to make':8} {name}", flush=True)
        elif time.monotonic() - started < 60 * arguments.minutes:
            print(f"making   {name}", flush=True)
            subprocess.run([sys.executable, *sys.argv, "--run", json.dumps(spec)], check=True)


def child(study, run, spec, arguments):
    import torch
    from libsae import Library

    torch.set_num_threads(1)
    library = Library(str(ROOT / "include" / "sae.h"), arguments.library)
    measured = run(library, spec, arguments)
    result = {"spec": spec, **measured, "date": datetime.date.today().isoformat(), "commit": commit(arguments.library),
              "command": f"make -C benches studies-{study}", "load": os.getloadavg()[1]}
    write(arguments.folder / study / f"{name_of(spec)}.json", result)
    print("        ", json.dumps(measured), flush=True)
