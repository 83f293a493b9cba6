# The header by the C compiler's eyes, beside src/c.jl and src/constants.jl.

const include_dir = normpath(joinpath(@__DIR__, "..", "..", "..", "include"))
const header = read(joinpath(include_dir, "sae.h"), String)

"What a C program prints."
function in_c(statements)
    mktempdir() do dir
        source, program = joinpath(dir, "layout.c"), joinpath(dir, "layout")
        write(source, "#include <sae.h>\n#include <stdio.h>\nint main(void) {\n", join(statements, "\n"), "\nreturn 0;\n}\n")
        run(`gcc -std=c11 -I$include_dir $source -o $program`)
        return split(read(`$program`, String), '\n'; keepempty=false)
    end
end

@testset "structs lie as C lays them" begin
    structs = [Symbol(found[1]) for found in eachmatch(r"^typedef struct (sae_\w+) \{"m, header)]
    @test length(structs) >= 26
    @test all(name -> isdefined(Sae, name), structs)
    statements, ours = String[], String[]
    for name in structs
        type = getfield(Sae, name)
        push!(statements, "printf(\"$name %zu\\n\", sizeof($name));")
        push!(ours, "$name $(sizeof(type))")
        for (i, field) in enumerate(fieldnames(type))
            push!(statements, "printf(\"$name.$field %zu %zu\\n\", offsetof($name, $field), sizeof((($name *)0)->$field));")
            push!(ours, "$name.$field $(fieldoffset(type, i)) $(sizeof(fieldtype(type, i)))")
        end
    end
    @test in_c(statements) == ours
    # Every field of the header's is there, not only ours in theirs.
    for found in eachmatch(r"^typedef struct (sae_\w+) \{(.*?)^\}"ms, header)
        fields = [Symbol(field[1]) for field in eachmatch(r"^ +[^/\n]*?(\w+)(\[\d+\])?;$"m, found[2])]
        @test fields == collect(fieldnames(getfield(Sae, Symbol(found[1]))))
    end
end

@testset "constants are the header's" begin
    names = [found[1] for found in eachmatch(r"^#define (SAE_[A-Z0-9_]+) -?\d+$"m, header)]
    @test length(names) > 130
    missing_ones = filter(name -> !isdefined(Sae, Symbol(name)), names)
    @test isempty(missing_ones)
    values = in_c(["printf(\"%lld\\n\", (long long)$name);" for name in names])
    @test values == [string(getfield(Sae, Symbol(name))) for name in names]
end

@testset "the whole header is bound" begin
    declared = r"^(sae_status|void|const char \*|int32_t|uint32_t) ?(sae_\w+)\((.*?)\);"ms
    plain = replace(header, r"//.*" => "")
    functions = [(found[2], found[1], found[3] == "void" ? 0 : length(split(found[3], ','))) for found in eachmatch(declared, plain)]
    @test length(functions) > 60
    @test sort(first.(functions)) == sort(first.(Sae.addresses))
    for (name, _, arguments) in functions
        bound = getfield(Sae, Symbol(name))
        @test first(methods(bound)).nargs - 1 == arguments
    end
end
