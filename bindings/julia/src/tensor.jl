"""
The bits of a bfloat16 number, the upper half of a `Float32`. Where Julia has a type of its own (1.11), `Core.BFloat16`
serves as well.
"""
struct BFloat16
    bits::UInt16
end

function BFloat16(x::Real)
    bits = reinterpret(UInt32, Float32(x))
    isnan(x) && return BFloat16((bits >> 16) % UInt16 | 0x0040)
    return BFloat16(((bits + 0x7fff + (bits >> 16) & 1) >> 16) % UInt16)
end

Base.Float32(x::BFloat16) = reinterpret(Float32, UInt32(x.bits) << 16)

dtype_of(::Type{Float32}) = sae_dtype(SAE_DTYPE_FLOAT, 32, 1)
dtype_of(::Type{Float16}) = sae_dtype(SAE_DTYPE_FLOAT, 16, 1)
dtype_of(::Type{BFloat16}) = sae_dtype(SAE_DTYPE_BFLOAT, 16, 1)
dtype_of(::Type{Int32}) = sae_dtype(SAE_DTYPE_INT, 32, 1)
isdefined(Core, :BFloat16) && @eval dtype_of(::Type{Core.BFloat16}) = sae_dtype(SAE_DTYPE_BFLOAT, 16, 1)
dtype_of(::Type{T}) where {T} =
    throw(InvalidTensor("elements of type $T: Float32, Float16, BFloat16, and Int32 for indices, are taken; convert them"))

"The element type of a dtype, or `nothing` where it stands for \"as it is\"."
function type_of(dtype::sae_dtype)
    for T in (Float32, Float16, BFloat16, Int32)
        dtype == dtype_of(T) && return T
    end
    return nothing
end

"""
    DeviceArray{T}(pointer, size...; device=Sae.cuda(0), strides=contiguous)

An array in memory that Julia does not manage, such as a GPU's: `strides` are in elements, the first of them 1. Whoever
makes it sees to it that the memory stays as long as calls use it.
"""
struct DeviceArray{T,N}
    pointer::Ptr{T}
    size::NTuple{N,Int}
    strides::NTuple{N,Int}
    device::sae_device
end

function DeviceArray{T}(pointer::Ptr, size::Int...; device=cuda(0), strides=nothing) where {T}
    steps = strides === nothing ? Base.size_to_strides(1, size...) : strides
    return DeviceArray{T,length(size)}(Ptr{T}(pointer), size, steps, device)
end

"An NVIDIA GPU."
cuda(id::Integer=0) = sae_device(SAE_DEVICE_CUDA, id)

"What tensors are made of. A package with arrays of its own on a device adds a method for them."
layout(array::StridedArray) = (pointer(array), size(array), strides(array), sae_device(SAE_DEVICE_CPU, 0))
layout(array::DeviceArray) = (array.pointer, array.size, array.strides, array.device)
layout(array) =
    throw(InvalidTensor("$(typeof(array)): a strided array is needed, whose memory the library can use as it is; collect it first"))

element_type(::AbstractArray{T}) where {T} = T
element_type(::DeviceArray{T}) where {T} = T

"A tensor of C's with the shape and strides that it points to, made once and filled for each call, so that calls allocate nothing."
mutable struct Box
    tensor::sae_tensor
    shape::NTuple{3,Int64}
    strides::NTuple{3,Int64}
end

Box() = Box(sae_tensor(), (0, 0, 0), (0, 0, 0))

"Makes the box a view of an array, whose first dimension is C's last; the address of its tensor, or NULL of `nothing`."
function fill!(box::Box, array)
    data, lengths, steps, device = layout(array)
    dtype = dtype_of(element_type(array))
    n = length(lengths)
    1 <= n <= 3 || throw(InvalidTensor("an array of $n dimensions: vectors, matrices and arrays of 3 dimensions are taken"))
    steps[1] == 1 || lengths[1] <= 1 || throw(InvalidTensor(
        "an array whose first dimension has stride $(steps[1]): it must be contiguous, a token is a column; copy it first"))
    box.shape = reversed(lengths)
    box.strides = reversed(steps)
    address = pointer_from_objref(box)
    box.tensor = sae_tensor(
        Ptr{Cvoid}(data), device, n, dtype, address + fieldoffset(Box, 2), address + fieldoffset(Box, 3), 0,
    )
    return Ptr{sae_tensor}(address)
end

fill!(box::Box, ::Nothing) = (box.tensor = sae_tensor(); Ptr{sae_tensor}(C_NULL))

reversed((a,)::NTuple{1,Int}) = (Int64(a), Int64(0), Int64(0))
reversed((a, b)::NTuple{2,Int}) = (Int64(b), Int64(a), Int64(0))
reversed((a, b, c)::NTuple{3,Int}) = (Int64(c), Int64(b), Int64(a))
