"""
    Edit(; feature, op, strength, limit, flags)

One change to one latent (counted from 0): `op` is `Sae.SAE_EDIT_ADD`, `_SET`, `_SCALE` or `_ABLATE`, `strength` in
units of the latent's activation, whose change is clamped to ±`limit` unless that is 0; with
`flags=Sae.SAE_EDIT_ONLY_ACTIVE` tokens on which it is not active are left alone. [`Sae.add`](@ref), [`Sae.set`](@ref),
[`Sae.scale`](@ref) and [`Sae.ablate`](@ref) make the common ones.
"""
const Edit = sae_edit

"Adds `strength` to the activation of a latent."
add(latent::Integer, strength::Real) = Edit(; feature=latent, op=SAE_EDIT_ADD, strength=strength)
"Makes the activation of a latent `strength`."
set(latent::Integer, strength::Real) = Edit(; feature=latent, op=SAE_EDIT_SET, strength=strength)
"Multiplies the activation of a latent by `strength`."
scale(latent::Integer, strength::Real) = Edit(; feature=latent, op=SAE_EDIT_SCALE, strength=strength)
"Makes the activation of a latent 0."
ablate(latent::Integer) = Edit(; feature=latent, op=SAE_EDIT_ABLATE)

"""
    set_edits!(session, slot, edits)

Replaces the list of edits in a slot (counted from 0) by those of a vector, which are copied; of none, the slot steers
nothing. A list may not name a latent twice. On failure the old list stays, but for `DeviceFault`: then it is the old
one or empty.
"""
function set_edits!(session::Session, slot::Integer, edits::Vector{Edit})
    f = session.frame
    @within session.handle GC.@preserve edits f begin
        check(sae_set_edits(session.handle.object, slot, pointer(edits), length(edits), f.error), f.error)
    end
    return nothing
end

set_edits!(session::Session, slot::Integer, edits::Edit...) = set_edits!(session, slot, Edit[edits...])

"""
    steer!(x, session; addend=nothing, row_slot=nothing, known=nothing, y=nothing, out=nothing, run=nothing)

Changes activations `x`, of size `(d_in, tokens)`, by the edits of their slots. The part of them that the model does not
reconstruct is kept. Tokens left alone keep their bits, as do tokens that are not finite.

- `row_slot`: a vector of each token's slot (`Int32`, counted from 0); -1: leave it alone; `nothing`: slot 0 for all
- `known`: features of these tokens, if they are already encoded; `nothing`: what the edits need is computed
- `y`, of size `(d_out, tokens)`: what is edited, if not `x`. For a transcoder, x is read at one place and y written at
  another
- `out`, of y's type: where the result goes; `nothing`: `y`, in place

Returns what was written.
"""
function steer!(x, session::Session; addend=nothing, row_slot=nothing, known=nothing, y=nothing, out=nothing, run=nothing)
    f = session.frame
    @within session.handle GC.@preserve x addend row_slot known y out f begin
        how, input, more = run!(f, run), fill!(f.x, x), fill!(f.addend, addend)
        slots, sparse = fill!(f.ids, row_slot), fill!(f.features, known)
        f.steering[] = sae_steering(sizeof(sae_steering), slots, sparse, fill!(f.y, y), fill!(f.out, out))
        check(sae_steer(session.handle.object, how, input, more, f.steering, f.error), f.error)
    end
    return out !== nothing ? out : y !== nothing ? y : x
end
