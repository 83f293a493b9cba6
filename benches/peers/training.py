"""Who trains: whole steps of a TopK SAE by each library's own trainer, over the same weights and the same four batches in turn.

Learning rates are tiny, so that weights stay as they are, however many steps each contestant makes. Where latents shall be
dead, one in twenty has an encoder row that is too short to win, while half of its pre-activations are positive.
"""

import contextlib
import io
import itertools
from types import SimpleNamespace

import torch

from ceilings import Work
from data import activations, weights
from inference import OURS

CLIPPED, NO_AUX = "libsae, clipped", "libsae, AuxK off"
BATCHES, RATE = 4, 1e-9
DEAD_EVERY, DEAD_NORM = 20, 0.3
LONG_AGO = 20_000_000  # tokens, or steps: dead for every trainer


@contextlib.contextmanager
def silence():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


class Training:
    def __init__(self, library, shape, rows, threads, dead):
        self.lib, (self.d, self.n, self.k), self.rows, self.dead = library, shape, rows, dead
        self.w_dec = weights("normal", self.n, self.d)
        self.w_enc = self.w_dec.clone()
        if dead:
            self.w_enc[::DEAD_EVERY] *= DEAD_NORM
        self.x = [activations("normal", rows, self.d, seed) for seed in range(10, 10 + BATCHES)]
        self.pool = library.make("sae_pool_create", "sae_pool", threads)
        self.dead_latents = {}

    def contestants(self, peers):
        peer = {
            "sparsify": lambda: self.sparsify("adam"), "sparsify, signum": lambda: self.sparsify("signum"),
            "sae-lens": lambda: self.sae_lens(False), "sae-lens, sparse": lambda: self.sae_lens(True),
            "dictionary_learning TopK": lambda: self.dictionary_learning("TopK"),
            "dictionary_learning BatchTopK": lambda: self.dictionary_learning("BatchTopK"),
        }
        own = {OURS: lambda: self.ours(OURS), CLIPPED: lambda: self.ours(CLIPPED, clip_norm=1.0)}
        if self.dead:
            own[NO_AUX] = lambda: self.ours(NO_AUX, flags=self.lib.constants["SAE_TRAIN_NO_AUX"])
        made = {name: make() for name, make in (own | peer).items() if name in own or name in peers}
        return made, {name: self.work() for name in own}

    def work(self):
        """Scores of all latents, four sparse products, and one pass of Adam over both matrices and their moving averages. Where
        scores are screened, they are products of bytes, which Adam's pass rounds anew."""
        size, rows = self.n * self.d, self.rows
        scores, sparse, adam = 2 * rows * size, 4 * 2 * rows * self.k * self.d, 4 * 4 * 2 * size
        if self.lib.screens(self.lib.model("TOP_K", {"W_enc": self.w_enc, "W_dec": self.w_dec}, k=self.k), size):
            return Work(read=rows * self.d * 4, update=adam + size, int8=scores, f32=sparse)
        return Work(read=4 * size + rows * self.d * 4, update=adam, f32=scores + sparse)

    def ours(self, name, **fields):
        lib = self.lib
        options = lib.options(
            "sae_train_options", d=self.d, n_latents=self.n, k=self.k, learning_rate=RATE, max_batch_tokens=self.rows,
            dead_after_tokens=2 * BATCHES * self.rows if self.dead else 0, pool=self.pool, **fields,
        )
        trainer = lib.make("sae_trainer_create", "sae_trainer", options)
        model = lib.model("TOP_K", {"W_enc": self.w_enc, "W_dec": self.w_dec}, k=self.k)
        lib.call("sae_trainer_warm_start", trainer, model, lib.tensor(self.x[0]))
        batches = itertools.cycle([lib.options("sae_train_batch", x=lib.tensor(x)) for x in self.x])
        stats = lib.options("sae_train_stats")

        def step():
            lib.call("sae_train_step", trainer, lib.ffi.NULL, next(batches), stats)

        for _ in range(2 * BATCHES + 1 if self.dead else 1):
            step()
        assert abs(stats.dead_fraction - (1 / DEAD_EVERY if self.dead else 0)) < 0.01, f"{stats.dead_fraction} of the latents are dead"
        self.dead_latents[name] = stats.dead
        return step

    def sparsify(self, optimizer):
        """Its own Trainer.fit on data sets of one batch, without the checkpoint that ends each; the language model hands out rows."""
        from sparsify import SparseCoderConfig, TrainConfig, Trainer

        class Replay(torch.nn.Module):
            config, device = SimpleNamespace(num_hidden_layers=1), torch.device("cpu")
            dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

            def __init__(self, x):
                super().__init__()
                self.layers, self.x = torch.nn.ModuleList([torch.nn.Identity()]), x

            @property
            def base_model(self):
                return self

            def forward(self, input_ids):
                return self.layers[0](self.x[input_ids])

        class Batch(list):
            def select(self, _):
                return self

        class Unsaved(Trainer):
            def save(self):
                pass

        sae = SparseCoderConfig(k=self.k, num_latents=self.n)
        config = TrainConfig(
            sae, batch_size=1, optimizer=optimizer, lr=RATE, auxk_alpha=1 / 32 if self.dead else 0.0, hookpoints=["layers.0"], log_to_wandb=False,
        )
        model, data = Replay(self.x[0]), Batch([{"input_ids": torch.arange(self.rows)}])
        with silence():
            trainer = Unsaved(config, data, model)
        (name, coder), = trainer.saes.items()
        coder.encoder.weight.data.copy_(self.w_enc)
        coder.W_dec.data.copy_(self.w_dec)
        if self.dead:
            trainer.num_tokens_since_fired[name][::DEAD_EVERY] = LONG_AGO
        batches = itertools.cycle(self.x)

        def step():
            model.x = next(batches)
            with silence():
                trainer.fit()
            torch.set_float32_matmul_precision("highest")  # which it lowers for the whole process

        step()
        self.dead_latents[f"sparsify {optimizer}"] = int((trainer.num_tokens_since_fired[name] > config.dead_feature_threshold).sum())
        return step

    def sae_lens(self, sparse):
        """Its own SAETrainer.step, at its defaults; the sparse variant on the CPU cannot multiply by the decoder's norms too."""
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        sae = TopKTrainingSAE(TopKTrainingSAEConfig(
            k=self.k, d_in=self.d, d_sae=self.n, use_sparse_activations=sparse, rescale_acts_by_decoder_norm=not sparse
        ))
        sae.W_enc.data, sae.W_dec.data = self.w_enc.T.contiguous(), self.w_dec.clone()
        config = SAETrainerConfig(total_training_samples=10**12, train_batch_size_samples=self.rows, lr=RATE, lr_end=RATE)
        trainer = SAETrainer(config, sae, iter(()))
        if self.dead:
            trainer.n_forward_passes_since_fired[::DEAD_EVERY] = LONG_AGO
        batches = itertools.cycle(self.x)

        def step():
            trainer.step(next(batches))
            trainer.n_training_steps += 1

        step()
        self.dead_latents["sae-lens"] = int(trainer.dead_neurons.sum())
        return step

    def dictionary_learning(self, kind):
        """Its own trainer's update."""
        from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
        from dictionary_learning.trainers.top_k import TopKTrainer

        trainer = {"TopK": TopKTrainer, "BatchTopK": BatchTopKTrainer}[kind](
            steps=10**9, activation_dim=self.d, dict_size=self.n, k=self.k, layer=0, lm_name="", lr=RATE, device="cpu"
        )
        trainer.ae.encoder.weight.data.copy_(self.w_enc)
        trainer.ae.decoder.weight.data.copy_(self.w_dec.T)
        if self.dead:
            trainer.num_tokens_since_fired[::DEAD_EVERY] = LONG_AGO
        steps, batches = itertools.count(1), itertools.cycle(self.x)

        def step():
            trainer.update(next(steps), next(batches))

        step()
        self.dead_latents[f"dictionary_learning {kind}"] = int((trainer.num_tokens_since_fired >= trainer.dead_feature_threshold).sum())
        return step
