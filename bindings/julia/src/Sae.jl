"""
Sparse autoencoders (SAEs) on a language model's activations, by the C library libsae.

A [`Model`](@ref) holds weights and may be used by any number of tasks. A [`Session`](@ref) is one stream of work over a
model: one task at a time encodes, decodes and steers with it. A [`Trainer`](@ref) trains a new SAE, a [`Buffer`](@ref)
shuffles activations for it, and [`diagnose`](@ref) tells whether a model and activations fit.

**Layout.** What is `[tokens, d]` row by row in C is a matrix of size `(d, tokens)` here: a token is a column. Arrays go
to the library as they are, never copied: any strided array of `Float32`, `Float16` or `BFloat16` whose first dimension
is contiguous, views of columns included.

**Latents and slots are counted from 0**, as in the library, its files and every other language: latent `i` has column
`i + 1` of `W_dec`.

**Constants** have the names that they have in the header, such as `Sae.SAE_ARCHITECTURE_TOP_K`.

**Errors** are of type [`SaeError`](@ref), with the library's message: what was wrong, what was expected and what was
found. A call that fails leaves its outputs as they were.

**Lifetimes.** `close` frees an object once calls under way have ended. Objects in host memory that are no longer
reachable are freed by the garbage collector; those on a GPU must be closed, since freeing there at a moment that nobody
chose would disturb others' work.
"""
module Sae

using Libdl: Libdl

include("constants.jl")
include("c.jl")
include("errors.jl")
include("library.jl")
include("handle.jl")
include("tensor.jl")
include("scope.jl")
include("features.jl")
include("pool.jl")
include("log.jl")
include("model.jl")
include("session.jl")
include("steering.jl")
include("doctor.jl")
include("trainer.jl")
include("buffer.jl")

export Model, Session, Trainer, Buffer, Pool, Report, Features, Convention, BFloat16, DeviceArray, Run, Edit
export SaeError, InvalidArgument, InvalidTensor, Unsupported, FileError, FormatError, OutOfMemory, NoDevice, DeviceFault, NotFinite,
    BadState, InternalError, CollectiveError
export encode!, encode, encode_selected!, encode_dense!, decode!, decode, reconstruct!, steer!, set_edits!, merge_features!, active
export info, save, read_weights!, load_memory, session_memory, with_k, subset, prefix, with_threshold, fold_decoder_norms,
    fold_activation_scale
export diagnose, findings, start!, step!, set_rate!, progress, export_model, resume
export push_rows!, take_rows!, finish!, state, restore, buffer_memory

__init__() = load_library()

end
