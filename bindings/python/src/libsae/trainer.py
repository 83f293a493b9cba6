"""Training an SAE from activations as they flow by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypedDict

from . import _abi
from ._arrays import borrow, ints, optional
from ._library import Owner, call, lib
from ._options import fspath, struct
from .model import Convention, Model, convention_struct
from .session import Pool

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Recipe(IntEnum):
    """What is trained, and by which loss; docs/training.md tells them apart."""

    TOP_K = _abi.SAE_RECIPE_TOP_K
    MULTI_TOP_K = _abi.SAE_RECIPE_MULTI_TOP_K
    BATCH_TOP_K = _abi.SAE_RECIPE_BATCH_TOP_K
    MATRYOSHKA = _abi.SAE_RECIPE_MATRYOSHKA
    ABS_TOP_K = _abi.SAE_RECIPE_ABS_TOP_K
    RELU = _abi.SAE_RECIPE_RELU
    JUMP_RELU = _abi.SAE_RECIPE_JUMP_RELU
    GATED = _abi.SAE_RECIPE_GATED


class Export(IntEnum):
    """What is exported: the weights of the last step, or their moving average."""

    WEIGHTS = _abi.SAE_EXPORT_WEIGHTS
    EMA = _abi.SAE_EXPORT_EMA


class TrainOptions(TypedDict, total=False):
    """How a run is made; what is left out has its default. sae.h says more at `sae_train_options`."""

    d: int
    n_latents: int
    k: int
    recipe: Recipe
    layers: int  # of a crosscoder, whose batches are [T, layers, d]
    aux: bool  # the auxiliary loss on dead latents; True
    ema: bool  # the moving average of the weights; True
    transcoder: bool  # batches have targets
    skip: bool  # a transcoder's skip path
    d_out: int
    k_aux: int
    k_start: int
    k_anneal_steps: int
    max_batch_tokens: int
    total_tokens: int
    seed: int
    learning_rate: float
    warmup_steps: int
    decay_fraction: float
    dead_after_tokens: int
    aux_coefficient: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    clip_norm: float
    ema_decay: float
    normalization: int
    scaling: int
    prefixes: Sequence[int]
    prefix_weights: Sequence[float]
    sparsity_coefficient: float
    sparsity_warmup_steps: int
    resample_every: int
    penalty: int
    target_l0: float
    bandwidth: float
    initial_threshold: float
    frozen: int
    convention: Convention


@dataclass(frozen=True)
class Stats:
    """What a step tells. Losses, FVU and L0 are of its own tokens, under the weights they were computed with."""

    step: int
    tokens_seen: int
    tokens: int
    tokens_masked: int
    tokens_not_finite: int
    dead: int
    loss: float
    mse: float
    aux: float
    fvu: float
    l0: float
    dead_fraction: float
    grad_norm: float
    learning_rate: float
    applied: int
    sparsity: float
    resampled: int


@dataclass(frozen=True)
class Progress:
    """What a run is, and how far it has come; after `Trainer.resume` the host's data continues at `rows_given`."""

    d: int
    n_latents: int
    k: int
    max_batch_tokens: int
    total_tokens: int
    step: int
    tokens_seen: int
    rows_given: int
    started: int


