"""
Owns an object of the library's, and keeps it from being freed while calls use it. Whatever wraps one has it in a field
`handle`.
"""
mutable struct Handle
    object::Ptr{Cvoid}
    name::String
    free::Function
    uses::Threads.Atomic{Int}  # calls under way; CLOSED once it is closed
    exclusive::Bool
end

const CLOSED = -1

# On a GPU, freeing at a moment that nobody chose would disturb others' work, so there nothing is left to the collector.
function Handle(object::Ptr{Cvoid}, name::String, free::Function; exclusive=false, on_host=true)
    handle = Handle(object, name, free, Threads.Atomic{Int}(0), exclusive)
    on_host && finalizer(release!, handle)
    return handle
end

function release!(handle::Handle)
    handle.object == C_NULL && return nothing
    handle.free(handle.object)
    handle.object = C_NULL
    return nothing
end

"Begins a call; `leave!` ends it. Of an exclusive object's calls there is one at a time."
function enter!(handle::Handle)
    while true
        uses = handle.uses[]
        if uses == CLOSED || (handle.exclusive && uses != 0)
            refuse(handle, uses)
        end
        Threads.atomic_cas!(handle.uses, uses, uses + 1) == uses && return handle.object
    end
end

leave!(handle::Handle) = (Threads.atomic_sub!(handle.uses, 1); nothing)

@noinline function refuse(handle::Handle, uses)
    name = handle.name
    uses == CLOSED && throw(BadState("$name: it is closed"))
    throw(BadState("$name: another task's call is under way, use one $name per task"))
end

"`@within handle expression`: the expression, as a call on an object that must not be freed meanwhile."
macro within(handle, expression)
    return quote
        entered = $(esc(handle))
        enter!(entered)
        try
            GC.@preserve entered $(esc(expression))
        finally
            leave!(entered)
        end
    end
end

function close!(handle::Handle)
    while true
        uses = Threads.atomic_cas!(handle.uses, 0, CLOSED)
        uses == CLOSED && return nothing
        uses == 0 && return release!(handle)
        yield()
    end
end
