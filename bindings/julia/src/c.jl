# The C interface as it is: each struct and function of the header under its own name, in its order. Nothing here checks anything;
# a test compares the layout of every struct with the C compiler's.

# ---- Structs ---------------------------------------------------------------------------------------------------------

zeroed(::Type{T}) where {T<:Number} = zero(T)
zeroed(::Type{Ptr{T}}) where {T} = Ptr{T}(C_NULL)
zeroed(::Type{NTuple{N,T}}) where {N,T} = ntuple(_ -> zeroed(T), Val(N))
zeroed(::Type{T}) where {T} = T()

"""
A struct of C's, with a constructor by field names. What is not named is zero, which is the default of everything;
`struct_size` is right by itself.
"""
macro c_struct(definition)
    name = definition.args[2]
    fields = [field.args for field in definition.args[3].args if field isa Expr]
    defaults = [
        Expr(:kw, field, field === :struct_size ? :(sizeof($name)) : :(zeroed($type))) for (field, type) in fields
    ]
    return esc(quote
        $definition
        $name(; $(defaults...)) = $name($(first.(fields)...))
    end)
end

@c_struct struct sae_device
    device_type::Int32
    device_id::Int32
end

@c_struct struct sae_dtype
    code::UInt8
    bits::UInt8
    lanes::UInt16
end

@c_struct struct sae_tensor
    data::Ptr{Cvoid}
    device::sae_device
    ndim::Int32
    dtype::sae_dtype
    shape::Ptr{Int64}
    strides::Ptr{Int64}
    byte_offset::UInt64
end

@c_struct struct sae_features
    struct_size::Csize_t
    values::sae_tensor
    indices::sae_tensor
    counts::sae_tensor
    row_state::sae_tensor
end

@c_struct struct sae_convention
    struct_size::Csize_t
    model_name::Ptr{UInt8}
    hook_point::Ptr{UInt8}
    hook_point_out::Ptr{UInt8}
    excluded_positions::Ptr{UInt32}
    n_excluded_positions::Csize_t
    context_size::UInt32
    prepend_bos::Int32
    centered_writing_weights::Int32
    folded_layer_norm::Int32
    reference_fvu::Float64
    reference_l0::Float64
    reference_norm::Float64
    reference_norm_spread::Float64
end

@c_struct struct sae_load_options
    struct_size::Csize_t
    format::Ptr{UInt8}
    member::Ptr{UInt8}
    convention::Ptr{sae_convention}
    first_latent::Int64
    n_latents::Int64
    prefix::Int64
    k::Int64
    release::Ptr{Cvoid}
    release_context::Ptr{Cvoid}
    device::sae_device
    dtype::sae_dtype
    flags::UInt32
    activation_scale::Float32
    selection::Int32
    subtract_b_dec::Int32
    normalization::Int32
end

@c_struct struct sae_memory
    struct_size::Csize_t
    resident::UInt64
    mapped::UInt64
    peak::UInt64
    workspace::UInt64
    device::UInt64
end

@c_struct struct sae_save_options
    struct_size::Csize_t
    format::Ptr{UInt8}
    dtype::sae_dtype
    flags::UInt32
end

@c_struct struct sae_info
    struct_size::Csize_t
    architecture::Int32
    normalization::Int32
    flags::UInt32
    dtype::sae_dtype
    device::sae_device
    d_in::Int64
    d_out::Int64
    layers_in::Int64
    layers_out::Int64
    n_latents::Int64
    first_latent::Int64
    shard_of::Int64
    k::Int64
    prefixes::Ptr{Int64}
    n_prefixes::Csize_t
    row_state_width::Int64
    bytes::UInt64
    format::Ptr{UInt8}
    notes::Ptr{UInt8}
    model_name::Ptr{UInt8}
    hook_point::Ptr{UInt8}
    hook_point_transformer_lens::Ptr{UInt8}
    hook_point_hugging_face::Ptr{UInt8}
    hook_point_ggml::Ptr{UInt8}
    hook_point_out::Ptr{UInt8}
    hook_point_out_transformer_lens::Ptr{UInt8}
    hook_point_out_hugging_face::Ptr{UInt8}
    hook_point_out_ggml::Ptr{UInt8}
    excluded_positions::Ptr{UInt32}
    n_excluded_positions::Csize_t
    context_size::UInt32
    prepend_bos::Int32
    centered_writing_weights::Int32
    folded_layer_norm::Int32
end

