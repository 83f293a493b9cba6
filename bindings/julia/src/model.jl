"""
    Model(path; options...)

Loads a model from a file, or from a directory that holds one. The format is recognised by content. A model never
changes, and any number of tasks may use it at once; sessions keep the weights they need, so it may be closed before
them.

Options, of which each is by default as the file has it:

- `format`, `member`: the format's name ([`Sae.formats`](@ref)); which model, where the path holds several
- `convention`: a [`Convention`](@ref) of what the file does not say, or says wrongly
- `first_latent`, `n_latents`: load these of the stored latents alone; they keep their indices
- `prefix`: load so many of the first latents alone, as a model of their own
- `k`: latents kept per token
- `device`: where the model shall live, such as `Sae.cuda(0)`
- `dtype`: the type to keep matrices in, `Float32`, `Float16` or `BFloat16`
- `flags`: `Sae.SAE_LOAD_MAP`, `Sae.SAE_LOAD_CENTER`
- `activation_scale`, `selection`, `subtract_b_dec`, `normalization`: as in `sae_load_options` of the header
"""
struct Model
    handle::Handle
    on_host::Bool
end

function Model(path::AbstractString; options...)
    scope = Scope()
    GC.@preserve scope begin
        name, how = text!(scope, "path", path), load_options(scope; options...)
        return own_model(create((out, error) -> sae_model_load(name, how, out, error)))
    end
end

function own_model(object::Ptr{Cvoid})
    about = query((out, error) -> sae_model_info(object, out, error), sae_info())
    on_host = about.device.device_type == SAE_DEVICE_CPU
    return Model(Handle(object, "model", sae_model_free; on_host=on_host), on_host)
end

Base.close(model::Model) = close!(model.handle)

load_options(scope; format=nothing, member=nothing, convention=nothing, dtype=nothing, options...) =
    struct!(scope, sae_load_options(;
        format=text!(scope, "format", format), member=text!(scope, "member", member),
        convention=convention!(scope, convention), dtype=dtype_or_zero(dtype), options...,
    ))

"""
    load_memory(path; options...)

What loading with these options of [`Model`](@ref) would need, in bytes; no weight is read.
"""
function load_memory(path::AbstractString; options...)
    scope = Scope()
    GC.@preserve scope begin
        name, how = text!(scope, "path", path), load_options(scope; options...)
        return natural(query((out, error) -> sae_model_memory(name, how, out, error), sae_memory()))
    end
end

"""
    Convention(; model_name, hook_point, hook_point_out, excluded_positions, context_size, prepend_bos, centered_writing_weights,
               folded_layer_norm, reference_fvu, reference_l0, reference_norm, reference_norm_spread)

What a model's inputs must look like; what is left out is not known. `prepend_bos` and its like are `Sae.SAE_YES`,
`Sae.SAE_NO` or `Sae.SAE_UNKNOWN`. A wrong convention fails silently: sizes fit, and the features are nonsense.
"""
struct Convention
    model_name::Union{Nothing,String}
    hook_point::Union{Nothing,String}
    hook_point_out::Union{Nothing,String}
    excluded_positions::Vector{UInt32}
    others::NamedTuple
end

Convention(; model_name=nothing, hook_point=nothing, hook_point_out=nothing, excluded_positions=UInt32[], others...) =
    Convention(model_name, hook_point, hook_point_out, excluded_positions, values(others))

convention!(scope::Scope, ::Nothing) = Ptr{sae_convention}(C_NULL)
convention!(scope::Scope, c::Convention) = struct!(scope, sae_convention(;
    model_name=text!(scope, "model_name", c.model_name), hook_point=text!(scope, "hook_point", c.hook_point),
    hook_point_out=text!(scope, "hook_point_out", c.hook_point_out),
    excluded_positions=numbers!(scope, UInt32, c.excluded_positions), n_excluded_positions=length(c.excluded_positions),
    c.others...,
))

# ---- What a model is -------------------------------------------------------------------------------------------------

"A struct of C's as a named tuple, texts as strings (`nothing` of NULL), dtypes as types, lists as vectors."
function natural(c)
    names = filter(name -> name !== :struct_size && name !== :reserved && !startswith(string(name), "n_excluded") &&
                           name !== :n_prefixes, fieldnames(typeof(c)))
    return NamedTuple{names}(map(name -> natural(c, name, getfield(c, name)), names))
end

natural(c, name, value) = value
natural(c, name, dtype::sae_dtype) = type_of(dtype)
natural(c, name, text::Ptr{UInt8}) = text == C_NULL ? nothing : unsafe_string(text)
natural(c, name, list::Ptr) =
    [unsafe_load(list, i) for i in 1:getfield(c, name === :prefixes ? :n_prefixes : Symbol(:n_, name))]

"""
    info(model)

What a model is: a named tuple with the fields of `sae_info` in the header, such as `architecture`, `d_in`, `d_out`,
`n_latents`, `k`, `row_state_width`, `hook_point`.
"""
info(model::Model) =
    @within model.handle natural(query((out, error) -> sae_model_info(model.handle.object, out, error), sae_info()))

"""
    read_weights!(out, model, which, first=0)

Copies weights: as many rows of a matrix from `first` on (counted from 0) as `out`, of size `(columns, rows)`, has
columns; or as many numbers of a vector as `out` has. `which` is `Sae.SAE_WEIGHT_W_DEC` and so on; a latent's direction
is a column.
"""
function read_weights!(out, model::Model, which::Integer, first::Integer=0)
    box = Box()
    GC.@preserve box out begin
        tensor = fill!(box, out)
        rows = box.shape[1]
        @within model.handle attempt(error -> sae_model_read(model.handle.object, which, first, rows, tensor, error))
    end
    return out
