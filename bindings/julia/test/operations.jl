"Whole numbers from -5 to 5: all sums of their products are exact in Float32, in whatever order."
mutable struct Wholes
    state::UInt32
end
function next!(w::Wholes)
    w.state = w.state * 0x0019660d + 0x3c6ef35f
    return Float32(Int(w.state >> 16) % 11 - 5)
end
some(seed, size...) = (w = Wholes(seed); Float32[next!(w) for _ in CartesianIndices(size)])

const d, latents, k, tokens = 12, 40, 5, 17

"A TopK SAE in plain Julia."
const plain = (W_enc=some(1, d, latents), W_dec=some(2, d, latents), b_enc=some(3, latents), b_dec=some(4, d))
weights() = Dict(string(name) => copy(array) for (name, array) in pairs(plain))
model(; options...) = Model(weights(); architecture=Sae.SAE_ARCHITECTURE_TOP_K, k=k, options...)

plain_dense(x) = plain.W_enc' * (x .- plain.b_dec) .+ plain.b_enc

function plain_encode(x)
    f = Features(k, size(x, 2))
    for (t, z) in enumerate(eachcol(plain_dense(x)))
        order = filter(i -> z[i] > 0, sortperm(z; rev=true))
        n = min(k, length(order))
        f.indices[1:n, t] = order[1:n] .- 1
        f.values[1:n, t] = z[order[1:n]]
        f.counts[t] = n
    end
    return f
end

function plain_decode(f)
    x = repeat(plain.b_dec, 1, length(f.counts))
    for t in axes(x, 2), (i, value) in active(f, t)
        x[:, t] .+= value .* plain.W_dec[:, i+1]
    end
    return x
end

same(a::Features, b::Features) = a.indices == b.indices && a.values == b.values && a.counts == b.counts

const x = some(7, d, tokens)

@testset "encode and decode as in plain Julia" begin
    m = model()
    s = Session(m)
    expected = plain_encode(x)
    f = encode(s, x)
    @test same(f, expected)
    @test active(f, 3) == [i => v for (i, v) in zip(expected.indices[:, 3], expected.values[:, 3]) if i >= 0]
    @test decode(s, f) == plain_decode(expected)
    @test encode_dense!(zeros(Float32, latents, tokens), s, x; what=Sae.SAE_DENSE_PRE_ACTIVATIONS) == plain_dense(x)
    activations = encode_dense!(zeros(Float32, latents, tokens), s, x)
    @test sum(activations; dims=1) == sum(expected.values; dims=1)
    ids = Int32[expected.indices[1, 1], 3, latents]
    @test encode_selected!(zeros(Float32, 3, tokens), s, x, ids) == [activations[ids[1:2].+1, :]; zeros(Float32, 1, tokens)]
    again = Features(k, tokens)
    @test reconstruct!(zeros(Float32, d, tokens), s, x; features=again) == plain_decode(expected)
    @test same(again, expected)
    y = copy(x)
    @test reconstruct!(y, s, y) == plain_decode(expected)
    close(s)
    close(m)
end

