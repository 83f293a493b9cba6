"""How well rows that were not trained on are explained, whoever trained: always by this library's own inference."""

import torch

CHUNK = 1024


def measure(library, model, chunks, width, n):
    """FVU, mean active latents and the share of latents that never fire, over chunks of at most CHUNK rows. No row may have more than
    `width` active latents."""
    pool = library.make("sae_pool_create", "sae_pool", 1)
    session = library.session(model, CHUNK, pool, max_width=width)
    fired, rows, active, error, squares, total = torch.zeros(n, dtype=torch.bool), 0, 0, 0.0, 0.0, 0.0
    for x in chunks:
        x_hat = torch.empty(x.shape)
        features, _, indices, counts = library.features(len(x), width)
        library.call("sae_reconstruct", session, library.ffi.NULL, library.tensor(x), library.ffi.NULL, features, library.tensor(x_hat))
        assert 0 <= counts.min() and counts.max() <= width, f"{counts.max()} latents are active, more than {width}"
        fired[indices[indices >= 0].long()] = True
        active += int(counts.sum())
        wide = x.double()
        error += float(((x_hat - wide) ** 2).sum())
        squares, total, rows = squares + float((wide**2).sum()), total + wide.sum(0), rows + len(x)
    variation = squares - float((total**2).sum()) / rows
    return {"fvu": error / variation, "l0": active / rows, "never_fire": 1 - float(fired.double().mean()), "held_out_rows": rows}


@torch.no_grad()
def of_weights(library, weights, k, reconstruct, x):
    """A TopK model of weights as trainers.py gives them, which reconstructs x as their own library does."""
    model = library.model("TOP_K", {name: value.contiguous() for name, value in weights.items()}, k=k)
    pool = library.make("sae_pool_create", "sae_pool", 1)
    x, x_hat = x.float(), torch.empty(x.shape)
    library.call("sae_reconstruct", library.session(model, len(x), pool), library.ffi.NULL, library.tensor(x), library.ffi.NULL, library.ffi.NULL, library.tensor(x_hat))
    theirs = reconstruct(x)
    # Where two latents nearly tie, rounding may choose another: that is rare, and small.
    apart = float((theirs - x_hat).norm() / theirs.norm())
    assert apart < 1e-3, f"the peer's own reconstruction is {apart:.1e} away from that of the weights read from it"
    return model