@c_struct struct sae_model_desc
    struct_size::Csize_t
    d_in::Int64
    d_out::Int64
    layers_in::Int64
    layers_out::Int64
    n_latents::Int64
    first_latent::Int64
    shard_of::Int64
    k::Int64
    prefixes::Ptr{Int64}
    n_prefixes::Csize_t
    convention::Ptr{sae_convention}
    architecture::Int32
    normalization::Int32
    flags::UInt32
    reserved::UInt32
end

@c_struct struct sae_named_tensor
    name::Ptr{UInt8}
    tensor::sae_tensor
end

@c_struct struct sae_run
    struct_size::Csize_t
    flags::UInt32
    stream_kind::Int32
    stream::Ptr{Cvoid}
    workspace::Ptr{Cvoid}
    workspace_size::Csize_t
end

@c_struct struct sae_session_options
    struct_size::Csize_t
    max_tokens::Int64
    max_width::Int64
    slots::Int64
    edits_per_slot::Int64
    pool::Ptr{Cvoid}
    flags::UInt32
    run_flags::UInt32
    kernels::Ptr{UInt8}
end

@c_struct struct sae_edit
    feature::Int32
    op::Int32
    strength::Float32
    limit::Float32
    flags::UInt32
    reserved::NTuple{3,UInt32}
end

@c_struct struct sae_steering
    struct_size::Csize_t
    row_slot::Ptr{sae_tensor}
    known::Ptr{sae_features}
    y::Ptr{sae_tensor}
    out::Ptr{sae_tensor}
end

@c_struct struct sae_doctor_options
    struct_size::Csize_t
    target::Ptr{sae_tensor}
    positions::Ptr{sae_tensor}
    baseline::Ptr{Cvoid}
    pool::Ptr{Cvoid}
    max_rows::Int64
    flags::UInt64
end

@c_struct struct sae_report_info
    struct_size::Csize_t
    verdict::Int32
    n_findings::Int32
    rows_given::Int64
    rows_measured::Int64
    rows_not_finite::Int64
    rows_excluded::Int64
    rows_large::Int64
    dead::Int64
    fvu::Float64
    l0::Float64
    bias::Float64
    norm::Float64
    norm_spread::Float64
    reference_fvu::Float64
end

@c_struct struct sae_finding
    struct_size::Csize_t
    code::Int32
    severity::Int32
    factor::Float64
    fvu_mended::Float64
    title::Ptr{UInt8}
    evidence::Ptr{UInt8}
    advice::Ptr{UInt8}
end

@c_struct struct sae_train_options
    struct_size::Csize_t
    d::Int64
    n_latents::Int64
    k::Int64
    k_aux::Int64
    max_batch_tokens::Int64
    dead_after_tokens::UInt64
    warmup_steps::UInt64
    total_tokens::UInt64
    seed::UInt64
    pool::Ptr{Cvoid}
    convention::Ptr{sae_convention}
    learning_rate::Float32
    decay_fraction::Float32
    aux_coefficient::Float32
    adam_beta1::Float32
    adam_beta2::Float32
    adam_epsilon::Float32
    clip_norm::Float32
    ema_decay::Float32
    normalization::Int32
    flags::UInt32
    d_out::Int64
    k_start::Int64
    k_anneal_steps::UInt64
    prefixes::Ptr{Int64}
    prefix_weights::Ptr{Float32}
    n_prefixes::Int64
    sparsity_warmup_steps::UInt64
    resample_every::UInt64
    sparsity_coefficient::Float32
    target_l0::Float32
    bandwidth::Float32
    initial_threshold::Float32
    recipe::Int32
    penalty::Int32
    scaling::Int32
    frozen::UInt32
    layers::Int64
    collective::Ptr{Cvoid}
end

@c_struct struct sae_collective
    struct_size::Csize_t
    rank::Int64
    data_ranks::Int64
    latent_ranks::Int64
    context::Ptr{Cvoid}
    all_gather::Ptr{Cvoid}
    all_reduce_sum::Ptr{Cvoid}
    reduce_scatter_sum::Ptr{Cvoid}
    all_reduce_min::Ptr{Cvoid}
    broadcast::Ptr{Cvoid}
end

@c_struct struct sae_train_batch
    struct_size::Csize_t
    x::Ptr{sae_tensor}
    addend::Ptr{sae_tensor}
    target::Ptr{sae_tensor}
    row_mask::Ptr{sae_tensor}
    flags::UInt32
    reserved::UInt32
end

