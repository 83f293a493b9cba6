@testset "the README's example runs" begin
    readme = read(joinpath(@__DIR__, "..", "README.md"), String)
    examples = [found[1] for found in eachmatch(r"```julia\n(.*?)```"s, readme)]
    @test length(examples) >= 1
    mktempdir() do dir
        cd(dir) do
            for example in examples
                @test (include_string(Module(), example); true)
            end
        end
    end
end
