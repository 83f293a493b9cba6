"""
    Buffer(; d, layers=0, memory_bytes=0, spill_bytes=0, spill_folder=nothing, seed=0, min_documents=0, sink_multiple=0, max_norm=0,
           dtype=Float32, flags=0)

A shuffle buffer: takes activations in any order and number, as an engine computes them, and gives batches drawn
uniformly at random, without replacement, from all rows that it holds at that moment: at least half of what it can hold,
until it is finished. Rows are refused, never dropped: those that are left out for a reason are counted. For any number
of tasks at once. What is given depends on the seed and the sequence of pushes and takes alone. The options are those of
`sae_buffer_options` in the header; a row is a column here.
"""
struct Buffer
    handle::Handle
end

function Buffer(; options...)
    scope = Scope()
    GC.@preserve scope begin
        how = buffer_options(scope; options...)
        return own_buffer(create((out, error) -> sae_buffer_create(how, out, error)))
    end
end

own_buffer(object) = Buffer(Handle(object, "buffer", sae_buffer_free))

buffer_options(scope; spill_folder=nothing, dtype=nothing, options...) = struct!(scope, sae_buffer_options(;
    spill_folder=text!(scope, "spill_folder", spill_folder), dtype=dtype_or_zero(dtype), options...,
))

"""
    buffer_memory(; options...)

What a [`Buffer`](@ref) of these options will take: `capacity` in rows, `memory_bytes`, `spill_bytes`.
"""
function buffer_memory(; options...)
    scope = Scope()
    GC.@preserve scope begin
        how = buffer_options(scope; options...)
        return natural(query((out, error) -> sae_buffer_memory(how, out, error), sae_buffer_size()))
    end
end

"""
    restore(path; options...)

A buffer that goes on where one was saved: the same pushes and takes give the same bits. What is set in `options` must
agree with what was saved, except for `memory_bytes`, `spill_bytes` and `spill_folder`, which say anew where rows are
held.
"""
function restore(path::AbstractString; options...)
    scope = Scope()
    GC.@preserve scope begin
        name, how = text!(scope, "path", path), buffer_options(scope; options...)
        return own_buffer(create((out, error) -> sae_buffer_restore(name, how, out, error)))
    end
end

# A thread that waits inside the library would keep Julia's garbage collector waiting, and with it everyone, also whom it
# waits for. So waiting is asking again.
const pause = 0.001

"""
    push_rows!(buffer, x; addend=nothing, row_mask=nothing, documents=nothing, flags=0, wait=true)

Takes in rows, the columns of `x`, of size `(d, n)` or `(d, layers, n)`, and tells how many: all, unless there is no
room for them and `wait` is false. Rows that are left out count as taken: those with 0 in `row_mask` (`Int32`), those
that are not finite, attention sinks. `documents` (`Int64`) are their documents, if the buffer keeps them. `BadState` if
the buffer is finished before any row is taken.
"""
function push_rows!(buffer::Buffer, x; addend=nothing, row_mask=nothing, documents=nothing, flags::Integer=0, wait::Bool=true)
    n = layout(x)[2][end]
    documents === nothing || length(documents) == n ||
        throw(InvalidTensor("documents: there are $(length(documents)), for $n rows; give one for each"))
    names = documents === nothing ? Int64[] : convert(Vector{Int64}, documents)
    scope, done = Scope(), 0
    GC.@preserve scope names begin
        tensors = (x=tensor!(scope, x), addend=tensor!(scope, addend), row_mask=tensor!(scope, row_mask))
        while true
            rows = Ref(sae_buffer_rows(;
                tensors..., documents=documents === nothing ? C_NULL : pointer(names), first=done, flags=flags,
            ))
            taken, error = Ref{Int64}(0), Ref{Ptr{Cvoid}}(C_NULL)
            code = @within buffer.handle sae_buffer_push(buffer.handle.object, rows, 0, taken, error)
            if code == SAE_ERROR_BAD_STATE && done > 0
                sae_error_free(error[])
                return done
            end
            check(code, error)
            done += taken[]
            (done >= n || !wait) && return done
            sleep(pause)
        end
    end
end

"""
    take_rows!(out, buffer; documents=nothing, wait=true)

Gives rows into the columns of `out`, of size `(d, n)` or `(d, layers, n)`, of the buffer's type or `Float32`, and their
documents into the vector `documents` (`Int64`). Returns how many: fewer than n only where a finished buffer is left
with fewer; 0 if too few are held yet and `wait` is false; `nothing` once the buffer is finished and empty. If the spill
file cannot be read (`FileError`), all rows stay in the buffer, but what is in `out` and `documents` is not defined.
"""
function take_rows!(out, buffer::Buffer; documents::Union{Nothing,Vector{Int64}}=nothing, wait::Bool=true)
    n = layout(out)[2][end]
    documents === nothing || length(documents) >= n ||
        throw(InvalidTensor("documents: there is room for $(length(documents)), but out has $n rows"))
    scope = Scope()
    GC.@preserve scope documents begin
        tensor, names = tensor!(scope, out), documents === nothing ? Ptr{Int64}(C_NULL) : pointer(documents)
        while true
            taken = @within buffer.handle query(Int64(0)) do taken, error
                sae_buffer_take(buffer.handle.object, tensor, names, 0, taken, error)
            end
            taken == SAE_BUFFER_END && return nothing
            (taken > 0 || !wait || n == 0) && return Int(taken)
            sleep(pause)
        end
    end
end

"""
    finish!(buffer)

Takes in no more rows, and ends all waiting: those who push are told how many rows were taken, those who take get what
is left, to the last row.
"""
finish!(buffer::Buffer) = @within buffer.handle attempt(error -> sae_buffer_close(buffer.handle.object, error))

"Frees a buffer with what it still holds. Whoever waits for it is refused with `BadState`."
Base.close(buffer::Buffer) = close!(buffer.handle)

"""
    state(buffer)

How a buffer fares: what `sae_buffer_state` of the header lists. At every moment `pushed` = `masked` + `not_finite` +
`sinks` + `taken` + `held`.
"""
state(buffer::Buffer) =
    @within buffer.handle query((out, error) -> sae_buffer_stats(buffer.handle.object, out, error), sae_buffer_state())

"""
    save(buffer, path)

Saves all that decides what comes next, the rows themselves included, into a file that appears whole or not at all.
"""
function save(buffer::Buffer, path::AbstractString)
    scope = Scope()
    GC.@preserve scope begin
        name = text!(scope, "path", path)
        @within buffer.handle attempt(error -> sae_buffer_save(buffer.handle.object, name, error))
    end
    return nothing
end
