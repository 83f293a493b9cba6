//! What the parts found, as one JSON and a short table.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Reads parts.jsonl and what each part said, writes results.json and prints the tables. Fails if a part did.
pub fn run(folder: &Path) -> ExitCode {
    let parts = lines(&folder.join("parts.jsonl"));
    let (mut all, mut worst) = (Vec::new(), 0);
    println!("{:12} {:>10}  found", "part", "outcome");
    for part in &parts {
        let (name, code) = (part["part"].as_str().unwrap_or("?"), part["exit"].as_i64().unwrap_or(1));
        let said = lines(&folder.join(format!("{name}.jsonl")));
        let outcome = match code {
            0 => "ok",
            77 => "no device",
            124 | 137 => "too slow",
            _ => "failed",
        };
        let found: Vec<String> = said.iter().filter_map(summary).collect();
        println!("{name:12} {outcome:>10}  {}", found.join("; "));
        worst = worst.max(match code {
            0 => 0,
            77 => 1,
            _ => 2,
        });
        all.push(json!({ "part": name, "outcome": outcome, "exit": code, "found": said }));
    }
    let written = fs::write(folder.join("results.json"), format!("{:#}\n", Value::Array(all)));
    times(&lines(&folder.join("timing.jsonl")), &lines(&folder.join("peers.jsonl")));
    match (worst, written) {
        (0, Ok(())) => ExitCode::SUCCESS,
        (1, Ok(())) => ExitCode::from(77),
        _ => ExitCode::FAILURE,
    }
}

fn summary(said: &Value) -> Option<String> {
    ["reason", "device", "wrong", "host_allocations", "device_bytes", "bytes_per_second", "differs"]
        .iter()
        .find_map(|key| said.get(key).map(|value| format!("{key}: {}", value.to_string().trim_matches('"'))))
}

/// Microseconds by shape and tokens, peers beside.
fn times(ours: &[Value], peers: &[Value]) {
    let columns = ["encode_exact", "encode_fast", "decode", "steer_16", "read_w"];
    let of_peers = ["mm", "linear_topk", "mm_flashinfer"];
    let rows: Vec<&Value> = ours.iter().filter(|row| row.get("tokens").is_some()).collect();
    if rows.is_empty() {
        return;
    }
    println!("\nmicroseconds\n{:>7} {:>7} {:>4} {:>7}", "d", "n", "k", "tokens");
    for row in rows {
        let key = |row: &Value| ["d", "n", "k", "tokens"].map(|key| row[key].as_i64());
        let peer = peers.iter().find(|peer| key(peer) == key(row));
        let mut cells: Vec<String> = columns.iter().filter_map(|name| cell(name, row)).collect();
        cells.extend(peer.iter().flat_map(|peer| of_peers.iter().filter_map(|name| cell(name, peer))));
        let [d, n, k, tokens] = key(row).map(Option::unwrap_or_default);
        println!("{d:7} {n:7} {k:4} {tokens:7}  {}", cells.join("  "));
    }
}

fn cell(name: &str, row: &Value) -> Option<String> {
    row[name].as_f64().map(|seconds| format!("{name} {:.1}", 1e6 * seconds))
}
