"""
    Report

What [`diagnose`](@ref) says of a model and a sample of activations: [`info`](@ref) gives its numbers,
[`findings`](@ref) what was found, printing it the whole for people, `Sae.json` for programs.
"""
struct Report
    handle::Handle
end

Base.close(report::Report) = close!(report.handle)

"""
    diagnose(model, x; target=nothing, positions=nothing, baseline=nothing, pool=nothing, max_rows=16384)

Examines whether activations `x`, of size `(d_in, tokens)`, are what a model expects, and names the likely fault if not,
in a [`Report`](@ref). Some thousand tokens, of many contexts, are a good sample.

- `target`, of size `(d_out, tokens)`: what the output is compared with; transcoders need it
- `positions`, a vector of `Int32`: each token's position in its context, -1 if unknown
- `baseline`: a report of activations known to be good, to compare with, instead of the reference in the model's
  convention
"""
function diagnose(model::Model, x; target=nothing, positions=nothing, baseline=nothing, pool=nothing, max_rows::Integer=0)
    scope = Scope()
    known = baseline === nothing ? C_NULL : enter!(baseline.handle)
    try
        GC.@preserve scope baseline holding(pool) do threads
            how = struct!(scope, sae_doctor_options(;
                target=tensor!(scope, target), positions=tensor!(scope, positions), baseline=known, pool=threads, max_rows=max_rows,
            ))
            sample = tensor!(scope, x)
            object = @within model.handle create((out, error) -> sae_doctor(model.handle.object, sample, how, out, error))
            return Report(Handle(object, "report", sae_report_free))
        end
    finally
        baseline === nothing || leave!(baseline.handle)
    end
end

"""
    info(report)

The numbers of a report: a named tuple with the fields of `sae_report_info` in the header, such as `verdict`
(`Sae.SAE_VERDICT_…`), `fvu`, `l0`.
"""
info(report::Report) =
    @within report.handle natural(query((out, error) -> sae_report_get(report.handle.object, out, error), sae_report_info()))

"""
    findings(report)

What was found, the worst first: named tuples of `code`, `severity`, `factor`, `fvu_mended`, `title`, `evidence` and
`advice`.
"""
findings(report::Report) = @within report.handle [
    natural(query((out, error) -> sae_report_finding(report.handle.object, i, out, error), sae_finding())) for
    i in 0:query((out, error) -> sae_report_get(report.handle.object, out, error), sae_report_info()).n_findings-1
]

Base.show(io::IO, ::MIME"text/plain", report::Report) =
    @within report.handle print(io, unsafe_string(sae_report_text(report.handle.object)))

"A report as JSON."
json(report::Report) = @within report.handle unsafe_string(sae_report_json(report.handle.object))
