"""Who encodes, decodes and steers: functions by name that all do the same on one SAE."""

import sys

import torch
from torch.nn.functional import embedding_bag, linear

from ceilings import Work
from data import activations, weights

OURS, BF16, PLAIN, PLAIN_BF16 = "libsae", "libsae bf16", "libsae, no screen", "libsae bf16, no screen"
PRODUCT, BY_VALUE = "libsae, nothing passes", "libsae, by value"
READ = "reading bf16 W_enc once"


class Case:
    """One SAE in all libraries, whose decoder is its encoder, and activations for it."""

    def __init__(self, library, ceilings, shape, inputs):
        self.lib, self.ceilings, self.shape, self.inputs = library, ceilings, shape, inputs
        self.d, self.n, self.k = shape
        self.w = weights(inputs, self.n, self.d)
        self.b_enc, self.b_dec = torch.zeros(self.n), torch.randn(self.d) / 10
        self.half = self.w.bfloat16()
        self.made = {}

    def once(self, name, make):
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    def ours(self, dtype=torch.float32, threshold=None):
        """The model in our library; TopK, or JumpReLU with the threshold."""
        matrix = self.w if dtype == torch.float32 else self.half
        tensors = {"W_enc": matrix, "W_dec": matrix, "b_enc": self.b_enc, "b_dec": self.b_dec}
        if threshold is None:
            return self.once(f"top_k {dtype}", lambda: self.lib.model("TOP_K", tensors, k=self.k))
        tensors["threshold"] = torch.full((self.n,), threshold)
        return self.once(f"jump_relu {dtype} {threshold}", lambda: self.lib.model("JUMP_RELU", tensors))

    def session(self, model, rows, threads, width=0, screen=True):
        pool = self.once(f"pool {threads}", lambda: self.lib.make("sae_pool_create", "sae_pool", threads))
        flags = 0 if screen else self.lib.constants["SAE_SESSION_NO_SCREEN"]
        return self.lib.session(model, rows, pool, max_width=width, flags=flags)

    def encoder(self, model, rows, threads, x, width, dtype=torch.float32, screen=True, order_index=False):
        """Our encode, what it wrote, and the least that it must do."""
        session = self.session(model, rows, threads, width, screen)
        out, values, indices, counts = self.lib.features(rows, width)
        run = self.lib.options("sae_run", flags=self.lib.constants["SAE_RUN_ORDER_INDEX"] if order_index else 0)
        call = self.lib.prepared("sae_encode", session, run, self.lib.tensor(x), self.lib.ffi.NULL, out)
        winners = indices[indices >= 0].unique().numel()
        screened = screen and self.lib.screens(model, self.n * self.d)
        # Screened: the bytes once, and of exact rows at least the winners'. Else every row, at its full precision.
        read = self.n * self.d + winners * self.d * dtype.itemsize if screened else self.n * self.d * dtype.itemsize
        work = Work(read=read + x.nbytes, **{"int8" if screened else "f32": 2 * rows * self.n * self.d})
        return call, (values, indices, counts), work

    def encode(self, rows, threads, peers):
        """TopK: all of ours, and those of `peers`."""
        x = activations(self.inputs, rows, self.d)
        contestants, works, found = {}, {}, {}
        for name, dtype, screen in ((OURS, torch.float32, True), (PLAIN, torch.float32, False), (BF16, torch.bfloat16, True), (PLAIN_BF16, torch.bfloat16, False)):
            if name in peers:
                contestants[name], found[name], works[name] = self.encoder(self.ours(dtype), rows, threads, x, self.k, dtype, screen)
        for name, plain in ((OURS, PLAIN), (BF16, PLAIN_BF16)):
            if plain in found:
                assert all(map(torch.equal, found[name], found[plain])), f"the screen changes {name}'s bits"
        for dtype, label, matrix in ((torch.float32, "f32", self.w), (torch.bfloat16, "bf16", self.half)):
            given, b_enc, b_dec = (t.to(dtype) for t in (x, self.b_enc, self.b_dec))

            def eager(given=given, matrix=matrix, b_enc=b_enc, b_dec=b_dec):
                return torch.topk(linear(given - b_dec, matrix, b_enc), self.k, sorted=False)

            if label == "f32" and self.d * self.n * rows < 2**36:
                expected = eager().values.sort(descending=True).values.relu()
                assert torch.allclose(found[OURS][0], expected, rtol=1e-3, atol=1e-3), "libsae and torch disagree"
            if f"torch {label}" in peers:
                contestants[f"torch {label}"] = eager
            if f"torch.compile {label}" in peers:
                contestants[f"torch.compile {label}"] = compiled(eager)
        if "sparsify" in peers:
            contestants["sparsify"] = lambda coder=self.sparsify(): coder.encode(x)
        if "sae-lens" in peers:
            contestants["sae-lens"] = lambda sae=self.sae_lens(): sae.encode(x)
        if READ in peers:
            contestants[READ] = self.ceilings.reader(self.half, threads)
        return contestants, works

    def threshold(self, rows, threads, architecture, peers):
        """JumpReLU, or BatchTopK, which is the same with one threshold; k latents pass on average. Ours list by index."""
        x = activations(self.inputs, rows, self.d)
        scores = linear(activations(self.inputs, 32, self.d, seed=3) - self.b_dec, self.w)
        threshold = float(scores.flatten().topk(32 * self.k).values[-1])
        model, none = self.ours(threshold=threshold), self.ours(threshold=float(scores.abs().max()) * 2)
        width = 8 * self.k
        contestants, works = {}, {}
        for name, given, order_index in ((OURS, model, True), (BY_VALUE, model, False), (PRODUCT, none, True)):
            contestants[name], (_, _, counts), works[name] = self.encoder(given, rows, threads, x, width, order_index=order_index)
            passed = counts.float().mean().item()
            assert passed == 0 if given is none else self.k / 4 < passed < 4 * self.k, f"{passed} latents a token"
        if "torch f32" in peers:
            contestants["torch f32"] = lambda: (lambda h: h * (h > threshold))(linear(x - self.b_dec, self.w, self.b_enc))
        if "sae-lens" in peers and architecture == "JumpReLU":
            contestants["sae-lens"] = lambda sae=self.sae_lens(threshold): sae.encode(x)
        if "dictionary_learning" in peers and architecture == "BatchTopK":
            contestants["dictionary_learning"] = lambda sae=self.dictionary_learning(threshold): sae.encode(x)
        return contestants, works

    def decode(self, rows, threads, peers):
        x = activations(self.inputs, rows, self.d)
        session = self.session(self.ours(), rows, threads, self.k)
        out, values, indices, _ = self.lib.features(rows, self.k)
        null = self.lib.ffi.NULL
        self.lib.call("sae_encode", session, null, self.lib.tensor(x), null, out)
        long = indices.long().clamp_min(0)
        contestants, works = {}, {}
        for name, dtype in ((OURS, torch.float32), (BF16, torch.bfloat16)):
            session = self.session(self.ours(dtype), rows, threads, self.k)
            x_hat = torch.zeros(rows, self.d)
            contestants[name] = self.lib.prepared("sae_decode", session, null, out, null, self.lib.tensor(x_hat))
            read = indices.unique().numel() * self.d * dtype.itemsize + values.nbytes + indices.nbytes
            works[name] = Work(read=read, update=x_hat.nbytes, f32=2 * rows * self.k * self.d)
            if dtype == torch.float32:
                expected = embedding_bag(long, self.w, per_sample_weights=values, mode="sum") + self.b_dec
                assert torch.allclose(x_hat, expected, rtol=1e-3, atol=1e-3), "libsae and torch disagree"
        if "torch embedding_bag" in peers:
            contestants["torch embedding_bag"] = lambda: embedding_bag(long, self.w, per_sample_weights=values, mode="sum") + self.b_dec
        if "sparsify" in peers:
            contestants["sparsify"] = lambda coder=self.sparsify(): coder.decode(values, long)
        if "sae-lens" in peers:
            dense = torch.zeros(rows, self.n).scatter_(1, long, values)
            contestants["sae-lens"] = lambda sae=self.sae_lens(): sae.decode(dense)
        return contestants, works

    def steer(self, rows, threads, peers):
        """16 features added to every token, in place."""
        ids = torch.arange(16) * (self.n // 16) + 3
        edits = self.lib.ffi.new("sae_edit[]", len(ids))
        for edit, feature in zip(edits, ids.tolist()):
            edit.feature, edit.op, edit.strength = feature, self.lib.constants["SAE_EDIT_ADD"], 1e-3
        session = self.session(self.ours(), rows, threads)
        self.lib.call("sae_set_edits", session, 0, edits, len(ids))
        ours, theirs = (activations(self.inputs, rows, self.d) for _ in range(2))
        null, coefficients = self.lib.ffi.NULL, torch.full((1, len(ids)), 1e-3)
        contestants = {OURS: self.lib.prepared("sae_steer", session, null, self.lib.tensor(ours), null, null)}
        if "torch f32" in peers:
            contestants["torch f32"] = lambda: theirs.add_(coefficients @ self.w[ids])
        return contestants, {OURS: Work(read=len(ids) * self.d * 4, update=ours.nbytes, f32=2 * len(ids) * self.d + rows * self.d)}

    # The peers' own objects, over the same weights where their layout allows it.

    def sparsify(self):
        from sparsify import SparseCoder, SparseCoderConfig

        def make():
            coder = SparseCoder(self.d, SparseCoderConfig(k=self.k, num_latents=self.n, normalize_decoder=False), device="meta")
            own = {"encoder.weight": self.w, "encoder.bias": self.b_enc, "W_dec": self.w, "b_dec": self.b_dec}
            coder.load_state_dict(own, assign=True)
            return coder.requires_grad_(False)

        return self.once("sparsify", make)

    def sae_lens(self, threshold=None):
        from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig

        def make():
            sizes = {"d_in": self.d, "d_sae": self.n, "dtype": "float32", "device": "meta"}  # no weights of its own
            own = {"W_enc": self.once("transposed", lambda: self.w.T.contiguous()), "W_dec": self.w, "b_enc": self.b_enc, "b_dec": self.b_dec}
            if threshold is None:
                sae = TopKSAE(TopKSAEConfig(k=self.k, **sizes))
            else:
                sae = JumpReLUSAE(JumpReLUSAEConfig(**sizes))
                own["threshold"] = torch.full((self.n,), threshold)
            for name, value in own.items():
                setattr(sae, name, torch.nn.Parameter(value, requires_grad=False))
            return sae.eval()

        return self.once(f"sae-lens {threshold}", make)

    def dictionary_learning(self, threshold):
        from dictionary_learning.trainers.batch_top_k import BatchTopKSAE

        def make():
            sae = BatchTopKSAE(self.d, self.n, self.k)
            sae.encoder.weight.data, sae.encoder.bias.data, sae.b_dec.data = self.w, self.b_enc, self.b_dec
            sae.threshold.fill_(threshold)
            return sae.eval().requires_grad_(False)

        return self.once("dictionary_learning", make)


def compiled(function):
    """Under torch.compile. What it cannot do on this machine is said and left out."""
    graph = torch.compile(function, dynamic=False, fullgraph=True)
    try:
        graph()
    except Exception as error:
        print(f"torch.compile failed: {error}", file=sys.stderr)
        raise
    return graph
