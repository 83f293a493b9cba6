//! The report of a run: one page, with all its drawings and its style inside.

use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;

use sae::training::run::{EVALUATIONS, Measured, STEPS, TrainingRun};
use serde_json::{Map, Value};

use super::chart::{COLOURS, Chart, Histogram, Series, escaped, short};
use crate::output::{Failure, Result, grouped};

/// Bins of the histogram of densities, in powers of ten.
const BIN: f64 = 0.25;

const STYLE: &str = "
:root { color-scheme: light dark; --ground: #fff; --ink: #1b1f24; --soft: #667; --rule: #e3e5ea;
  --c0: #2563eb; --c1: #d97706; --c2: #059669; --c3: #dc2626; --c4: #7c3aed; --c5: #0e7490; --c6: #be185d; --c7: #4d7c0f; }
@media (prefers-color-scheme: dark) { :root { --ground: #14161a; --ink: #e6e8ec; --soft: #9aa1ad; --rule: #2b2f37;
  --c0: #6ea8fe; --c1: #f5b14c; --c2: #4fd1a0; --c3: #f58a8a; --c4: #b69cf9; --c5: #5fc9de; --c6: #f289bd; --c7: #a8d05c; } }
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1rem; margin: 2rem 0 .4rem; } p { color: var(--soft); margin: .2rem 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; } th:first-child { text-align: left; white-space: nowrap; }
th, td { padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid var(--rule); } td { text-align: right; }
.scroll { overflow-x: auto; }
.chart { display: flex; flex-wrap: wrap; gap: 0 1.5rem; align-items: flex-start; } .chart svg { flex: 1 1 30rem; min-width: 0; }
.chart table { flex: 0 0 14rem; font-size: 13px; }
svg { font: 11px system-ui, sans-serif; } svg text { fill: var(--soft); } text.y { text-anchor: end; } text.x { text-anchor: middle; }
.grid { stroke: var(--rule); } .axis, .tick { stroke: var(--soft); }
.line { fill: none; stroke: var(--c); stroke-width: 1.6; stroke-linejoin: round; } .mark { fill: var(--ground); stroke: var(--c); stroke-width: 1.6; }
.area { fill: var(--c); fill-opacity: .18; stroke: var(--c); stroke-width: 1.4; }
.swatch { display: inline-block; width: .7rem; height: .7rem; border-radius: .2rem; background: var(--c); margin-right: .45rem; }
pre { overflow-x: auto; font-size: 13px; }
";

/// What is drawn over a run.
struct Curve {
    title: &'static str,
    /// Its name in `metrics.jsonl`, and of the same on rows held out in `evaluation.jsonl`.
    key: &'static str,
    held_out: Option<&'static str>,
    /// Whether it is divided by the number of latents.
    share: bool,
    may_be_log: bool,
}

const fn curve(title: &'static str, key: &'static str) -> Curve {
    Curve { title, key, held_out: None, share: false, may_be_log: false }
}

const CURVES: [Curve; 7] = [
    Curve { may_be_log: true, ..curve("Loss", "loss") },
    Curve { held_out: Some("fvu"), may_be_log: true, ..curve("FVU of batches; circles: of rows held out", "fvu") },
    Curve { held_out: Some("l0"), ..curve("L0 of batches; circles: of rows held out", "l0") },
    Curve { share: true, ..curve("Share of dead latents", "dead") },
    curve("Learning rate", "lr"),
    Curve { may_be_log: true, ..curve("Norm of the gradient", "grad_norm") },
    curve("Tokens per second", "tokens_per_second"),
];

type Object = Map<String, Value>;

/// What the files of one SAE tell.
struct History {
    name: String,
    n_latents: usize,
    /// For each step the tokens seen, and a value for each of the curves; NaN where there is none.
    steps: Vec<(f64, [f64; CURVES.len()])>,
    last: Object,
    evaluations: Vec<Object>,
}

impl History {
    fn read(folder: &Path, name: &str, n_latents: usize) -> Result<Self> {
        let (mut steps, mut last) = (Vec::new(), Object::new());
        objects(&folder.join(STEPS), |object| {
            let value = |key: &str| number(&object, key).unwrap_or(f64::NAN);
            steps.push((value("tokens"), CURVES.map(|curve| value(curve.key))));
            last = object;
        })?;
        let mut evaluations = Vec::new();
        objects(&folder.join(EVALUATIONS), |object| evaluations.push(object))?;
        Ok(Self { name: name.to_owned(), n_latents, steps, last, evaluations })
    }
}

/// The page.
pub(super) fn html(run: &TrainingRun, config: &str, measured: &[Measured]) -> Result<String> {
    let read = |(name, n_latents)| History::read(&run.folder().join(name), name, n_latents);
    let all = run.names().zip(run.latents()).map(read).collect::<Result<Vec<_>>>()?;
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Training run {0}</title><style>{STYLE}{1}</style></head><body><h1>Training run {0}</h1><p>{2} steps, {3} rows",
        escaped(&run.folder().file_name().unwrap_or_default().to_string_lossy()),
        (0..COLOURS).map(|i| format!(".c{i} {{ --c: var(--c{i}); }}\n")).collect::<String>(),
        grouped(run.step()),
        grouped(run.rows_given()),
    );
    if let Some(planned) = run.rows_planned().filter(|&planned| planned > run.rows_given()) {
        write!(page, " of {}", grouped(planned)).ok();
    }
    let seconds = all.iter().filter_map(|of| number(&of.last, "elapsed")).fold(0.0, f64::max);
    write!(page, " in {}.</p>", duration(seconds)).ok();
    page += &table(&all);
    page += &charts(&all);
    page += &densities(measured);
    write!(
        page,
        "<h2>Configuration</h2><details><summary>config.toml</summary><pre>{}</pre></details>",
        escaped(config)
    )
    .ok();
    Ok(page + "</body></html>\n")
}

/// The figures at the end.
fn table(all: &[History]) -> String {
    let mut text = "<div class=\"scroll\"><table><tr><th>SAE</th><th>latents</th><th>loss</th><th>FVU</th><th>L0</th><th>dead</th>\
                    <th>FVU held out</th><th>L0 held out</th><th>silent held out</th><th>cosine held out</th></tr>"
        .to_owned();
    for (i, of) in all.iter().enumerate() {
        let share = |value: f64| format!("{:.2} %", 100.0 * value);
        let step = |key: &str| number(&of.last, key);
        let held = |key: &str| of.evaluations.last().and_then(|held| number(held, key));
        let cells = [
            Some(grouped(of.n_latents as u64)),
            step("loss").map(short),
            step("fvu").map(|v| format!("{v:.4}")),
            step("l0").map(|v| format!("{v:.1}")),
            step("dead").map(|v| share(v / of.n_latents as f64)),
            held("fvu").map(|v| format!("{v:.4}")),
            held("l0").map(|v| format!("{v:.1}")),
            held("dead_share").map(share),
            held("cosine").map(|v| format!("{v:.4}")),
        ];
        write!(text, "<tr><th>{}{}</th>", swatch(i), escaped(&of.name)).ok();
        for cell in cells {
            write!(text, "<td>{}</td>", cell.unwrap_or_else(|| "–".to_owned())).ok();
        }
        text += "</tr>";
    }
    text + "</table></div>"
}

/// The curves.
fn charts(all: &[History]) -> String {
    let mut text = String::new();
    for (i, Curve { title, held_out, share, may_be_log, .. }) in CURVES.into_iter().enumerate() {
        let series = all.iter().map(|of| {
            let scale = if share { 1.0 / of.n_latents as f64 } else { 1.0 };
            let line = of.steps.iter().map(|(tokens, values)| (*tokens, values[i] * scale)).collect();
            let mark = |held: &Object| Some((number(held, "tokens")?, number(held, held_out?)?));
            Series { name: of.name.clone(), line, marks: of.evaluations.iter().filter_map(mark).collect() }
        });
        let chart = Chart { title, x: "tokens", may_be_log, series: series.collect() };
        let last = |series: &Series| series.line.last().map_or("–".to_owned(), |point| short(point.1));
        let beside = chart.series.iter().map(|series| (series.name.as_str(), last(series)));
        text += &figure(title, &chart.svg(), "last", beside);
    }
    text
}

/// How often latents are active on the rows held out.
fn densities(measured: &[Measured]) -> String {
    // Rows that are not fit for one SAE may be for another.
    let rows = |of: &Measured| of.evaluation.metrics.rows;
    let Some(most) = measured.iter().map(rows).max().filter(|&most| most > 0) else {
        return String::new();
    };
    // From the bin of a single row to that which ends with all.
    let first = ((1.0 / most as f64).log10() / BIN).floor();
    let bins = (-first).max(1.0) as usize;
    let series = measured.iter().map(|of| {
        let mut counts = vec![0; bins];
        for &active in of.active_rows.iter().filter(|&&active| active > 0) {
            let bin = ((active as f64 / rows(of) as f64).log10() / BIN).floor() - first;
            counts[(bin as usize).min(bins - 1)] += 1;
        }
        (of.name.clone(), counts)
    });
    let title = "Density: latents by log₁₀ of the share of rows held out on which they are active";
    let x = "log₁₀ density";
    let histogram = Histogram { title, x, from: first * BIN, width: BIN, series: series.collect() };
    let silent = |of: &Measured| {
        let silent = of.active_rows.iter().filter(|&&active| active == 0).count();
        format!("{} ({} rows)", grouped(silent as u64), grouped(rows(of) as u64))
    };
    let beside = measured.iter().map(|of| (of.name.as_str(), silent(of)));
    figure(title, &histogram.svg(), "on no row held out", beside)
}

/// A drawing and the numbers beside it.
fn figure<'a>(title: &str, svg: &str, head: &str, beside: impl Iterator<Item = (&'a str, String)>) -> String {
    let mut text =
        format!("<h2>{}</h2><div class=\"chart\">{svg}<table><tr><th>SAE</th><th>{head}</th></tr>", escaped(title));
    for (i, (name, value)) in beside.enumerate() {
        write!(text, "<tr><th>{}{}</th><td>{value}</td></tr>", swatch(i), escaped(name)).ok();
    }
    text + "</table></div>"
}

fn swatch(i: usize) -> String {
    format!("<span class=\"swatch c{}\"></span>", i % COLOURS)
}

fn number(object: &Object, key: &str) -> Option<f64> {
    object.get(key)?.as_f64()
}

fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest} s"),
        (0, _) => format!("{minutes} min {rest} s"),
        _ => format!("{hours} h {minutes} min"),
    }
}

/// Hands on the objects of a file of JSON lines; none if it is not there.
fn objects(path: &Path, mut each: impl FnMut(Object)) -> Result<()> {
    let at = |e: &dyn std::fmt::Display| Failure::Message(format!("{}: {e}", path.display()));
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        file => file.map_err(|e| at(&e))?,
    };
    for line in BufReader::new(file).lines() {
        each(serde_json::from_str(&line.map_err(|e| at(&e))?).map_err(|e| at(&e))?);
    }
    Ok(())
}
