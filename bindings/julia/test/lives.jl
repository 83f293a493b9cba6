@testset "hot calls allocate nothing" begin
    s, f, y, z, ids = Session(model()), Features(k, tokens), copy(x), zeros(Float32, latents, tokens), Int32[1, 2]
    selected, merged, parts, edits = zeros(Float32, 2, tokens), Features(k, tokens), [Features(k, tokens)], [Sae.add(1, 1), Sae.ablate(2)]
    trainer = start!(Trainer(; d=d, n_latents=latents, k=k), x)
    how = Run(; flags=Sae.SAE_RUN_ORDER_INDEX)
    calls = (
        () -> (encode!(f, s, x); nothing),
        () -> (encode!(f, s, x; addend=x, run=how); nothing),
        () -> (encode_selected!(selected, s, x, ids); nothing),
        () -> (encode_dense!(z, s, x); nothing),
        () -> (decode!(y, s, f); nothing),
        () -> (reconstruct!(y, s, x; features=f); nothing),
        () -> (merge_features!(merged, s, parts); nothing),
        () -> (set_edits!(s, 0, edits); nothing),
        () -> (steer!(y, s; known=f); nothing),
        () -> (step!(trainer, x); nothing),
    )
    encode!(parts[1], s, x)
    for call in calls
        call()
        call()
        @test (@allocated call()) == 0
    end
end

@testset "a session is for one task, a model for all" begin
    m, expected, pool = model(), plain_encode(x), Pool(2)
    tasks = map(0:31) do i
        Threads.@spawn begin
            mine = i % 4 == 0 ? Session(m; pool=pool) : Session(m)
            found = Features(k, tokens)
            set_edits!(mine, 0, Sae.add(i, 1))
            right = all(1:50) do _
                same(encode!(found, mine, x), expected) && steer!(copy(x), mine) == x .+ plain.W_dec[:, i+1]
            end
            close(mine)
            right
        end
    end
    @test all(fetch, tasks)
    close(pool)
    close(m)

    s = Session(model())
    refused = Threads.Atomic{Int}(0)
    Threads.@threads for i in 1:200
        try
            encode!(Features(k, tokens), s, x)
        catch failure
            failure isa BadState || rethrow()
            Threads.atomic_add!(refused, 1)
        end
    end
    @test same(encode(s, x), expected)
    Sae.enter!(s.handle)  # as if a call were under way
    @test_throws BadState encode(s, x)
    Sae.leave!(s.handle)
    @test same(encode(s, x), expected)
end

resident() = (GC.gc(); GC.gc(); parse(Int, split(read("/proc/self/statm", String))[2]) * 4096)

@testset "many lives do not grow" begin
    f = Features(k, tokens)
    function live(closes)
        m = model()
        s = Session(m)
        encode!(f, s, x)
        try
            Model("/nowhere")
        catch failure
            failure isa FileError || rethrow()
        end
        closes && (close(s); close(m))
    end
    for closes in (true, false)
        cycle(n) = (for i in 1:n
            live(closes)
            closes || i % 100 == 0 && GC.gc()
        end; resident())
        cycle(1000)
        before = cycle(1000)
        @test cycle(10_000) - before < 16 << 20
    end
end

@testset "what a call uses lives as long as the call" begin
    expected = plain_encode(x)
    for _ in 1:20
        @test info(model()).d_in == d
        s = Session(model(); pool=Pool(2))
        GC.gc()
        @test same(encode(s, copy(x)), expected)
        @test read_weights!(zeros(Float32, d, 3), with_k(model(), 2), Sae.SAE_WEIGHT_W_DEC, 4) == plain.W_dec[:, 5:7]
    end
end

@testset "borrowed weights are given back" begin
    lent() = lock(() -> length(Sae.lent_out), Sae.lent_out_lock)
    function lend()
        lender = Model(weights(); architecture=Sae.SAE_ARCHITECTURE_TOP_K, k=k, borrow=true)
        borrower = Session(lender)
        close(lender)
        return borrower
    end
    s = lend()
    GC.gc()
    sleep(0.02)
    @test lent() == 1
    @test same(encode(s, x), plain_encode(x))
    close(s)
    @test timedwait(() -> lent() == 0, 5.0) == :ok
    @test_throws InvalidArgument Model(Dict("W_enc" => plain.W_enc); architecture=1, k=1, borrow=true)
    @test timedwait(() -> lent() == 0, 5.0) == :ok
    # By the collector, in a task, whose stack does not hold on to what it made.
    wait(@async (lend(); nothing))
    @test timedwait(() -> (GC.gc(); lent() == 0), 5.0) == :ok
end

@testset "the log is heard" begin
    heard = Tuple{Int32,String}[]
    Sae.set_log((level, message) -> push!(heard, (level, message)))
    mktempdir() do dir
        path = joinpath(dir, "heard.safetensors")
        save(model(), path)
        Model(path)
        @test timedwait(() -> any(line -> line[1] == Sae.SAE_LOG_INFO && occursin("heard.safetensors", line[2]), heard), 5.0) == :ok
    end
    @test_throws BadState Sae.set_log(println)
end
