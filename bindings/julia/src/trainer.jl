"What a step points to, made once so that it allocates nothing."
struct TrainFrame
    x::Box
    addend::Box
    target::Box
    row_mask::Box
    run::Base.RefValue{sae_run}
    batch::Base.RefValue{sae_train_batch}
    stats::Base.RefValue{sae_train_stats}
    error::Base.RefValue{Ptr{Cvoid}}
end

TrainFrame() = TrainFrame(
    Box(), Box(), Box(), Box(), Ref(sae_run()), Ref(sae_train_batch()), Ref(sae_train_stats()), Ref{Ptr{Cvoid}}(C_NULL),
)

"""
    Trainer(; d, n_latents, k=0, options...)

One training run: its weights, the optimizer's state and counters. `options` are the other fields of `sae_train_options`
in the header, of which zero is a good default: among them `seed`, `learning_rate`, `max_batch_tokens`, `total_tokens`,
`recipe` (`Sae.SAE_RECIPE_…`), `flags` (`Sae.SAE_TRAIN_…`), a `pool`, a `convention`, and `prefixes` and
`prefix_weights`, which are vectors. [`start!`](@ref) starts it. One task at a time may use it.
"""
struct Trainer
    handle::Handle
    frame::TrainFrame
end

function Trainer(; pool=nothing, options...)
    scope = Scope()
    GC.@preserve scope holding(pool) do threads
        how = train_options(scope, threads; options...)
        return own_trainer(create((out, error) -> sae_trainer_create(how, out, error)))
    end
end

"""
    resume(dir; options...)

Continues a run from its last checkpoint, as a [`Trainer`](@ref). What is set in `options` must agree with it, except
for `pool` and `max_batch_tokens`. The data continues at `progress(trainer).rows_given`.
"""
function resume(dir::AbstractString; pool=nothing, options...)
    scope = Scope()
    GC.@preserve scope holding(pool) do threads
        name, how = text!(scope, "dir", dir), train_options(scope, threads; options...)
        return own_trainer(create((out, error) -> sae_trainer_resume(name, how, out, error)))
    end
end

own_trainer(object) = Trainer(Handle(object, "trainer", sae_trainer_free; exclusive=true), TrainFrame())

function train_options(scope, threads; convention=nothing, prefixes=Int64[], prefix_weights=Float32[], options...)
    isempty(prefix_weights) || length(prefix_weights) == length(prefixes) || throw(InvalidArgument(
        "prefix_weights: there are $(length(prefix_weights)), for $(length(prefixes)) prefixes; give one for each, or none"))
    return struct!(scope, sae_train_options(;
        pool=threads, convention=convention!(scope, convention), prefixes=numbers!(scope, Int64, prefixes),
        prefix_weights=numbers!(scope, Float32, prefix_weights), n_prefixes=length(prefixes), options...,
    ))
end

Base.close(trainer::Trainer) = close!(trainer.handle)

"""
    start!(trainer, sample; target=nothing, model=nothing)

Starts a run from a first sample, of size `(d, tokens)`, some thousand tokens that look like the rest: b_dec becomes its
geometric median, the loss is divided by its variance, and random weights are scaled to it; or the weights are those of
a `model` of the same sizes. Transcoders need a sample of their targets too, of size `(d_out, tokens)`.
"""
function start!(trainer::Trainer, sample; target=nothing, model=nothing)
    scope = Scope()
    GC.@preserve scope @within trainer.handle begin
        run, x, y = trainer.handle.object, tensor!(scope, sample), tensor!(scope, target)
        if model === nothing
            attempt(
                error -> target === nothing ? sae_trainer_init_from(run, x, error) :
                         sae_trainer_init_transcoder(run, x, y, error),
            )
        else
            @within model.handle attempt(
                error -> target === nothing ? sae_trainer_warm_start(run, model.handle.object, x, error) :
                         sae_trainer_warm_start_transcoder(run, model.handle.object, x, y, error),
            )
        end
    end
    return trainer
end

"""
    step!(trainer, x; addend=nothing, target=nothing, row_mask=nothing, accumulate=false, run=nothing)

Trains on a batch `x`, of size `(d, tokens)`: one optimizer step, unless it accumulates. Returns what `sae_train_stats`
of the header lists, such as `loss`, `fvu`, `l0`, `dead`, of this call's tokens under the weights they were computed
with.

- `addend`: `x + addend` is trained on; `target`, of size `(d_out, tokens)`: what a transcoder reconstructs
- `row_mask`: a vector of `Int32`; tokens with 0 are left out, such as the attention sink
- `accumulate`: keep the gradients and make no step; the next call without it makes one with the mean over all tokens
  since

A call that is refused changes nothing. If the gradient is not finite (`NotFinite`), it is dropped, and the weights stay
as they are; the batch still counts.
"""
function step!(trainer::Trainer, x; addend=nothing, target=nothing, row_mask=nothing, accumulate::Bool=false, run=nothing)
    f = trainer.frame
    @within trainer.handle GC.@preserve x addend target row_mask f begin
        f.batch[] = sae_train_batch(
            sizeof(sae_train_batch), fill!(f.x, x), fill!(f.addend, addend), fill!(f.target, target), fill!(f.row_mask, row_mask),
            accumulate ? SAE_BATCH_ACCUMULATE : 0, 0,
        )
        f.stats[] = sae_train_stats()
        how = Ptr{sae_run}(C_NULL)
        if run !== nothing
            f.run[] = run
            how = Ptr{sae_run}(pointer_from_objref(f.run))
        end
        check(sae_train_step(trainer.handle.object, how, f.batch, f.stats, f.error), f.error)
        return f.stats[]
    end
end

"""
    progress(trainer)

What a run is, and how far it has come: what `sae_train_progress` of the header lists, such as `step`, `tokens_seen`,
`rows_given`.
"""
progress(trainer::Trainer) =
    @within trainer.handle query((out, error) -> sae_trainer_progress(trainer.handle.object, out, error), sae_train_progress())

"""
    set_rate!(trainer, rate)

From the next step on, learning rates are the schedule's times `rate`, until it is set again; checkpoints keep it.
"""
set_rate!(trainer::Trainer, rate::Real) =
    @within trainer.handle attempt(error -> sae_trainer_set_rate(trainer.handle.object, rate, error))

"""
    save(trainer, dir)

Saves all that is needed to continue to the same bits into a directory, which is made if it is not there. Whatever
happens, the directory holds the last complete checkpoint.
"""
function save(trainer::Trainer, dir::AbstractString)
    scope = Scope()
    GC.@preserve scope begin
        name = text!(scope, "dir", dir)
        @within trainer.handle attempt(error -> sae_trainer_save(trainer.handle.object, name, error))
    end
    return nothing
end

"""
    export_model(trainer; what=Sae.SAE_EXPORT_WEIGHTS)

A model of what was trained so far, or of the weights' moving average (`Sae.SAE_EXPORT_EMA`), which often reconstructs
better. Decoder columns have norm 1.
"""
export_model(trainer::Trainer; what::Integer=SAE_EXPORT_WEIGHTS) =
    @within trainer.handle own_model(create((out, error) -> sae_trainer_export(trainer.handle.object, what, out, error)))
