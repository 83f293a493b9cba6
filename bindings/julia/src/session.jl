"What the hot calls of a session point to, made once so that they allocate nothing."
struct Frame
    x::Box
    addend::Box
    ids::Box
    y::Box
    out::Box
    features::FeaturesBox
    parts::Vector{FeaturesBox}
    merged::Vector{sae_features}
    run::Base.RefValue{sae_run}
    steering::Base.RefValue{sae_steering}
    error::Base.RefValue{Ptr{Cvoid}}
end

Frame() = Frame(
    Box(), Box(), Box(), Box(), Box(), FeaturesBox(), FeaturesBox[], sae_features[], Ref(sae_run()), Ref(sae_steering()),
    Ref{Ptr{Cvoid}}(C_NULL),
)

"""
    Session(model; max_tokens=512, max_width=0, slots=1, edits_per_slot=16, pool=nothing, flags=0, run_flags=0, kernels=nothing)

One stream of work over one model: working memory and the hot calls ([`encode!`](@ref), [`encode_selected!`](@ref),
[`encode_dense!`](@ref), [`decode!`](@ref), [`reconstruct!`](@ref), [`merge_features!`](@ref), [`set_edits!`](@ref),
[`steer!`](@ref)), which allocate nothing. One task at a time may use it; a call that comes while another runs is
refused with `BadState`. Sessions are independent of each other.

- `max_tokens`: the most tokens per call; more are an error, not a silent split
- `max_width`: the most slots per token in features; 0: k for TopK, else 1024, at most the model's latents
- `slots`, `edits_per_slot`: how many lists of edits there can be, and how many edits a list can have
- `pool`: a [`Pool`](@ref) that computes; `nothing`: the calling thread alone
- `flags`: `Sae.SAE_SESSION_…`; `run_flags`: `Sae.SAE_RUN_…` for every call
- `kernels`: the instruction set, one of [`Sae.kernels`](@ref); `nothing`: the fastest
"""
struct Session
    handle::Handle
    frame::Frame
    width::Int  # slots of new features
    row_state_width::Int
    d_out::Int
end

function Session(model::Model; pool=nothing, options...)
    scope = Scope()
    object = GC.@preserve scope holding(pool) do threads
        how = session_options(scope, threads; options...)
        @within model.handle create((out, error) -> sae_session_create(model.handle.object, how, out, error))
    end
    handle = Handle(object, "session", sae_session_free; exclusive=true, on_host=model.on_host)
    about = info(model)
    most = get(options, :max_width, 0)
    width = about.k > 0 ? (most > 0 ? min(about.k, most) : about.k) : min(about.n_latents, most > 0 ? most : 1024)
    return Session(handle, Frame(), width, about.row_state_width, about.d_out)
end

session_options(scope, threads; kernels=nothing, options...) =
    struct!(scope, sae_session_options(; pool=threads, kernels=text!(scope, "kernels", kernels), options...))

Base.close(session::Session) = close!(session.handle)

"""
    session_memory(model; options...)

What a [`Session`](@ref) with these options would need, in bytes.
"""
function session_memory(model::Model; pool=nothing, options...)
    scope = Scope()
    GC.@preserve scope holding(pool) do threads
        how = session_options(scope, threads; options...)
        @within model.handle natural(query((out, error) -> sae_session_memory(model.handle.object, how, out, error), sae_memory()))
    end
end

"""
    Run(; flags=0, stream_kind=0, stream=C_NULL, workspace=C_NULL, workspace_size=0)

How one call runs: `flags` are `Sae.SAE_RUN_…`, `stream_kind` is `Sae.SAE_STREAM_…`, `stream` the host's CUDA stream,
`workspace` working memory that the caller brings, aligned to 64 bytes (on a GPU 256).
"""
const Run = sae_run

run!(frame::Frame, ::Nothing) = Ptr{sae_run}(C_NULL)
run!(frame::Frame, run::sae_run) = (frame.run[] = run; Ptr{sae_run}(pointer_from_objref(frame.run)))

"""
    encode!(features, session, x; addend=nothing, run=nothing)

Sparse features of each token of `x`, of size `(d_in, tokens)`, or of `x + addend` (formed in `Float32`). A token that
is not finite gets none, and count -1; the call succeeds.
"""
function encode!(features::Features, session::Session, x; addend=nothing, run=nothing)
    f = session.frame
    @within session.handle GC.@preserve features x addend f begin
        how, input, more, out = run!(f, run), fill!(f.x, x), fill!(f.addend, addend), fill!(f.features, features)
        check(sae_encode(session.handle.object, how, input, more, out, f.error), f.error)
    end
    return features
end

"""
    encode(session, x; width=k, addend=nothing, run=nothing)

[`encode!`](@ref) into new [`Features`](@ref). Of a model that keeps no number of latents, `width` is by default the
session's most.
"""
encode(session::Session, x; width::Integer=session.width, options...) =
    encode!(Features(width, layout(x)[2][end]; row_state_width=session.row_state_width), session, x; options...)

