"What the options of one call point to, kept alive as long as the scope is: texts, arrays, tensors."
struct Scope
    roots::Vector{Any}
end

Scope() = Scope(Any[])

root!(scope::Scope, thing) = (push!(scope.roots, thing); thing)

"A text, NULL of `nothing`."
text!(scope::Scope, name, ::Nothing) = Ptr{UInt8}(C_NULL)
function text!(scope::Scope, name, text::AbstractString)
    whole = root!(scope, String(text))
    '\0' in whole && throw(InvalidArgument("$name: $(repr(whole)) has a NUL in it, which C takes for the end"))
    return pointer(whole)
end

"A tensor, NULL of `nothing`."
tensor!(scope::Scope, array) = (root!(scope, array); fill!(root!(scope, Box()), array))

"A copy of some numbers, NULL of none."
numbers!(scope::Scope, ::Type{T}, numbers) where {T} =
    isempty(numbers) ? Ptr{T}(C_NULL) : pointer(root!(scope, collect(T, numbers)))

"A struct of C's, in memory of its own."
struct!(scope::Scope, value::T) where {T} = Ptr{T}(pointer_from_objref(root!(scope, Ref(value))))

"A dtype by its element type; `nothing` is \"as it is\"."
dtype_or_zero(::Nothing) = sae_dtype()
dtype_or_zero(type::Type) = dtype_of(type)
dtype_or_zero(dtype::sae_dtype) = dtype

"Makes an object: what `make(object, error)` puts into `object`."
function create(make::Function)
    object, error = Ref{Ptr{Cvoid}}(C_NULL), Ref{Ptr{Cvoid}}(C_NULL)
    check(make(object, error), error)
    return object[]
end

"Asks for a struct of C's: what `ask(out, error)` puts into `out`."
function query(ask::Function, empty::T) where {T}
    out, error = Ref(empty), Ref{Ptr{Cvoid}}(C_NULL)
    check(ask(out, error), error)
    return out[]
end

"Does what may fail: `act(error)`."
function attempt(act::Function)
    error = Ref{Ptr{Cvoid}}(C_NULL)
    check(act(error), error)
    return nothing
end
