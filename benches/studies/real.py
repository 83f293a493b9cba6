"""Real activations: this library's trainer beside sae-lens, sparsify and dictionary_learning on the same recorded rows in the same order.

TopK SAEs of the same n and k, with the same batch, rise and fall of the learning rate, and AuxK with the same threshold for dead
latents; trainers.py says what each does otherwise. Each has the learning rate that serves it best (ladder.py) on fewer tokens and seed 0,
judged on rows that the table is not made of. FVU is found by the same
inference for all. Memory is the process's own beyond what the imports took.
"""

import ladder
import runs
import trainers
from auxk import recording_options
from measure import CHUNK, measure, of_weights
from recording import Recording
from trainers import PEERS, Task

N, K, BATCH, SEEDS = 4608, 32, 1024, (0, 1, 2)
TUNED_ON, JUDGED_BY = 200_000, 50_000  # rows of training, and the first rows held out, that choose a rate
FIRST = {"sparsify signum": 1e-2}


def specs(arguments):
    def of(trainer, tokens, rate, seed):
        return {"model": arguments.recording.name, "trainer": trainer, "tokens": tokens, "rate": rate, "seed": seed}

    for trainer in ("libsae", *PEERS):
        yield from ladder.climb(lambda: tried(arguments, trainer), FIRST.get(trainer, 1e-3), lambda rate: of(trainer, TUNED_ON, rate, 0))  # noqa: B023
    for tokens in arguments.tokens:
        for seed in SEEDS:
            for trainer in ("libsae", *PEERS):
                if rate := ladder.best(tried(arguments, trainer), FIRST.get(trainer, 1e-3)):
                    yield of(trainer, tokens, rate, seed)


def tried(arguments, trainer):
    """FVU by rate, of what chooses a rate."""
    results = runs.finished("real", arguments.folder).values()
    return {
        r["spec"]["rate"]: r["fvu_to_choose"] for r in results
        if (r["spec"]["model"], r["spec"]["trainer"], r["spec"]["tokens"]) == (arguments.recording.name, trainer, TUNED_ON)
    }


def run(library, spec, arguments):
    training, held_out = (Recording(arguments.recording, part) for part in ("training", "held_out"))
    task = Task(training.d, N, K, spec["tokens"] // BATCH, BATCH, spec["rate"], spec["seed"])
    batches, sample = training.shuffled(task.tokens, BATCH, spec["seed"])
    if spec["trainer"] == "libsae":
        with runs.Cost() as cost:
            model, _ = trainers.libsae(library, task, batches(), sample)
    else:
        imports()
        with runs.Cost() as cost:
            weights, reconstruct = PEERS[spec["trainer"]](task, batches)
        model = of_weights(library, weights, K, reconstruct, sample[:256])
    chosen_by = measure(library, model, held_out.chunks(CHUNK, 0, JUDGED_BY), K, N)
    if spec["tokens"] == TUNED_ON:
        return {"fvu_to_choose": chosen_by["fvu"], **cost.figures()}
    saved = arguments.folder / "real" / f"{runs.name_of(spec)}.safetensors"
    saved.parent.mkdir(parents=True, exist_ok=True)
    library.call("sae_model_save", model, str(saved).encode(), library.ffi.NULL)
    return {**measure(library, model, held_out.chunks(CHUNK, JUDGED_BY), K, N), "n": N, "k": K, "batch": BATCH, **cost.figures()}


def imports():
    """What the peers import, before time and memory count."""
    import dictionary_learning.training, sae_lens.training.sae_trainer, sparsify  # noqa: E401, F401


def more(parser):
    recording_options(parser)
    parser.add_argument("--tokens", type=int, nargs="+", default=[400_000, 2_000_000])


if __name__ == "__main__":
    runs.main("real", __doc__, specs, run, more)
