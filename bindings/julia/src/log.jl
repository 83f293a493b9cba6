# The library calls back in the middle of its own work, where Julia must neither switch tasks nor throw. So lines are put down,
# and a task hands them to the user's function soon after.

const lines = Tuple{Int32,String}[]
const lines_lock = Threads.SpinLock()
const lines_wake = Ref{Ptr{Cvoid}}(C_NULL)

function put_line(level::Int32, message::Ptr{UInt8}, length::Csize_t, ::Ptr{Cvoid})
    line = (level, unsafe_string(message, length))
    lock(() -> push!(lines, line), lines_lock)
    ccall(:uv_async_send, Cint, (Ptr{Cvoid},), lines_wake[])
    return nothing
end

"""
    Sae.set_log(log; level=Sae.SAE_LOG_INFO)

Has everything up to `level` told to `log(level, message)`, for the whole process and for good: it can be set once. A
task of the package's calls it, soon after the library has said something.
"""
function set_log(log; level::Integer=SAE_LOG_INFO)
    wake = Base.AsyncCondition()
    attempt() do error
        lines_wake[] == C_NULL || throw(BadState("log: it was set before, and can be set once"))
        lines_wake[] = wake.handle
        sae_log_set(@cfunction(put_line, Cvoid, (Int32, Ptr{UInt8}, Csize_t, Ptr{Cvoid})), level, C_NULL, error)
    end
    @async while isopen(wake)
        wait(wake)
        heard = lock(() -> splice!(lines, 1:length(lines)), lines_lock)
        for (level, message) in heard
            try
                log(level, message)
            catch failure
                @error "The log's function failed" exception = (failure, catch_backtrace())
            end
        end
    end
    return nothing
end
