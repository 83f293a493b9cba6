//! Checks and measures the CUDA backend where there is a GPU: `make gpu-bundle`, then `run` there. Each part prints one line of
//! JSON for each finding, and ends with 0 if all is well, 1 if not, 77 where there is no device that serves.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks, clippy::unwrap_used, missing_docs, unreachable_pub)]

mod allocation;
#[allow(dead_code)]
#[path = "../../tests/common/cases.rs"]
mod cases;
mod device;
mod graphs;
mod parity;
mod report;
mod timing;

use std::process::ExitCode;

use sae::Status;
use sae::backend::cuda::NvidiaDriver;
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;

/// Says one thing that was found.
fn say(mut finding: Value, part: &str) {
    finding["part"] = json!(part);
    println!("{finding}");
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let part: fn() -> bool = match words[..] {
        ["parity"] => parity::run,
        ["graphs"] => graphs::run,
        ["allocation"] => allocation::run,
        ["timing"] => || timing::run(false),
        ["timing", "--quick"] => || timing::run(true),
        ["report", folder] => return report::run(folder.as_ref()),
        _ => {
            eprintln!("gpu-check parity | graphs | allocation | timing [--quick] | report FOLDER");
            return ExitCode::from(2);
        }
    };
    let driver = match NvidiaDriver::open(0) {
        Ok(driver) => driver,
        Err(error) => {
            let status = if error.status() == Status::NoDevice { "no device" } else { "failed" };
            say(json!({ "status": status, "reason": error.message() }), words[0]);
            return ExitCode::from(if error.status() == Status::NoDevice { 77 } else { 1 });
        }
    };
    let facts = driver.facts();
    say(
        json!({ "device": facts.name, "capability": format!("{}.{}", facts.capability.0, facts.capability.1) }),
        words[0],
    );
    let _context = device::Context::enter();
    let fine = part();
    say(json!({ "status": if fine { "ok" } else { "failed" } }), words[0]);
    ExitCode::from(u8::from(!fine))
}
