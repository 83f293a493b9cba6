"""
    SaeError{status}

A failed call's status (`Sae.SAE_ERROR_…`, also `Sae.status(error)`), and a message that names the thing, what was
expected and what was found. Each status has a name to catch it by: `InvalidArgument`, `InvalidTensor`, `Unsupported`,
`FileError`, `FormatError`, `OutOfMemory`, `NoDevice`, `DeviceFault`, `NotFinite`, `BadState`, `InternalError`, `CollectiveError`.
"""
struct SaeError{status} <: Exception
    message::String
end

const InvalidArgument = SaeError{SAE_ERROR_INVALID_ARGUMENT}
const InvalidTensor = SaeError{SAE_ERROR_INVALID_TENSOR}
const Unsupported = SaeError{SAE_ERROR_UNSUPPORTED}
const FileError = SaeError{SAE_ERROR_IO}
const FormatError = SaeError{SAE_ERROR_FORMAT}
const OutOfMemory = SaeError{SAE_ERROR_OUT_OF_MEMORY}
const NoDevice = SaeError{SAE_ERROR_NO_DEVICE}
const DeviceFault = SaeError{SAE_ERROR_DEVICE_FAULT}
const NotFinite = SaeError{SAE_ERROR_NOT_FINITE}
const BadState = SaeError{SAE_ERROR_BAD_STATE}
const InternalError = SaeError{SAE_ERROR_INTERNAL}
const CollectiveError = SaeError{SAE_ERROR_COLLECTIVE}

status(::SaeError{code}) where {code} = code

Base.showerror(io::IO, error::SaeError) = print(io, unsafe_string(sae_status_name(Int32(status(error)))), ": ", error.message)

"Throws the library's error, if there is one."
function check(code::Int32, error::Ref{Ptr{Cvoid}})
    code == SAE_OK && return nothing
    throw_error(code, error)
end

@noinline function throw_error(code::Int32, error::Ref{Ptr{Cvoid}})
    message = unsafe_string(sae_error_message(error[]))
    sae_error_free(error[])
    error[] = C_NULL
    throw(SaeError{Int(code)}(message))
end