end

"""
    save(model, path; format="native", dtype=nothing)

Saves a model; `path` is a directory where the format is one. Files appear whole or not at all. What a format cannot say
is refused by name.
"""
function save(model::Model, path::AbstractString; format=nothing, dtype=nothing)
    scope = Scope()
    GC.@preserve scope begin
        name = text!(scope, "path", path)
        how = struct!(scope, sae_save_options(; format=text!(scope, "format", format), dtype=dtype_or_zero(dtype)))
        @within model.handle attempt(error -> sae_model_save(model.handle.object, name, how, error))
    end
    return nothing
end

# ---- Models of weights in memory, and of other models ----------------------------------------------------------------

"""
    Model(weights; architecture, k=0, borrow=false, load=(;), description...)

Makes a model of arrays by name, a dictionary or pairs: `"W_enc"` of size `(d_in, n_latents)`, `"W_dec"` `(d_out,
n_latents)`, `"b_enc"` `(n_latents,)`, `"b_dec"` `(d_out,)`, `"threshold"` `(n_latents,)` for JumpReLU, and what else
`sae_named_tensor` of the header names. Sizes are those of the arrays; `description` is other fields of
`sae_model_desc`, among them `normalization`, `flags`, `prefixes` and a `convention`; `load` has options of loading.

The arrays are copied, or with `borrow` used where they are, if they are matrices: then they must stay as they are while
a user of the model lives.
"""
function Model(weights; borrow::Bool=false, load=NamedTuple(), description...)
    arrays = Dict{String,Any}(weights)
    scope, lent = Scope(), nothing
    GC.@preserve scope begin
        desc = model_desc(scope, arrays; description...)
        named = root!(scope, [
            sae_named_tensor(text!(scope, "name of a weight", name), unsafe_load(tensor!(scope, array))) for (name, array) in arrays
        ])
        options = (; load...)
        if borrow
            lent = lend(scope)
            options = merge(options, (flags=get(options, :flags, 0) | SAE_LOAD_BORROW, release_context=lent.handle,
                release=cglobal(:uv_async_send)))
        end
        how = load_options(scope; options...)
        try
            return own_model(create((out, error) -> sae_model_from_weights(desc, pointer(named), length(named), how, out, error)))
        catch
            lent === nothing || close(lent)
            rethrow()
        end
    end
end

function model_desc(scope, arrays; convention=nothing, prefixes=Int64[], description...)
    sizes = Dict{Symbol,Int}()
    for (name, sized) in ("W_dec" => :d_out, "W_enc" => :d_in)
        matrix = get(arrays, name, nothing)
        matrix isa AbstractMatrix || continue
        sizes[sized], sizes[:n_latents] = size(matrix)
    end
    return struct!(scope, sae_model_desc(;
        sizes..., convention=convention!(scope, convention), prefixes=numbers!(scope, Int64, prefixes),
        n_prefixes=length(prefixes), description...,
    ))
end

"Arrays that the library uses without a call of ours, by what tells that it does no longer."
const lent_out = IdDict{Base.AsyncCondition,Scope}()
const lent_out_lock = ReentrantLock()

# The library may give arrays back on any thread, also one that Julia does not know, where no Julia code may run. Libuv's
# call to wake a task may come from everywhere, and takes what the library hands it: one pointer.
function lend(scope::Scope)
    returned = Base.AsyncCondition()
    lock(() -> lent_out[returned] = scope, lent_out_lock)
    @async begin
        try
            wait(returned)
            close(returned)
        catch failure
            failure isa EOFError || rethrow()  # closed, since nothing was lent after all
        end
        lock(() -> delete!(lent_out, returned), lent_out_lock)
    end
    return returned
end

derived(make::Function, model::Model) =
    @within model.handle own_model(create((out, error) -> make(model.handle.object, out, error)))

"""
    fold_decoder_norms(model)

A model whose decoder rows have norm 1, the norms moved into its encoder. Refused where other latents would win then.
"""
fold_decoder_norms(model::Model) = derived(sae_model_fold_decoder_norms, model)

"""
    fold_activation_scale(model, scale)

A model that takes x as this one takes `x * scale`, and gives its outputs on the scale of x.
"""
fold_activation_scale(model::Model, scale::Real) =
    derived((object, out, error) -> sae_model_fold_activation_scale(object, scale, out, error), model)

"""
    with_k(model, k)

A model that keeps another number of latents per token.
"""
with_k(model::Model, k::Integer) = derived((object, out, error) -> sae_model_with_k(object, k, out, error), model)

"""
    subset(model, latents)

A model of these latents (counted from 0) alone, numbered from 0 in that order. Where latents compete, they now compete
among themselves.
"""
function subset(model::Model, latents)
    ids = collect(Int32, latents)
    GC.@preserve ids derived((object, out, error) -> sae_model_subset(object, pointer(ids), length(ids), out, error), model)
end

"""
    prefix(model, n_latents)

A model of the first latents: for Matryoshka SAEs one of `info(model).prefixes`.
"""
prefix(model::Model, n_latents::Integer) = derived((object, out, error) -> sae_model_prefix(object, n_latents, out, error), model)

"""
    with_threshold(model, sample; pool=nothing)

A JumpReLU model of a TopK one, whose latents then do not compete: their one threshold is such that on the tokens of
`sample`, of size `(d_in, tokens)`, k latents are active on average.
"""
function with_threshold(model::Model, sample; pool=nothing)
    box = Box()
    GC.@preserve box sample holding(pool) do threads
        tensor = fill!(box, sample)
        derived((object, out, error) -> sae_model_with_threshold(object, tensor, threads, out, error), model)
    end
end
