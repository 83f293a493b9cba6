"""Dead latents: 64 latents per dimension, trained with AuxK and without, and the share of them that never fires on rows held out.

The threshold for dead latents is the default, min(10,000,000, 5 % of the run).
"""

import pathlib

import runs
import trainers
from measure import CHUNK, measure
from recording import Recording
from trainers import Task

WIDE, K, BATCH, RATE, SEEDS = 64, 32, 1024, 1e-3, (0, 1, 2)


def specs(arguments):
    for tokens in arguments.tokens:
        for seed in SEEDS:
            for aux in ("AuxK", "none"):
                yield {"model": arguments.recording.name, "aux": aux, "tokens": tokens, "seed": seed}


def run(library, spec, arguments):
    training, held_out = (Recording(arguments.recording, part) for part in ("training", "held_out"))
    n = WIDE * training.d
    task = Task(training.d, n, K, spec["tokens"] // BATCH, BATCH, RATE, spec["seed"], aux=spec["aux"] == "AuxK")
    batches, sample = training.shuffled(task.tokens, BATCH, spec["seed"])
    with runs.Cost() as cost:
        model, last = trainers.libsae(library, task, batches(), sample)
    return {**measure(library, model, held_out.chunks(CHUNK), K, n), **last, "n": n, "k": K, "rate": RATE, "batch": BATCH, **cost.figures()}


def more(parser):
    recording_options(parser)
    parser.add_argument("--tokens", type=int, nargs="+", default=[400_000, 2_000_000])


def recording_options(parser):
    parser.add_argument("--recording", type=pathlib.Path, default=runs.ROOT / "build" / "recordings" / "smollm2")


if __name__ == "__main__":
    runs.main("auxk", __doc__, specs, run, more)
