# What a call costs in Julia, as call.c measures it in C.

using Sae

const d, latents, k = 8, 16, 2
const rounds, calls = 40, 2000

"The fastest of some rounds."
function measure(name, call)
    best = minimum(1:rounds) do _
        start = time_ns()
        for _ in 1:calls
            call()
        end
        time_ns() - start
    end
    println(name, " ", round(best / calls; digits=1))
end

function main()
    w = reshape(Float32[i * 5 % 11 - 5 for i in 0:latents*d-1], d, latents)
    x, x_hat = reshape(Float32.(1:d), d, 1), zeros(Float32, d, 1)
    session = Session(Model(Dict("W_enc" => w, "W_dec" => w); architecture=Sae.SAE_ARCHITECTURE_TOP_K, k=k))
    features = Features(k, 1)
    measure("encode", () -> encode!(features, session, x))
    measure("decode", () -> decode!(x_hat, session, features))
    measure("steer", () -> steer!(x, session))
end

main()