@c_struct struct sae_train_stats
    struct_size::Csize_t
    step::UInt64
    tokens_seen::UInt64
    tokens::UInt64
    tokens_masked::UInt64
    tokens_not_finite::UInt64
    dead::UInt64
    loss::Float64
    mse::Float64
    aux::Float64
    fvu::Float64
    l0::Float64
    dead_fraction::Float64
    grad_norm::Float64
    learning_rate::Float64
    applied::Int32
    reserved::UInt32
    sparsity::Float64
    resampled::UInt64
end

@c_struct struct sae_train_progress
    struct_size::Csize_t
    d::Int64
    n_latents::Int64
    k::Int64
    max_batch_tokens::Int64
    total_tokens::UInt64
    step::UInt64
    tokens_seen::UInt64
    rows_given::UInt64
    started::Int32
    reserved::UInt32
end

@c_struct struct sae_buffer_options
    struct_size::Csize_t
    d::Int64
    layers::Int64
    memory_bytes::UInt64
    spill_bytes::UInt64
    spill_folder::Ptr{UInt8}
    seed::UInt64
    min_documents::UInt64
    sink_multiple::Float32
    max_norm::Float32
    dtype::sae_dtype
    flags::UInt32
end

@c_struct struct sae_buffer_size
    struct_size::Csize_t
    capacity::UInt64
    memory_bytes::UInt64
    spill_bytes::UInt64
end

@c_struct struct sae_buffer_rows
    struct_size::Csize_t
    x::Ptr{sae_tensor}
    addend::Ptr{sae_tensor}
    row_mask::Ptr{sae_tensor}
    documents::Ptr{Int64}
    first::Int64
    flags::UInt32
    reserved::UInt32
end

@c_struct struct sae_buffer_state
    struct_size::Csize_t
    pushed::UInt64
    masked::UInt64
    not_finite::UInt64
    sinks::UInt64
    taken::UInt64
    held::UInt64
    capacity::UInt64
    unmixed::UInt64
    median_norm::Float32
    closed::Int32
end

@c_struct struct sae_atlas_options
    struct_size::Csize_t
    n_latents::Int64
    first_latent::Int64
    seed::UInt64
    top::Int32
    per_interval::Int32
    random::Int32
    top_before::Int32
    top_after::Int32
    drawn_before::Int32
    drawn_after::Int32
    max_width::Int32
    max_documents::Int32
    reserved::Int32
end

@c_struct struct sae_atlas_info
    struct_size::Csize_t
    n_latents::Int64
    first_latent::Int64
    tokens::UInt64
    not_finite::UInt64
    cut::UInt64
    stretches::UInt64
    max_window::Int64
end

@c_struct struct sae_atlas_feature
    struct_size::Csize_t
    count::UInt64
    sums::NTuple{4,Float64}
    max::Float32
    min::Float32
    n_top::Int32
    n_intervals::Int32
    n_random::Int32
    n_bins::Int32
    below::UInt64
    bin_from::NTuple{64,Float32}
    bin_to::NTuple{64,Float32}
    bin_count::NTuple{64,UInt64}
end

@c_struct struct sae_atlas_window
    struct_size::Csize_t
    document::Int64
    position::Int64
    value::Float32
    at::Int32
    length::Int32
    interval::Int32
end

# ---- Functions -------------------------------------------------------------------------------------------------------

"The address of each function that is bound, found when the library is loaded."
const addresses = Pair{String,Base.RefValue{Ptr{Cvoid}}}[]

"`@c f(a::A)::R` defines `f(a)`, which calls the library's function of that name."
macro c(signature)
    call, returned = signature.args
    name, arguments = call.args[1], call.args[2:end]
    address = Symbol("address_of_", name)
    names = [argument.args[1] for argument in arguments]
    through_pointer = Expr(:call, Expr(:$, :($address[])), arguments...)
    return esc(quote
        const $address = Ref{Ptr{Cvoid}}(C_NULL)
        push!(addresses, $(string(name)) => $address)
        $name($(names...)) = @ccall $through_pointer::$returned
    end)
end

@c sae_error_status(error::Ptr{Cvoid})::Int32
@c sae_error_message(error::Ptr{Cvoid})::Ptr{UInt8}
@c sae_error_free(error::Ptr{Cvoid})::Cvoid
@c sae_status_name(status::Int32)::Ptr{UInt8}
@c sae_abi_version()::UInt32
@c sae_version()::Ptr{UInt8}

@c sae_log_set(callback::Ptr{Cvoid}, level::Int32, context::Ptr{Cvoid}, error::Ptr{Ptr{Cvoid}})::Int32

