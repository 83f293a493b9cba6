"""Four trainers of TopK SAEs, each library's own, over the same batches: what they made, as the library's own weights are named.

`Task` says what is the same for all; how each is told is below, with what it leaves out. Peers give weights as `W_enc [n, d]`, `b_enc [n]`,
`W_dec [n, d]`, `b_dec [d]`, where b_dec is subtracted from the input, and their own way from activations to reconstructions, against which
those are checked.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

WARM, DECAY = 0.05, 0.2  # of the steps: the learning rate's rise, and its fall to 0


@dataclass
class Task:
    d: int
    n: int
    k: int
    steps: int
    batch: int
    learning_rate: float
    seed: int
    recipe: str = "top_k"
    aux: bool = True

    @property
    def tokens(self):
        return self.steps * self.batch

    @property
    def warm(self):
        return max(1, int(WARM * self.steps))

    @property
    def dead_after(self):
        return min(10_000_000, self.tokens // 20)


def libsae(library, task, batches, sample):
    """The trainer of this library, float32 as the others, on one thread. Its average of the weights is not kept, since the
    learning rate falls to 0 in the end."""
    constants = library.constants
    flags = constants["SAE_TRAIN_NO_EMA"] | (0 if task.aux else constants["SAE_TRAIN_NO_AUX"])
    options = library.options(
        "sae_train_options", d=task.d, n_latents=task.n, k=task.k, learning_rate=task.learning_rate, warmup_steps=task.warm,
        total_tokens=task.tokens, decay_fraction=DECAY, clip_norm=1.0, seed=task.seed, max_batch_tokens=task.batch, flags=flags,
        recipe=constants[f"SAE_RECIPE_{task.recipe.upper()}"],
    )
    return train(library, options, batches, sample)


def train(library, options, batches, sample):
    """A model by this library's trainer, and the last step's statistics."""
    trainer = library.make("sae_trainer_create", "sae_trainer", options)
    library.call("sae_trainer_init_from", trainer, library.tensor(sample))
    stats = library.options("sae_train_stats")
    for x in batches:
        batch = library.options("sae_train_batch", x=library.tensor(x))
        library.call("sae_train_step", trainer, library.ffi.NULL, batch, stats)
    model = library.make("sae_trainer_export", "sae_model", trainer, library.constants["SAE_EXPORT_WEIGHTS"])
    return model, {"dead_at_the_end": int(stats.dead), "fvu_of_the_last_batch": stats.fvu}


class Again:
    """Batches from the start, each time they are asked for, and `ahead` of them once more before: for trainers that measure norms first."""

    def __init__(self, batches, ahead=0):
        self.batches, self.ahead = batches, ahead

    def __iter__(self):
        for i, x in enumerate(self.batches()):
            if i == self.ahead:
                break
            yield x.float()
        for x in self.batches():
            yield x.float()


def sae_lens(task, batches):
    """SAETrainer.fit on a TopKTrainingSAE: AuxK against the unnormalised error, no projection of the decoder's gradient, its rows not
    of unit norm (scores are multiplied by their norms instead), Adam's epsilon 1e-8."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    ahead = 20
    torch.manual_seed(task.seed)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(
        k=task.k, d_in=task.d, d_sae=task.n, normalize_activations="expected_average_only_in",
        aux_loss_coefficient=1.0 if task.aux else 0.0,
    ))
    config = SAETrainerConfig(
        total_training_samples=task.tokens, train_batch_size_samples=task.batch, lr=task.learning_rate, lr_end=task.learning_rate,
        lr_warm_up_steps=task.warm, lr_decay_steps=int(DECAY * task.steps), dead_feature_window=task.steps // 20,
        n_batches_for_norm_estimate=ahead,
    )
    SAETrainer(config, sae, iter(Again(batches, ahead))).fit()
    state = {name: value.detach().clone() for name, value in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(state)
    return {"W_enc": state["W_enc"].T, **{name: state[name] for name in ("b_enc", "W_dec", "b_dec")}}, lambda x: sae.eval().decode(sae.encode(x))


def sparsify(task, batches, optimizer="adam"):
    """Trainer.fit: b_dec starts from the first batch's mean, no gradient clipping; with adam the learning rate falls linearly from the end of
    its rise to the end of the run; signum is schedule-free, of a constant rate."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    stream = iter(Again(batches))

    class Replay(torch.nn.Module):
        """A language model that hands out rows."""
        config, device = SimpleNamespace(num_hidden_layers=1), torch.device("cpu")
        dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Identity()])

        @property
        def base_model(self):
            return self

        def forward(self, input_ids):
            return self.layers[0](torch.zeros(1, 1, task.d) if input_ids.numel() == 1 else next(stream)[None])

    class Unsaved(Trainer):
        def save(self):
            pass

    tokens = [{"input_ids": torch.zeros(task.batch, dtype=torch.long)}] * task.steps
    config = TrainConfig(
        SparseCoderConfig(k=task.k, num_latents=task.n), batch_size=1, optimizer=optimizer, lr=task.learning_rate, lr_warmup_steps=task.warm,
        auxk_alpha=1 / 32 if task.aux else 0.0, dead_feature_threshold=task.dead_after, hookpoints=["layers.0"], init_seeds=[task.seed],
        log_to_wandb=False,
    )
    trainer = Unsaved(config, tokens, Replay())
    trainer.fit()
    for made in trainer.optimizers:
        if isinstance(made, ScheduleFreeWrapper):
            made.eval()
    (coder,) = trainer.saes.values()
    coder.set_decoder_norm_to_unit_norm()
    weights = {"W_enc": coder.encoder.weight, "b_enc": coder.encoder.bias, "W_dec": coder.W_dec, "b_dec": coder.b_dec}
    return {name: value.detach() for name, value in weights.items()}, lambda x: coder(x).sae_out


def dictionary_learning(task, batches):
    """trainSAE with its TopKTrainer, activations scaled to unit mean square norm. Its threshold for dead latents, 10,000,000 tokens, has no
    option; it is set here."""
    from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
    from dictionary_learning.training import trainSAE

    class Shorter(TopKTrainer):
        def __init__(self, **config):
            super().__init__(**config)
            self.dead_feature_threshold = task.dead_after

    config = {
        "trainer": Shorter, "steps": task.steps, "activation_dim": task.d, "dict_size": task.n, "k": task.k, "layer": 0, "lm_name": "",
        "lr": task.learning_rate, "auxk_alpha": 1 / 32 if task.aux else 0.0, "warmup_steps": task.warm,
        "decay_start": task.steps - int(DECAY * task.steps), "seed": task.seed, "device": "cpu",
    }
    with tempfile.TemporaryDirectory() as folder:
        trainSAE(Again(batches), [config], task.steps, save_dir=folder, normalize_activations=True, device="cpu")
        coder = AutoEncoderTopK.from_pretrained(Path(folder) / "trainer_0" / "ae.pt")
    weights = {"W_enc": coder.encoder.weight, "b_enc": coder.encoder.bias, "W_dec": coder.decoder.weight.T, "b_dec": coder.b_dec}
    return {name: value.detach() for name, value in weights.items()}, coder


PEERS = {
    "sae-lens": sae_lens, "sparsify": sparsify, "sparsify signum": lambda *given: sparsify(*given, optimizer="signum"),
    "dictionary_learning": dictionary_learning,
}
