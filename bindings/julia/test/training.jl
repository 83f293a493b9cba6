batch(seed) = plain_decode(plain_encode(some(seed, d, 256)))
decoder(trainer) = read_weights!(zeros(Float32, d, latents), export_model(trainer; what=Sae.SAE_EXPORT_EMA), Sae.SAE_WEIGHT_W_DEC)

@testset "training resumes to the same bits" begin
    options = (d=d, n_latents=latents, k=k, learning_rate=1e-2, max_batch_tokens=256, seed=5)
    trainer = Trainer(; options..., convention=Convention(; hook_point="l_out-3"))
    @test progress(trainer).started == 0 && progress(trainer).k == k
    @test_throws BadState step!(trainer, batch(1))
    start!(trainer, batch(1))
    trail = [step!(trainer, batch(seed)) for seed in 1:60]
    @test trail[end].fvu < trail[1].fvu / 2
    @test (trail[end].step, trail[end].applied, trail[end].tokens) == (60, 1, 256)

    mktempdir() do dir
        save(trainer, joinpath(dir, "run"))
        other = resume(joinpath(dir, "run"); pool=Pool(2))
        @test (progress(other).step, progress(other).rows_given) == (60, 60 * 256)
        mask = Int32[i <= 200 for i in 1:256]
        for one in (trainer, other)
            stats = step!(one, batch(99); row_mask=mask, accumulate=true)
            @test (stats.applied, stats.tokens_masked) == (0, 56)
            step!(one, batch(100); run=Run(; flags=Sae.SAE_RUN_FAST))
        end
        @test decoder(trainer) == decoder(other)
        @test_throws InvalidArgument resume(joinpath(dir, "run"); d=d + 1)
        @test_throws FileError resume(dir)
    end
    @test info(export_model(trainer)).hook_point == "l_out-3"

    warm = start!(Trainer(; options...), batch(1); model=export_model(trainer))
    @test step!(warm, batch(3)).fvu < trail[1].fvu / 2
    @test_throws InvalidArgument Trainer(; d=d)
    nested = (options..., recipe=Sae.SAE_RECIPE_MATRYOSHKA, prefixes=[10, latents])
    @test_throws InvalidArgument Trainer(; nested..., prefix_weights=[1])
    nested = start!(Trainer(; nested..., prefix_weights=[1, 2]), batch(1))
    step!(nested, batch(2))
    @test info(export_model(nested)).prefixes == [10, latents]
end

@testset "transcoders" begin
    options = (d=d, n_latents=latents, k=k, flags=Sae.SAE_TRAIN_TRANSCODER | Sae.SAE_TRAIN_SKIP)
    trainer = start!(Trainer(; options...), batch(1); target=batch(2))
    @test step!(trainer, batch(1); target=batch(2)).tokens == 256
    m = export_model(trainer)
    @test info(m).flags & Sae.SAE_MODEL_HAS_SKIP != 0
    start!(Trainer(; options...), batch(1); target=batch(2), model=m)
end

@testset "a buffer gives every row once" begin
    rows, size_of_batch = 4000, 50
    options = (d=2, memory_bytes=64 << 10, flags=Sae.SAE_BUFFER_DOCUMENTS, seed=3)
    buffer = Buffer(; options...)
    @test state(buffer).capacity == buffer_memory(; options...).capacity
    pushing = map(0:3) do task
        Threads.@spawn for first in 1+10task:40:rows
            part = first:first+9
            push_rows!(buffer, Float32[row for _ in 1:2, row in part]; documents=collect(part)) == 10 || error("not all were taken")
        end
    end
    taking = map(1:2) do _
        Threads.@spawn begin
            seen = Int64[]
            out, documents = zeros(Float32, 2, size_of_batch), zeros(Int64, size_of_batch)
            while (taken = take_rows!(out, buffer; documents=documents)) !== nothing
                out[1, 1:taken] == documents[1:taken] || error("a row with another's document")
                append!(seen, documents[1:taken])
            end
            seen
        end
    end
    foreach(wait, pushing)
    finish!(buffer)
    @test sort(reduce(vcat, fetch.(taking))) == 1:rows
    @test (state(buffer).pushed, state(buffer).taken, state(buffer).closed) == (rows, rows, 1)
    @test_throws BadState push_rows!(buffer, zeros(Float32, 2, 1); documents=[0])
    @test_throws InvalidTensor push_rows!(buffer, zeros(Float32, 2, 1); documents=[0, 1])
    close(buffer)
    @test_throws BadState state(buffer)
end

@testset "a buffer goes on where it was saved" begin
    mktempdir() do dir
        buffer = Buffer(; d=2, memory_bytes=64 << 10, seed=9)
        @test push_rows!(buffer, some(2, 2, 1000)) == 1000
        @test take_rows!(zeros(Float32, 2, 2000), Buffer(; d=2, memory_bytes=1 << 20); wait=false) == 0
        save(buffer, joinpath(dir, "buffer"))
        again = restore(joinpath(dir, "buffer"))
        foreach(finish!, (buffer, again))
        for _ in 1:10
            a, b = zeros(Float32, 2, 100), zeros(Float32, 2, 100)
            @test take_rows!(a, buffer) == take_rows!(b, again) == 100
            @test a == b
        end
        @test take_rows!(zeros(Float32, 2, 1), again) === nothing
    end
end
