"""Recorded activations, as `demo record --shard` of examples/llama_cpp leaves them: `PART-0000.npy`, … of `[rows, d]` f16, mapped."""

import numpy as np
import torch

SAMPLE = 32768  # rows that a run starts from


class Recording:
    def __init__(self, folder, part):
        self.shards = [np.load(path, mmap_mode="r") for path in sorted(folder.glob(f"{part}-[0-9][0-9][0-9][0-9].npy"))]
        if not self.shards:
            raise SystemExit(f"{folder} holds no {part} rows: make -C benches studies-record makes them")
        self.starts = np.cumsum([0] + [len(shard) for shard in self.shards])
        self.d = self.shards[0].shape[1]

    def __len__(self):
        return int(self.starts[-1])

    def gather(self, rows):
        """These rows, `[len(rows), d]` f16."""
        x = np.empty((len(rows), self.d), np.float16)
        shard_of = np.searchsorted(self.starts, rows, "right") - 1
        for shard in np.unique(shard_of):
            here = shard_of == shard
            x[here] = self.shards[shard][rows[here] - self.starts[shard]]
        return torch.from_numpy(x)

    def chunks(self, size, first=0, end=None):
        """Rows from `first` to `end` as they lie, in chunks that are their own memory."""
        end = min(len(self), end or len(self))
        for start in range(first, end, size):
            yield self.gather(np.arange(start, min(start + size, end)))

    def shuffled(self, tokens, batch, seed):
        """A function that gives the batches of one pass over `tokens` of the first rows, and the sample that starts it."""
        if tokens > len(self):
            raise SystemExit(f"{tokens} rows are wanted, {len(self)} are recorded")
        order = np.random.default_rng(seed).permutation(tokens)

        def batches():
            return (self.gather(order[i : i + batch]) for i in range(0, tokens - batch + 1, batch))

        return batches, self.gather(order[:SAMPLE])
