"""Dead latents: 64 latents per dimension, trained with AuxK and without, and the share of them that never fires on rows held out.

The threshold for dead latents is the default, min(10,000,000, 5 % of the run). Where fewer than JUDGED rows of other documents are recorded,
rows of the training's documents that it did not come to are added, and counted.
"""

import itertools
import pathlib

import runs
import trainers
from measure import CHUNK, measure
from recording import Recording
from trainers import Task

WIDE, K, BATCH, RATE, SEEDS = 64, 32, 1024, 1e-3, (0, 1, 2)
JUDGED = 500_000


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
    added = min(max(0, JUDGED - len(held_out)), len(training) - task.tokens)
    rows = itertools.chain(held_out.chunks(CHUNK), training.chunks(CHUNK, task.tokens, task.tokens + added))
    return {**measure(library, model, rows, K, n), "held_out_rows_of_training_documents": added, **last, "n": n, "k": K, "rate": RATE, "batch": BATCH, **cost.figures()}


def more(parser):
    recording_options(parser)
    parser.add_argument("--tokens", type=int, nargs="+", default=[200_000, 2_000_000])


def recording_options(parser):
    parser.add_argument("--recording", type=pathlib.Path, default=runs.ROOT / "build" / "recordings" / "smollm2")


if __name__ == "__main__":
    runs.main("auxk", __doc__, specs, run, more)