@testset "arrays of every type and layout" begin
    s = Session(model())
    expected = plain_encode(x)
    @test same(encode(s, Float16.(x)), expected)
    halves = BFloat16.(x)
    @test Float32.(halves) == x
    @test same(encode(s, halves), expected)
    @test isdefined(Core, :BFloat16) == false || same(encode(s, Core.BFloat16.(x)), expected)
    gaps = zeros(Float32, d + 3, tokens)
    gaps[2:d+1, :] = x
    @test same(encode(s, view(gaps, 2:d+1, :)), expected)
    @test same(encode(s, view(x, :, 3:5)), expected[3:5])
    @test same(encode(s, x .- 1; addend=ones(Float32, d, tokens)), expected)
    @test same(encode(s, DeviceArray{Float32}(pointer(x), d, tokens; device=Sae.sae_device(Sae.SAE_DEVICE_CPU, 0))), expected)
    @test all(t -> issorted(first.(active(encode(s, x; run=Run(; flags=Sae.SAE_RUN_ORDER_INDEX)), t))), 1:tokens)
    part = Features(k, tokens)
    encode!(part[1:3], s, x[:, 1:3])
    @test part.indices[:, 1:3] == expected.indices[:, 1:3] && all(part.indices[:, 4:end] .== -1)
    @test isempty(encode(s, zeros(Float32, d, 0)).counts)
    broken = copy(x)
    broken[3, 2] = NaN
    f = encode(s, broken)
    @test f.counts[2] == -1 && isempty(active(f, 2)) && f.counts[1] == expected.counts[1]

    @test_throws InvalidTensor encode(s, Float64.(x))
    @test_throws InvalidTensor encode(s, x')
    @test_throws InvalidTensor encode(s, permutedims(x)')
    @test_throws InvalidTensor encode(s, view(x, 1:2:d, :))
    @test_throws InvalidTensor encode!(part, s, view(x, 1, :))
end

@testset "steering" begin
    s = Session(model(); slots=2, edits_per_slot=3)
    expected = plain_encode(x)
    set_edits!(s, 0, Sae.add(7, 2))
    y = copy(x)
    @test steer!(y, s) === y
    @test y == x .+ 2 .* plain.W_dec[:, 8]

    top = expected.indices[1, 1]
    set_edits!(s, 1, Sae.ablate(top))
    slots = fill(Int32(-1), tokens)
    slots[1] = 1
    before, out = copy(x), zeros(Float32, d, tokens)
    @test steer!(x, s; row_slot=slots, known=encode(s, x), out=out) === out
    @test x == before && out[:, 2:end] == x[:, 2:end]
    @test out[:, 1] == x[:, 1] .- expected.values[1, 1] .* plain.W_dec[:, top+1]
    @test steer!(x, s; row_slot=slots, out=zeros(Float32, d, tokens)) == out

    set_edits!(s, 0)
    @test steer!(copy(x), s) == x
    @test_throws InvalidArgument set_edits!(s, 0, Sae.set(0, 1), Sae.scale(0, 2))
    @test_throws InvalidArgument set_edits!(s, 0, Sae.add(latents, 1))
    @test_throws InvalidArgument set_edits!(s, 5, Sae.add(1, 1))
end

@testset "shards merge to the whole" begin
    mktempdir() do dir
        path, m = joinpath(dir, "sae.safetensors"), model()
        save(m, path)
        parts = [encode(Session(Model(path; first_latent=first, n_latents=10)), x) for first in 0:10:latents-1]
        @test info(Model(path; first_latent=10, n_latents=10)).first_latent == 10
        s = Session(m)
        @test same(merge_features!(Features(k, tokens), s, parts), encode(s, x))
        @test_throws InvalidArgument merge_features!(Features(k, tokens), s, repeat(parts[1:1], 65))
    end
end

@testset "what a model is survives its file" begin
    mktempdir() do dir
        path = joinpath(dir, "sae")
        convention = Convention(; model_name="a model", hook_point="l_out-8", excluded_positions=[0, 5], context_size=64,
            prepend_bos=Sae.SAE_YES, folded_layer_norm=Sae.SAE_NO)
        save(model(; convention=convention, normalization=Sae.SAE_NORMALIZATION_LAYER_NORM), path)
        m = Model(path; dtype=BFloat16, convention=Convention(; centered_writing_weights=Sae.SAE_YES))
        about = info(m)
        @test (about.architecture, about.normalization) == (Sae.SAE_ARCHITECTURE_TOP_K, Sae.SAE_NORMALIZATION_LAYER_NORM)
        @test (about.dtype, about.d_in, about.d_out, about.n_latents, about.k, about.row_state_width) == (BFloat16, d, d, latents, k, 2)
        @test (about.format, about.model_name, about.hook_point) == ("native", "a model", "l_out-8")
        @test (about.hook_point_transformer_lens, about.hook_point_hugging_face) == ("blocks.8.hook_resid_post", "model.layers.8")
        @test about.hook_point_out === nothing
        @test (about.excluded_positions, about.context_size) == ([0, 5], 64)
        @test (about.prepend_bos, about.folded_layer_norm, about.centered_writing_weights) == (1, -1, 1)
        @test about.bytes == load_memory(path; dtype=BFloat16).resident
        @test session_memory(m).workspace > 0
        s = Session(m)
        @test Sae.kernels(s) in Sae.kernels()
        f = encode(s, x)
        @test size(f.row_state) == (2, tokens)
        decode(s, f)
        @test wait(s) === nothing
        @test Sae.session_status(s) === nothing
        f.indices[1] = latents
        decode(s, f)
        @test_throws InvalidArgument Sae.session_status(s)
        @test ("native" => true) in Sae.formats()
    end
end

@testset "models made of others" begin
    m = model()
    @test info(with_k(m, 3)).k == 3
    @test read_weights!(zeros(Float32, d, 2), subset(with_k(m, 2), [4, 2]), Sae.SAE_WEIGHT_W_ENC) == plain.W_enc[:, [5, 3]]
    @test read_weights!(zeros(Float32, latents), m, Sae.SAE_WEIGHT_B_ENC) == plain.b_enc
    @test info(prefix(m, 7)).n_latents == 7
    @test read_weights!(zeros(Float32, d, 3), fold_activation_scale(m, 2), Sae.SAE_WEIGHT_W_ENC, 4) == 2 .* plain.W_enc[:, 5:7]
    threshold = with_threshold(m, x; pool=Pool(2))
    @test info(threshold).architecture == Sae.SAE_ARCHITECTURE_JUMP_RELU
    @test_throws Unsupported fold_decoder_norms(m)
    column = read_weights!(zeros(Float32, d, 1), fold_decoder_norms(threshold), Sae.SAE_WEIGHT_W_DEC)
    @test sum(abs2, column) ≈ 1
end

@testset "bad input is refused by name" begin
    m = model()
    s = Session(m; max_tokens=tokens)
    f = Features(k, tokens)
    fill!(f.values, 99)
    message(call) = try
        call()
        "nothing was thrown"
    catch failure
        sprint(showerror, failure)
    end
    @test occursin("SAE_ERROR_INVALID_TENSOR: x", message(() -> encode!(f, s, zeros(Float32, d - 1, tokens))))
    @test occursin("addend", message(() -> encode!(f, s, x; addend=zeros(Float32, d, 2))))
    @test occursin("counts", message(() -> encode!(Features(f.values, f.indices, zeros(Int32, 3), nothing), s, x)))
    @test occursin("x_hat", message(() -> decode!(zeros(Float32, d, 2), s, f)))
    @test_throws InvalidTensor encode(s, zeros(Int32, d, tokens))
    @test_throws InvalidArgument encode(s, zeros(Float32, d, 2 * tokens))
    @test all(f.values .== 99)
    @test occursin("SAE_ERROR_IO: /nowhere/at all", message(() -> Model("/nowhere/at all")))
    @test_throws FileError Model("/nowhere")
    @test occursin("NUL", message(() -> Model("a\0b")))
    @test occursin("W_dec", message(() -> Model(Dict("W_enc" => plain.W_enc); architecture=1, k=1)))
    @test occursin("abacus", message(() -> Session(m; kernels="abacus")))
    @test_throws MethodError Session(m; no_such_option=1)
    @test_throws InvalidArgument Pool(-1)
    close(s)
    close(s)
    @test occursin("SAE_ERROR_BAD_STATE: session: it is closed", message(() -> encode!(f, s, x)))
    close(m)
    @test_throws BadState info(m)
    @test Sae.status(try info(m) catch e; e end) == Sae.SAE_ERROR_BAD_STATE
end

@testset "the doctor" begin
    m = model()
    sample = some(5, d, 2000)
    baseline = diagnose(m, sample)
    @test info(baseline).rows_given == 2000 && info(baseline).l0 > 0
    report = diagnose(m, plain_decode(plain_encode(sample)); baseline=baseline, pool=Pool(2), max_rows=1000)
    about = info(report)
    @test about.rows_measured <= 1000 && about.verdict != 0
    found = findings(report)
    @test length(found) == about.n_findings
    @test all(finding -> finding.title !== nothing && finding.advice !== nothing, found)
    text = sprint(show, MIME("text/plain"), report)
    @test all(finding -> occursin(finding.title, text), found)
    @test occursin("\"verdict\"", Sae.json(report))
    close(report)
    @test_throws BadState info(report)
end

@testset "pools give the same numbers" begin
    many = some(9, d, 300)
    m = model()
    alone = encode(Session(m), many)
    pool = Pool(3)
    @test Sae.threads(pool) == 3
    s = Session(m; pool=pool)
    close(pool)
    @test same(encode(s, many), alone) && same(alone, plain_encode(many))
    @test_throws BadState Session(m; pool=pool)
end
