using Sae
using Test

@testset "Sae" begin
    include("layout.jl")
    include("operations.jl")
    include("training.jl")
    include("lives.jl")
    include("readme.jl")
end
