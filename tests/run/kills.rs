//! A process that is killed again and again ends where an unbroken one does.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use sae::backend::Pool;
use sae::training::run::{RunOptions, TrainingRun};

use crate::support::{bytes, finish, plan, records};

const KILLS: u64 = 20;
const STEPS: u64 = 420;
/// Where a child finds its folder, and how many threads it has.
const FOLDER: &str = "SAE_TEST_RUN_FOLDER";
const THREADS: &str = "SAE_TEST_RUN_THREADS";

fn run(folder: &Path, threads: usize) -> TrainingRun {
    let mut plan = plan(folder, STEPS * 32);
    // Most of the time goes into checkpoints, so that most kills hit one as it is written.
    plan.options = RunOptions { checkpoint_every: 2, keep: 2, keep_every: 100, ..plan.options };
    plan.pool = Pool::new(threads).unwrap();
    TrainingRun::resume(plan).unwrap()
}

/// The process that is killed; not a test by itself.
#[test]
#[ignore = "a child of the test below"]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    finish(&mut run(&folder, std::env::var(THREADS).unwrap().parse().unwrap()));
}

fn spawn(folder: &Path, threads: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "kills::child", "--ignored", "--quiet"]).env(FOLDER, folder);
    command.env(THREADS, threads.to_string()).stdout(Stdio::null()).spawn().unwrap()
}

fn lines(folder: &Path) -> u64 {
    let text = std::fs::read(folder.join("large/metrics.jsonl")).unwrap_or_default();
    text.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// What a checkpoint tells of the run, without what depends on the clock.
fn state(checkpoint: &Path) -> serde_json::Value {
    let mut state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(checkpoint.join("run.json")).unwrap()).unwrap();
    state["elapsed"].take();
    for member in state["members"].as_array_mut().unwrap() {
        member["files"].take();
        assert!(member["watch"]["recent"].as_array().unwrap().len() > 100);
    }
    state
}

#[test]
fn killed_twenty_times_a_run_ends_with_the_bits_of_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    finish(&mut run(&whole, 1));

    let mut rng = ChaCha8Rng::seed_from_u64(20);
    let mut below = |bound: u64| u64::from(rng.next_u32()) % bound;
    let (mut killed_in_a_checkpoint, mut killed) = (0, 0);
    for kill in 0..KILLS {
        // Each life comes further than the last one, so that 20 of them do not reach the end, nor stay at the start.
        let until = kill * (STEPS / (KILLS + 1)) + below(STEPS / (KILLS + 1));
        let mut child = spawn(&broken, 1 + below(3));
        let started = Instant::now();
        while lines(&broken) < until && child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_secs(120), "{} of {until} steps", lines(&broken));
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(below(6000)));
        child.kill().unwrap();
        killed += u64::from(!child.wait().unwrap().success());
        let partial = |name: &String| name.contains(".partial") || name.contains(".removed");
        killed_in_a_checkpoint += u64::from(bytes(&broken).keys().any(partial));
        if let Ok(latest) = std::fs::read_link(broken.join("checkpoints/latest")) {
            assert!(broken.join("checkpoints").join(latest).join("run.json").exists(), "latest leads nowhere");
        }
    }
    assert_eq!(killed, KILLS, "the run ended by itself");
    assert!(killed_in_a_checkpoint > 0, "no kill hit a checkpoint as it was written");
    assert!(spawn(&broken, 2).wait().unwrap().success());

    let last = format!("checkpoints/step-{STEPS:012}");
    for name in ["small", "large"] {
        let file = format!("{last}/{name}/checkpoint.safetensors");
        assert!(std::fs::read(whole.join(&file)).unwrap() == std::fs::read(broken.join(&file)).unwrap(), "{file}");
        let (whole, broken) = (records(&whole, name), records(&broken, name));
        assert_eq!(broken.iter().map(|record| record.step).collect::<Vec<_>>(), (1..=STEPS).collect::<Vec<_>>());
        assert_eq!(whole, broken);
    }
    assert_eq!(state(&whole.join(&last)), state(&broken.join(&last)));
    let evaluations = |folder: &Path| std::fs::read_to_string(folder.join("small/evaluation.jsonl")).unwrap();
    assert_eq!(evaluations(&whole), evaluations(&broken));
    let names = |folder: &Path| bytes(&folder.join("checkpoints")).into_keys().collect::<Vec<_>>();
    assert_eq!(names(&whole), names(&broken), "the same checkpoints are kept, and nothing is left over");
}