class Trainer(Owner):
    """A training run: `Trainer(d=768, n_latents=16384, k=32)`, then `init_from` a sample, then `step` by `step`. For one
    thread at a time: a call while another runs raises `BadState`. Numbers do not depend on threads."""

    def __init__(self, *, threads: int = 1, pool: Pool | None = None, **options: Unpack[TrainOptions]) -> None:
        given, _keep = _train_options(dict(options), threads, pool)
        self._own("trainer", lib.sae_trainer_create, byref(given))

    @classmethod
    def resume(cls, folder: str | os.PathLike[str], *, threads: int = 1, pool: Pool | None = None, **options: Unpack[TrainOptions]) -> Trainer:
        """Continues a run from its last checkpoint, to the same bits. Options that are given must agree with it, but for threads
        and `max_batch_tokens`."""
        given, _keep = _train_options(dict(options), threads, pool)
        trainer = object.__new__(cls)
        trainer._own("trainer", lib.sae_trainer_resume, fspath(folder), byref(given))
        return trainer

    def init_from(self, sample: Any, target: Any = None) -> None:
        """Starts the run from some thousand tokens `[S, d]` that look like the rest; a transcoder's with their targets."""
        given, _sample = borrow("sample", sample)
        if target is None:
            call(lib.sae_trainer_init_from, self._handle, given)
        else:
            aim, _target = borrow("target", target)
            call(lib.sae_trainer_init_transcoder, self._handle, given, aim)

    def warm_start(self, model: Model, sample: Any, target: Any = None) -> None:
        """Starts the run from a model's weights."""
        given, _sample = borrow("sample", sample)
        if target is None:
            call(lib.sae_trainer_warm_start, self._handle, model._handle, given)
        else:
            aim, _target = borrow("target", target)
            call(lib.sae_trainer_warm_start_transcoder, self._handle, model._handle, given, aim)

    def step(self, x: Any, addend: Any = None, *, target: Any = None, row_mask: Any = None, accumulate: bool = False, flags: int = 0) -> Stats:
        """Trains on a batch `[T, d]`: one optimizer step, unless it accumulates. Tokens with 0 in `row_mask` `[T]` (int32) are
        left out. `flags`: `Run.FAST`, `Run.ROUND_SUM`."""
        views = [borrow("x", x), optional("addend", addend), optional("target", target),
                 optional("row_mask", None if row_mask is None else ints(x, row_mask))]
        batch = struct(_abi.sae_train_batch, dict(zip(("x", "addend", "target", "row_mask"), (address or None for address, _ in views))))
        batch.flags = _abi.SAE_BATCH_ACCUMULATE * accumulate
        stats = struct(_abi.sae_train_stats)
        run = struct(_abi.sae_run, dict(flags=flags))
        call(lib.sae_train_step, self._handle, byref(run), byref(batch), byref(stats))
        return Stats(*(getattr(stats, name) for name in Stats.__dataclass_fields__))

    def set_rate(self, rate: float) -> None:
        """From the next step on, learning rates are the schedule's times `rate`, until it is set again; checkpoints keep it."""
        call(lib.sae_trainer_set_rate, self._handle, rate)

    @property
    def progress(self) -> Progress:
        """What the run is, and how far it has come."""
        out = struct(_abi.sae_train_progress)
        call(lib.sae_trainer_progress, self._handle, byref(out))
        return Progress(*(getattr(out, name) for name in Progress.__dataclass_fields__))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Saves all that is needed to continue; whatever happens, the folder holds the last complete checkpoint."""
        call(lib.sae_trainer_save, self._handle, fspath(folder))

    def export(self, what: Export = Export.WEIGHTS) -> Model:
        """A model of what was trained so far."""
        return Model._made(lib.sae_trainer_export, self._handle, what)


def _train_options(options: dict[str, Any], threads: int, pool: Pool | None) -> tuple[Any, Any]:
    flags = _abi.SAE_TRAIN_NO_AUX * (not options.pop("aux", True)) | _abi.SAE_TRAIN_NO_EMA * (not options.pop("ema", True))
    flags |= _abi.SAE_TRAIN_TRANSCODER * options.pop("transcoder", False) | _abi.SAE_TRAIN_SKIP * options.pop("skip", False)
    weights = options.pop("prefix_weights", None)
    options["convention"] = convention_struct(options.pop("convention", None))
    if pool is None and threads != 1:
        pool = Pool(threads)
    given = struct(_abi.sae_train_options, {**options, "prefix_weights": weights, "flags": flags})
    held = None if pool is None else pool._handle  # lives on in the caller's hands, even where the pool is closed meanwhile
    if held is not None:
        given.pool = held._as_parameter_
    return given, held
