const loaded_path = Ref("")

"Where the library that is loaded lies."
library_path() = loaded_path[]

"""
Opens the library, and finds every function that is bound. `SAE_LIBRARY` names its file; without it the system is asked for
`libsae`.
"""
function load_library()
    name = get(ENV, "SAE_LIBRARY", "libsae")
    handle = Libdl.dlopen(name; throw_error=false)
    handle === nothing && error("The library libsae cannot be opened as \"$name\". Set the environment variable " *
          "SAE_LIBRARY to the path of libsae.so, or LD_LIBRARY_PATH to its folder, before Julia starts.")
    loaded_path[] = Libdl.dlpath(handle)
    for (symbol, address) in addresses
        found = Libdl.dlsym(handle, symbol; throw_error=false)
        found === nothing && error("$(loaded_path[]) has no function $symbol: it is of another release than this package")
        address[] = found
    end
    loaded = abi_version()
    loaded == SAE_ABI_VERSION || error("$(loaded_path[]) has ABI $loaded, this package was made for $SAE_ABI_VERSION")
    return nothing
end

"The release of the library that is loaded."
version() = VersionNumber(unsafe_string(sae_version()))

"The ABI of the library that is loaded; `Sae.SAE_ABI_VERSION` is what this package was made for."
abi_version() = Int(sae_abi_version())

"The layouts of SAEs on disk that are read, and whether models are saved in them too: `\"native\" => true, …`."
function formats()
    found = Pair{String,Bool}[]
    writes = Ref{Int32}()
    while (name = sae_format_name(length(found), writes)) != C_NULL
        push!(found, unsafe_string(name) => writes[] == 1)
    end
    return found
end

"The instruction sets that this machine runs, slowest first."
function kernels()
    found = String[]
    while (name = sae_kernels_name(length(found))) != C_NULL
        push!(found, unsafe_string(name))
    end
    return found
end