@c sae_pool_create(threads::Int32, out::Ptr{Ptr{Cvoid}}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_pool_from_host(threads::Int32, parallel_for::Ptr{Cvoid}, context::Ptr{Cvoid}, out::Ptr{Ptr{Cvoid}},
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_pool_threads(pool::Ptr{Cvoid})::Int32
@c sae_pool_free(pool::Ptr{Cvoid})::Cvoid

@c sae_model_load(path::Ptr{UInt8}, options::Ptr{sae_load_options}, out::Ptr{Ptr{Cvoid}},
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_model_memory(path::Ptr{UInt8}, options::Ptr{sae_load_options}, out::Ptr{sae_memory},
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_model_save(model::Ptr{Cvoid}, path::Ptr{UInt8}, options::Ptr{sae_save_options}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_model_info(model::Ptr{Cvoid}, out::Ptr{sae_info}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_model_read(model::Ptr{Cvoid}, which::Int32, first::Int64, rows::Int64, out::Ptr{sae_tensor},
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_model_free(model::Ptr{Cvoid})::Cvoid
@c sae_model_from_weights(desc::Ptr{sae_model_desc}, weights::Ptr{sae_named_tensor}, n_weights::Csize_t,
    options::Ptr{sae_load_options}, out::Ptr{Ptr{Cvoid}}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_model_fold_decoder_norms(model::Ptr{Cvoid}, out::Ptr{Ptr{Cvoid}}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_model_fold_activation_scale(model::Ptr{Cvoid}, scale::Float32, out::Ptr{Ptr{Cvoid}},
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_model_with_k(model::Ptr{Cvoid}, k::Int64, out::Ptr{Ptr{Cvoid}}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_model_subset(model::Ptr{Cvoid}, ids::Ptr{Int32}, n_ids::Csize_t, out::Ptr{Ptr{Cvoid}},
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_model_prefix(model::Ptr{Cvoid}, n_latents::Int64, out::Ptr{Ptr{Cvoid}}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_model_with_threshold(model::Ptr{Cvoid}, sample::Ptr{sae_tensor}, pool::Ptr{Cvoid}, out::Ptr{Ptr{Cvoid}},
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_format_name(number::Csize_t, writes::Ptr{Int32})::Ptr{UInt8}

@c sae_session_create(model::Ptr{Cvoid}, options::Ptr{sae_session_options}, out::Ptr{Ptr{Cvoid}},
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_session_memory(model::Ptr{Cvoid}, options::Ptr{sae_session_options}, out::Ptr{sae_memory},
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_encode(session::Ptr{Cvoid}, run::Ptr{sae_run}, x::Ptr{sae_tensor}, addend::Ptr{sae_tensor},
    out::Ptr{sae_features}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_encode_selected(session::Ptr{Cvoid}, run::Ptr{sae_run}, x::Ptr{sae_tensor}, addend::Ptr{sae_tensor},
    ids::Ptr{sae_tensor}, out::Ptr{sae_tensor}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_encode_dense(session::Ptr{Cvoid}, run::Ptr{sae_run}, x::Ptr{sae_tensor}, what::Int32, z::Ptr{sae_tensor},
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_decode(session::Ptr{Cvoid}, run::Ptr{sae_run}, features::Ptr{sae_features}, x::Ptr{sae_tensor},
    x_hat::Ptr{sae_tensor}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_reconstruct(session::Ptr{Cvoid}, run::Ptr{sae_run}, x::Ptr{sae_tensor}, addend::Ptr{sae_tensor},
    out::Ptr{sae_features}, x_hat::Ptr{sae_tensor}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_features_merge(session::Ptr{Cvoid}, run::Ptr{sae_run}, parts::Ptr{sae_features}, n_parts::Csize_t,
    out::Ptr{sae_features}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_session_status(session::Ptr{Cvoid}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_session_wait(session::Ptr{Cvoid}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_kernels_name(number::Csize_t)::Ptr{UInt8}
@c sae_session_kernels(session::Ptr{Cvoid})::Ptr{UInt8}
@c sae_session_free(session::Ptr{Cvoid})::Cvoid

@c sae_set_edits(session::Ptr{Cvoid}, slot::Int32, edits::Ptr{sae_edit}, n_edits::Csize_t,
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_steer(session::Ptr{Cvoid}, run::Ptr{sae_run}, x::Ptr{sae_tensor}, addend::Ptr{sae_tensor},
    steering::Ptr{sae_steering}, error::Ptr{Ptr{Cvoid}})::Int32

@c sae_doctor(model::Ptr{Cvoid}, x::Ptr{sae_tensor}, options::Ptr{sae_doctor_options}, out::Ptr{Ptr{Cvoid}},
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_report_get(report::Ptr{Cvoid}, out::Ptr{sae_report_info}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_report_finding(report::Ptr{Cvoid}, i::Int64, out::Ptr{sae_finding}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_report_text(report::Ptr{Cvoid})::Ptr{UInt8}
@c sae_report_json(report::Ptr{Cvoid})::Ptr{UInt8}
@c sae_report_free(report::Ptr{Cvoid})::Cvoid

@c sae_trainer_create(options::Ptr{sae_train_options}, out::Ptr{Ptr{Cvoid}}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_trainer_init_from(trainer::Ptr{Cvoid}, sample::Ptr{sae_tensor}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_trainer_init_transcoder(trainer::Ptr{Cvoid}, sample::Ptr{sae_tensor}, target::Ptr{sae_tensor},
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_trainer_warm_start_transcoder(trainer::Ptr{Cvoid}, model::Ptr{Cvoid}, sample::Ptr{sae_tensor},
    target::Ptr{sae_tensor}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_trainer_warm_start(trainer::Ptr{Cvoid}, model::Ptr{Cvoid}, sample::Ptr{sae_tensor},
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_train_step(trainer::Ptr{Cvoid}, run::Ptr{sae_run}, batch::Ptr{sae_train_batch}, stats::Ptr{sae_train_stats},
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_trainer_progress(trainer::Ptr{Cvoid}, out::Ptr{sae_train_progress}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_trainer_set_rate(trainer::Ptr{Cvoid}, rate::Float64, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_trainer_save(trainer::Ptr{Cvoid}, dir::Ptr{UInt8}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_trainer_resume(dir::Ptr{UInt8}, options::Ptr{sae_train_options}, out::Ptr{Ptr{Cvoid}},
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_trainer_export(trainer::Ptr{Cvoid}, what::Int32, out::Ptr{Ptr{Cvoid}}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_trainer_free(trainer::Ptr{Cvoid})::Cvoid

@c sae_buffer_memory(options::Ptr{sae_buffer_options}, out::Ptr{sae_buffer_size}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_buffer_create(options::Ptr{sae_buffer_options}, out::Ptr{Ptr{Cvoid}}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_buffer_push(buffer::Ptr{Cvoid}, rows::Ptr{sae_buffer_rows}, wait_ms::Int64, taken::Ptr{Int64},
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_buffer_take(buffer::Ptr{Cvoid}, out::Ptr{sae_tensor}, documents::Ptr{Int64}, wait_ms::Int64,
    taken::Ptr{Int64}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_buffer_close(buffer::Ptr{Cvoid}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_buffer_stats(buffer::Ptr{Cvoid}, out::Ptr{sae_buffer_state}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_buffer_save(buffer::Ptr{Cvoid}, path::Ptr{UInt8}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_buffer_restore(path::Ptr{UInt8}, options::Ptr{sae_buffer_options}, out::Ptr{Ptr{Cvoid}},
    error::Ptr{Ptr{Cvoid}})::Int32
@c sae_buffer_free(buffer::Ptr{Cvoid})::Cvoid

@c sae_atlas_memory(options::Ptr{sae_atlas_options}, bytes::Ptr{UInt64}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_atlas_create(options::Ptr{sae_atlas_options}, out::Ptr{Ptr{Cvoid}}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_atlas_observe(atlas::Ptr{Cvoid}, features::Ptr{sae_features}, tokens::Ptr{sae_tensor}, documents::Ptr{Int64},
    positions::Ptr{Int64}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_atlas_finish(atlas::Ptr{Cvoid}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_atlas_merge(atlas::Ptr{Cvoid}, other::Ptr{Cvoid}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_atlas_save(atlas::Ptr{Cvoid}, path::Ptr{UInt8}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_atlas_load(path::Ptr{UInt8}, max_bytes::UInt64, out::Ptr{Ptr{Cvoid}}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_atlas_get(atlas::Ptr{Cvoid}, out::Ptr{sae_atlas_info}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_atlas_read(atlas::Ptr{Cvoid}, latent::Int64, out::Ptr{sae_atlas_feature}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_atlas_read_window(atlas::Ptr{Cvoid}, latent::Int64, kind::Int32, index::Int64, out::Ptr{sae_atlas_window},
    tokens::Ptr{Int32}, activations::Ptr{Float32}, error::Ptr{Ptr{Cvoid}})::Int32
@c sae_atlas_free(atlas::Ptr{Cvoid})::Cvoid
