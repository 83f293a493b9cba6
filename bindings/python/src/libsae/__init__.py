"""Sparse autoencoders (SAEs) on the activations of language models: load, encode, decode, steer and train.

    import numpy as np, libsae

    model = libsae.Model.load("sae.safetensors")
    session = model.session()
    features = session.encode(x)          # x: [T, d_in], numpy or torch, used where it lies
    x_hat = session.decode(features)
    session.set_edits(0, [libsae.Edit.scale(features.row(0)[0][0], 3.0)])
    steered = session.steer(x)

`libsae.torch` has operators for torch and torch.compile, and a module with the methods that users of SAELens know; `libsae.vllm`
and `libsae.nnsight` are adapters for those.
"""

from ._library import version
from .buffer import Buffer, BufferState
from .doctor import Finding, Report, doctor
from .errors import (
    BadState, DeviceFault, Error, FileError, FormatError, InternalError, InvalidArgument, InvalidTensor, NoDevice, NotFinite,
    OutOfMemory, Unsupported,
)
from .features import Features
from .log import log_to
from .model import Architecture, Convention, Info, LoadOptions, Memory, Model, ModelFlags, Normalization, formats
from .session import Edit, Pool, Run, Session, SessionOptions, kernels
from .trainer import Export, Progress, Recipe, Stats, Trainer, TrainOptions

__version__ = version()
__all__ = [
    "Architecture", "BadState", "Buffer", "BufferState", "Convention", "DeviceFault", "Edit", "Error", "Export", "Features",
    "FileError", "Finding", "FormatError", "Info", "InternalError", "InvalidArgument", "InvalidTensor", "LoadOptions", "Memory",
    "Model", "ModelFlags", "NoDevice", "Normalization", "NotFinite", "OutOfMemory", "Pool", "Progress", "Recipe", "Report", "Run",
    "Session", "SessionOptions", "Stats", "TrainOptions", "Trainer", "Unsupported", "doctor", "formats", "kernels", "log_to",
    "version",
]
