"""
    Pool(threads=0)

Threads of the library's that sessions and trainers may share, of which the calling one is the first; 0: one per core.
Results do not depend on how many there are. It may be closed before them, though not while one is being made.
"""
struct Pool
    handle::Handle
end

Pool(threads::Integer=0) = Pool(Handle(create((out, error) -> sae_pool_create(threads, out, error)), "pool", sae_pool_free))

"How many threads run at once."
threads(pool::Pool) = @within pool.handle Int(sae_pool_threads(pool.handle.object))

Base.close(pool::Pool) = close!(pool.handle)

"Does something with the address of a pool that must not be freed meanwhile, NULL of `nothing`."
holding(act::Function, ::Nothing) = act(C_NULL)
holding(act::Function, pool::Pool) = @within pool.handle act(pool.handle.object)
