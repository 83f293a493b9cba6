"""
    Features(width, tokens; row_state_width=0, type=Float32)
    Features(values, indices, counts, row_state)

Sparse features of some tokens: for each, up to `width` active latents, strongest first (ties: the lower index first).

- `values`, of size `(width, tokens)`: activations; unused slots hold 0
- `indices`, `(width, tokens)`, `Int32`: latents, counted from 0; unused slots hold -1
- `counts`, `(tokens,)`, `Int32`: how many were active, even if more than `width`; -1 if the token was not finite
- `row_state`, `(row_state_width, tokens)`, `Float32`: what decoding needs of each token; `nothing` if
  `info(model).row_state_width` is 0
"""
struct Features{V,I,C,R}
    values::V
    indices::I
    counts::C
    row_state::R
end

function Features(width::Integer, tokens::Integer; row_state_width::Integer=0, type=Float32)
    row_state = row_state_width == 0 ? nothing : zeros(Float32, row_state_width, tokens)
    return Features(zeros(type, width, tokens), fill(Int32(-1), width, tokens), zeros(Int32, tokens), row_state)
end

"""
    features[tokens]

Features of some neighbouring tokens, in the same memory: `features[1:8]`.
"""
Base.getindex(f::Features, tokens::AbstractUnitRange) = Features(
    view(f.values, :, tokens), view(f.indices, :, tokens), view(f.counts, tokens),
    f.row_state === nothing ? nothing : view(f.row_state, :, tokens),
)

"""
    active(features, token)

The active latents of a token (counted from 1), and how strongly each is active: `[latent => activation, …]`, as many as
fit the width.
"""
function active(f::Features, token::Integer)
    indices = view(f.indices, :, token)
    return [i => value for (i, value) in zip(indices, view(f.values, :, token)) if i >= 0]
end

"Features of C's, with the boxes that they are filled from."
mutable struct FeaturesBox
    features::sae_features
    values::Box
    indices::Box
    counts::Box
    row_state::Box
end

FeaturesBox() = FeaturesBox(sae_features(), Box(), Box(), Box(), Box())

function fill!(box::FeaturesBox, f::Features)
    fill!(box.values, f.values)
    fill!(box.indices, f.indices)
    fill!(box.counts, f.counts)
    fill!(box.row_state, f.row_state)
    box.features = sae_features(
        sizeof(sae_features), box.values.tensor, box.indices.tensor, box.counts.tensor, box.row_state.tensor,
    )
    return Ptr{sae_features}(pointer_from_objref(box))
end

fill!(::FeaturesBox, ::Nothing) = Ptr{sae_features}(C_NULL)
