"""Every recipe at several n and k, or for recipes with a penalty at several coefficients: loss against n and k, on recorded activations."""

import runs
import trainers
from auxk import recording_options
from measure import CHUNK, measure
from recording import Recording

BATCH, RATE, SEED = 1024, 1e-3, 0
WIDTHS, ACTIVE = (2304, 4608, 9216), (16, 32, 64)  # n at the middle k, k at the middle n
COUNTED = ("top_k", "multi_top_k", "abs_top_k", "batch_top_k", "matryoshka")
# The middle one is used at every n. Loss parts are of activations scaled to a mean norm of √d.
COEFFICIENTS = {"relu": (2.5, 5.0, 10.0), "jump_relu": (0.3, 1.0, 3.0), "gated": (0.5, 1.0, 2.0)}
MOST_ACTIVE = 4096


def specs(arguments):
    for tokens in arguments.tokens:
        for recipe in (*COUNTED, *COEFFICIENTS):
            choices = ACTIVE if recipe in COUNTED else COEFFICIENTS[recipe]
            for n, choice in [(WIDTHS[1], choice) for choice in choices] + [(n, choices[1]) for n in (WIDTHS[0], WIDTHS[2])]:
                yield {"model": arguments.recording.name, "recipe": recipe, "n": n, "k_or_coefficient": choice, "tokens": tokens}


def run(library, spec, arguments):
    training, held_out = (Recording(arguments.recording, part) for part in ("training", "held_out"))
    counted, choice, steps = spec["recipe"] in COUNTED, spec["k_or_coefficient"], spec["tokens"] // BATCH
    options = library.options(
        "sae_train_options", d=training.d, n_latents=spec["n"], learning_rate=RATE, warmup_steps=max(1, int(trainers.WARM * steps)),
        total_tokens=steps * BATCH, decay_fraction=trainers.DECAY, clip_norm=1.0, seed=SEED, max_batch_tokens=BATCH,
        flags=library.constants["SAE_TRAIN_NO_EMA"], recipe=library.constants[f"SAE_RECIPE_{spec['recipe'].upper()}"],
        **({"k": choice} if counted else {"sparsity_coefficient": choice, "sparsity_warmup_steps": steps // 10}),
    )
    batches, sample = training.shuffled(steps * BATCH, BATCH, SEED)
    with runs.Cost() as cost:
        model, last = trainers.train(library, options, batches(), sample)
    exact = spec["recipe"] in ("top_k", "multi_top_k", "abs_top_k")
    width = choice if exact else min(spec["n"], MOST_ACTIVE)
    return {**measure(library, model, held_out.chunks(CHUNK, 0, 100_000), width, spec["n"]), **last, "rate": RATE, "batch": BATCH, **cost.figures()}


def more(parser):
    recording_options(parser)
    parser.add_argument("--tokens", type=int, nargs="+", default=[400_000])


if __name__ == "__main__":
    runs.main("recipes", __doc__, specs, run, more)