"""
    encode_selected!(out, session, x, latents; addend=nothing, run=nothing)

Activations of the latents in the vector `latents` (`Int32`, counted from 0) alone, into `out`, of size
`(length(latents), tokens)`. With TopK, a latent that is not among a token's k largest has activation 0. One out of
range counts as inactive; a token that is not finite gives NaN.
"""
function encode_selected!(out, session::Session, x, latents; addend=nothing, run=nothing)
    f = session.frame
    @within session.handle GC.@preserve out x latents addend f begin
        how, input, more = run!(f, run), fill!(f.x, x), fill!(f.addend, addend)
        ids, to = fill!(f.ids, latents), fill!(f.out, out)
        check(sae_encode_selected(session.handle.object, how, input, more, ids, to, f.error), f.error)
    end
    return out
end

"""
    encode_dense!(z, session, x; what=Sae.SAE_DENSE_ACTIVATIONS, run=nothing)

All activations, or pre-activations (`Sae.SAE_DENSE_PRE_ACTIVATIONS`), into `z`, of size `(n_latents, tokens)`. A token
that is not finite gives NaN.
"""
function encode_dense!(z, session::Session, x; what::Integer=SAE_DENSE_ACTIVATIONS, run=nothing)
    f = session.frame
    @within session.handle GC.@preserve z x f begin
        how, input, to = run!(f, run), fill!(f.x, x), fill!(f.out, z)
        check(sae_encode_dense(session.handle.object, how, input, what, to, f.error), f.error)
    end
    return z
end

"""
    decode!(x_hat, session, features; x=nothing, run=nothing)

Activation vectors from features, into `x_hat`, of size `(d_out, tokens)`. `x` is the raw input, which models with a
skip path need. A token with count -1 gives NaN; an index out of range is left out and counted, see
[`Sae.session_status`](@ref).
"""
function decode!(x_hat, session::Session, features::Features; x=nothing, run=nothing)
    f = session.frame
    @within session.handle GC.@preserve x_hat features x f begin
        how, from, input, to = run!(f, run), fill!(f.features, features), fill!(f.x, x), fill!(f.out, x_hat)
        check(sae_decode(session.handle.object, how, from, input, to, f.error), f.error)
    end
    return x_hat
end

"""
    decode(session, features; x=nothing, run=nothing)

[`decode!`](@ref) into a new matrix.
"""
decode(session::Session, features::Features; options...) =
    decode!(zeros(Float32, session.d_out, length(features.counts)), session, features; options...)

"""
    reconstruct!(x_hat, session, x; features=nothing, addend=nothing, run=nothing)

Encodes and decodes at once, from all active latents, into `x_hat`, of size `(d_out, tokens)`, which may be `x` itself.
`features` gets as many as fit it.
"""
function reconstruct!(x_hat, session::Session, x; features=nothing, addend=nothing, run=nothing)
    f = session.frame
    @within session.handle GC.@preserve x_hat x features addend f begin
        how, input, more = run!(f, run), fill!(f.x, x), fill!(f.addend, addend)
        sparse, to = fill!(f.features, features), fill!(f.out, x_hat)
        check(sae_reconstruct(session.handle.object, how, input, more, sparse, to, f.error), f.error)
    end
    return x_hat
end

"""
    merge_features!(out, session, parts; run=nothing)

Features of latent shards of a model, a vector of at most 64 [`Features`](@ref) under global indices, into those of the
whole.
"""
function merge_features!(out::Features, session::Session, parts::AbstractVector{<:Features}; run=nothing)
    f = session.frame
    @within session.handle GC.@preserve out parts f begin
        while length(f.parts) < length(parts)
            push!(f.parts, FeaturesBox())
        end
        resize!(f.merged, length(parts))
        for i in eachindex(f.merged)
            fill!(f.parts[i], parts[i])
            f.merged[i] = f.parts[i].features
        end
        how, whole = run!(f, run), fill!(f.features, out)
        check(sae_features_merge(session.handle.object, how, pointer(f.merged), length(parts), whole, f.error), f.error)
    end
    return out
end

"""
    Sae.session_status(session)

Throws what is known of faults of the device, and of indices and slots out of range that calls took for -1 since the
session was made. Never waits.
"""
session_status(session::Session) = @within session.handle attempt(error -> sae_session_status(session.handle.object, error))

"Waits until everything that the session was asked for is done. On the CPU calls are done when they return."
Base.wait(session::Session) = @within session.handle attempt(error -> sae_session_wait(session.handle.object, error))

"The name of the instruction set that a session uses, if it computes on the CPU."
kernels(session::Session) = @within session.handle unsafe_string(sae_session_kernels(session.handle.object))
