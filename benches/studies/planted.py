"""Planted features: libsae's trainer beside SAELens's own on the same synthetic activations, judged by SAELens's own functions.

Features fire by a Zipfian law, in a hierarchy (children with their parents alone, some of them exclusive), correlated with each other, four
times as many as the width has dimensions. Both trainers see the same rows in the same order, with the same batch, k, warm-up and decay;
each has the learning rate of its best F1 with seed 0 (ladder.py). What libsae trains is saved in SAELens's layout and loaded
by SAELens, which finds MCC and F1 on rows that neither saw.
"""

import tempfile

import numpy as np
import torch

import ladder
import runs
import trainers
from trainers import Task

FEATURES, WIDTH, SAMPLES, BATCH = 1024, 256, 1_000_000, 1024
FIRST_RATE, SEEDS, RECIPES = 3e-3, (0, 1, 2), ("top_k", "batch_top_k", "matryoshka")
TRAINERS, JUDGED = ("sae-lens", "libsae"), 100_000
PREFIXES = [64, 128, 256, 512, 1024]


def synthetic():
    from sae_lens.synthetic import HierarchyConfig, LowRankCorrelationConfig, SyntheticModel, SyntheticModelConfig, ZipfianFiringProbabilityConfig

    return SyntheticModel(SyntheticModelConfig(
        num_features=FEATURES, hidden_dim=WIDTH, seed=0, bias=True,
        firing_probability=ZipfianFiringProbabilityConfig(exponent=0.7, max_prob=0.3, min_prob=0.005),
        hierarchy=HierarchyConfig(total_root_nodes=32, branching_factor=4, max_depth=2, mutually_exclusive_portion=0.5, compensate_probabilities=True),
        correlation=LowRankCorrelationConfig(rank=16, correlation_scale=0.1, seed=0),
        std_firing_magnitudes=0.3,
    ))


def activations(folder):
    """The training rows, made once: `[SAMPLES, WIDTH]` f32, mapped; and how many features a row has."""
    path = folder / "planted" / "rows.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        model = synthetic()
        torch.manual_seed(1)
        part = path.with_name("rows.part.npy")
        rows, active = np.lib.format.open_memmap(part, "w+", np.float32, (SAMPLES, WIDTH)), 0
        for start in range(0, SAMPLES, 8192):
            x, features = model.sample_with_features(min(8192, SAMPLES - start))
            rows[start : start + len(x)] = x.detach().numpy()
            active += int((features > 0).sum())
        rows.flush()
        (path.parent / "l0.txt").write_text(str(active / SAMPLES))
        part.rename(path)
    return np.load(path, mmap_mode="r"), float((path.parent / "l0.txt").read_text())


def specs(arguments):
    def of(recipe, trainer, rate, seed):
        return {"recipe": recipe, "trainer": trainer, "rate": rate, "seed": seed}

    for recipe in RECIPES:
        for trainer in TRAINERS:
            yield from ladder.climb(lambda: tried(arguments, recipe, trainer), FIRST_RATE, lambda rate: of(recipe, trainer, rate, 0))  # noqa: B023
        for seed in SEEDS[1:]:
            for trainer in TRAINERS:
                if rate := ladder.best(tried(arguments, recipe, trainer), FIRST_RATE):
                    yield of(recipe, trainer, rate, seed)


def tried(arguments, recipe, trainer):
    """1 - F1 by rate, with seed 0."""
    results = runs.finished("planted", arguments.folder).values()
    return {r["spec"]["rate"]: 1 - r["f1"] for r in results if (r["spec"]["recipe"], r["spec"]["trainer"], r["spec"]["seed"]) == (recipe, trainer, 0)}


def train_sae_lens(recipe, task, batches, folder):
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    make, config, more = {
        "top_k": (TopKTrainingSAE, TopKTrainingSAEConfig, {}),
        "batch_top_k": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {}),
        "matryoshka": (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig, {"matryoshka_widths": PREFIXES}),
    }[recipe]
    torch.manual_seed(task.seed)
    sae = make(config(k=task.k, d_in=task.d, d_sae=task.n, **more))
    run = SAETrainerConfig(
        total_training_samples=task.tokens, train_batch_size_samples=task.batch, lr=task.learning_rate, lr_end=task.learning_rate,
        lr_warm_up_steps=task.warm, lr_decay_steps=int(trainers.DECAY * task.steps), dead_feature_window=task.steps // 20,
    )
    SAETrainer(run, sae, batches()).fit()
    sae.save_inference_model(folder)


def run(library, spec, arguments):
    from sae_lens import SAE
    from sae_lens.synthetic import eval_sae_on_synthetic_data

    rows, l0 = activations(arguments.folder)
    steps = SAMPLES // BATCH
    task = Task(WIDTH, FEATURES, round(l0), steps, BATCH, spec["rate"], spec["seed"], spec["recipe"])

    def batches():
        return (torch.from_numpy(np.array(rows[i * BATCH : (i + 1) * BATCH])) for i in range(steps))

    with tempfile.TemporaryDirectory() as folder:
        with runs.Cost() as cost:
            if spec["trainer"] == "libsae":
                sample = torch.from_numpy(np.array(rows[:32768]))
                model, _ = trainers.libsae(library, task, batches(), sample)
                layout = library.ffi.new("char[]", b"saelens")
                library.call("sae_model_save", model, folder.encode(), library.options("sae_save_options", format=layout))
            else:
                train_sae_lens(spec["recipe"], task, batches, folder)
        sae = SAE.load_from_disk(folder)
    model = synthetic()
    torch.manual_seed(2)
    judged = eval_sae_on_synthetic_data(sae, model.feature_dict, model.activation_generator, JUDGED, 4096).to_dict()
    found = judged.pop("classification")
    return {
        "mcc": judged["mcc"], "f1": found["f1_score"], "precision": found["precision"], "recall": found["recall"], "uniqueness": judged["uniqueness"],
        "explained_variance": judged["explained_variance"], "l0": judged["sae_l0"], "true_l0": judged["true_l0"], "never_fire": judged["dead_latents"],
        "k": task.k, **cost.figures(),
    }


if __name__ == "__main__":
    runs.main("planted", __doc__, specs, run)
