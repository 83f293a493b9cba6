# Encodes, rebuilds and steers real activations, and compares every bit with what is expected:
#
#   julia --project=bindings/julia examples/julia/features.jl examples/data
#
# examples/data/README.md says what the files hold.

using Sae

const tokens = 32

numbers(type, path, size...) = read!(path, Array{type}(undef, size...))

"Whether what was computed is what the file says, to the bit."
function same(folder, name, computed)
    equal = collect(reinterpret(UInt8, vec(computed))) == read(joinpath(folder, "expected", name))
    println(name, ": ", equal ? "the same bits" : "DIFFERENT")
    return equal
end

function main(folder)
    model = Model(joinpath(folder, "sae.safetensors"))
    about = info(model)
    session = Session(model)
    println(about.n_latents, " latents of ", about.model_name, " at ", about.hook_point, " (", about.hook_point_ggml, " in llama.cpp)")

    x = numbers(Float32, joinpath(folder, "activations.f32"), about.d_in, tokens)
    features = encode(session, x)
    x_hat = decode(session, features)
    set_edits!(session, 0, numbers(Edit, joinpath(folder, "expected", "edits.raw"), 4))
    steer!(x, session)
    print("token 0:")
    for (latent, value) in active(features, 1)[1:4]
        print("  latent ", latent, ": ", round(value; digits=3))
    end
    println()

    equal = same(folder, "indices.i32", features.indices) & same(folder, "values.f32", features.values) &
            same(folder, "counts.i32", features.counts) & same(folder, "x_hat.f32", x_hat) & same(folder, "steered.f32", x)
    close(session)
    close(model)
    return equal ? 0 : 1
end

length(ARGS) == 1 || (println(stderr, "usage: julia features.jl examples/data"); exit(2))
exit(main(ARGS[1]))
