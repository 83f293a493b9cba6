//! `sae train`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::support::{program, sae, said};

#[path = "../../examples/train/planted.rs"]
mod planted;

/// A folder with activations and a configuration, changed as the test likes.
struct Place(tempfile::TempDir);

const CONFIG: &str = "
[data]
paths = [\"activations/\"]
held_out = 512
block_rows = 16
window_blocks = 32

[run]
folder = \"run\"
batch = 64
sample = 512
checkpoint_every = 5
evaluate_every = 25

[[sae]]
name = \"small\"
n_latents = 96
k = 4
learning_rate = 2e-3
dead_after_tokens = 1000

[[sae]]
name = \"large\"
n_latents = 256
k = 8
learning_rate = 2e-3
dead_after_tokens = 1000
";

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        planted::write(&dir.path().join("activations"), 3, 2560).unwrap();
        Self(dir)
    }

    /// The configuration, as `name`, with some of its text replaced.
    fn config(&self, name: &str, changes: &[(&str, &str)]) -> String {
        let mut text = CONFIG.to_owned();
        for (old, new) in changes {
            assert!(text.contains(old), "{old}");
            text = text.replacen(old, new, 1);
        }
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.at(path)).unwrap()
    }
}

/// 7680 rows without 512, in batches of 64.
const STEPS: u64 = 112;

/// The objects of a file of JSON lines.
fn lines(path: &Path) -> Vec<BTreeMap<String, serde_json::Value>> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_run_leaves_saes_metrics_and_a_report() {
    let place = Place::new();
    let config = place.config("config.toml", &[("[data]", "# </pre><script>&\n[data]")]);
    let checked = sae(&["train", &config, "--check"]).ended(0);
    assert!(checked.out.contains("rows [64] of f16: 7,680, of which 512 are held out"), "{}", checked.out);
    assert!(!place.at("run").exists(), "it was to do nothing");

    let said = sae(&["train", &config]).ended(0);
    assert_eq!(said.err, "", "not a terminal: no bar");
    for word in ["112 steps, 7,168 rows", "run/small/sae.safetensors: FVU 0.", "L0 8.0", "report.html"] {
        assert!(said.out.contains(word), "{word}: {}", said.out);
    }
    for (name, n) in [("small", 96), ("large", 256)] {
        let path = place.at(&format!("run/{name}/sae.safetensors"));
        let info = sae(&["info", path.to_str().unwrap(), "--json"]).ended(0).json();
        assert_eq!(info["spec"]["n_latents"], n, "{info}");
        let steps = lines(&place.at(&format!("run/{name}/metrics.jsonl")));
        assert_eq!(
            steps.iter().map(|step| step["step"].as_u64().unwrap()).collect::<Vec<_>>(),
            (1..=STEPS).collect::<Vec<_>>()
        );
        let keys = "aux dead elapsed fvu grad_norm l0 loss lr mse resampled rollbacks sparsity step tokens tokens_not_finite \
                    tokens_per_second";
        assert_eq!(steps[0].keys().map(String::as_str).collect::<Vec<_>>().join(" "), keys);
        let held: Vec<_> = lines(&place.at(&format!("run/{name}/evaluation.jsonl")));
        assert_eq!(
            held.iter().map(|held| held["step"].as_u64().unwrap()).collect::<Vec<_>>(),
            [25, 50, 75, 100, STEPS]
        );
        assert!(held.iter().all(|held| held["rows"] == 512));
    }
    assert_eq!(place.read("run/config.toml"), place.read("config.toml"));

    let report = String::from_utf8(place.read("run/report.html")).unwrap();
    for word in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "NaN"] {
        assert!(!report.contains(word), "{word}");
    }
    assert_eq!(report.matches("<svg ").count(), 8);
    assert_eq!(report.matches("</svg>").count(), 8);
    assert!(report.contains("# &lt;/pre&gt;&lt;script&gt;&amp;"), "the configuration is text");
    for word in ["prefers-color-scheme: dark", "small", "large", "Learning rate", "log₁₀ density", "n_latents = 256"]
    {
        assert!(report.contains(word), "{word}");
    }
    // The last held-out FVU stands in the table as it does in the file.
    let fvu = lines(&place.at("run/large/evaluation.jsonl")).pop().unwrap()["fvu"].as_f64().unwrap();
    assert!(report.contains(&format!("<td>{fvu:.4}</td>")), "{fvu}");

    // The folder is taken; resumed, there is nothing left to do, and the SAEs are the same.
    let said = sae(&["train", &config]).ended(2);
    assert!(said.err.contains("step 112") && said.err.contains("--resume"), "{}", said.err);
    let before = place.read("run/large/sae.safetensors");
    fs::remove_file(place.at("run/large/sae.safetensors")).unwrap();
    sae(&["train", &config, "--resume"]).ended(0);
    assert!(before == place.read("run/large/sae.safetensors"));
    assert_eq!(lines(&place.at("run/large/evaluation.jsonl")).len(), 5);
}

#[test]
fn saes_trained_together_are_those_trained_alone() {
    let place = Place::new();
    sae(&["train", &place.config("both.toml", &[])]).ended(0);
    let small = CONFIG.find("[[sae]]").unwrap();
    let large = CONFIG.rfind("[[sae]]").unwrap();
    let alone = place.config("alone.toml", &[(&CONFIG[small..large], ""), ("\"run\"", "\"alone\"")]);
    sae(&["train", &alone, "--threads", "2"]).ended(0);
    assert!(place.read("run/large/sae.safetensors") == place.read("alone/large/sae.safetensors"));
    assert!(!place.at("alone/small").exists());
}

/// Rows `[T, 2, 8]` as numpy keeps them.
fn layered(path: &Path) {
    let shape = "{'descr': '<f4', 'fortran_order': False, 'shape': (2000, 2, 8), }";
    let header = format!("{shape:<117}\n");
    let mut bytes = [b"\x93NUMPY\x01\0", &(header.len() as u16).to_le_bytes()[..], header.as_bytes()].concat();
    let value = |i: u32| ((i * i % 4099) as f32 * 0.37).sin() * if i % 16 < 8 { 1.0 } else { 50.0 };
    bytes.extend((0..2000 * 16).flat_map(|i| value(i).to_le_bytes()));
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_crosscoder_is_trained_from_layered_rows() {
    let place = Place::new();
    layered(&place.at("layered.npy"));
    let common = [("[\"activations/\"]", "[\"layered.npy\"]\nlayered = true"), ("[run]", "[run]\ntokens = 1280")];
    let small = ("n_latents = 96", "n_latents = 96\nlayer = 1");
    let large = ("n_latents = 256", "n_latents = 256\nlayers = 2\nrecipe = \"batch_top_k\"");
    let changed = |name: &str, more: &[(&str, &str)]| place.config(name, &[&common, more].concat());
    let config = changed("config.toml", &[small, large]);
    sae(&["train", &config]).ended(0);
    let path = place.at("run/large/sae.safetensors");
    let info = sae(&["info", path.to_str().unwrap(), "--json"]).ended(0).json();
    assert_eq!((&info["spec"]["layers_in"], &info["spec"]["d_in"]), (&2.into(), &16.into()), "{info}");
    assert_eq!(info["spec"]["architecture"]["name"], "jump_relu", "{info}");

    // What is missing is asked for, and what cannot be written is said, before anything is done.
    let refused = |config: &str, words: &[&str]| {
        for last in ["--check", "--resume"] {
            let said = sae(&["train", config, last]).ended(2);
            for word in words {
                assert!(said.err.contains(word), "{word}: {}", said.err);
            }
        }
    };
    refused(&changed("unsaid.toml", &[large, ("\"run\"", "\"other\"")]), &["small: rows have 2 layers", "layers = 2"]);
    for (format, reason) in [("saelens", "crosscoder"), ("dictionary_learning", "several layers")] {
        let export = format!("[export]\nformat = \"{format}\"\n[data]");
        let config = changed("other.toml", &[small, large, ("[data]", &export), ("\"run\"", "\"other\"")]);
        refused(&config, &["[export] large cannot be written so", reason]);
    }
    assert!(!place.at("other").exists(), "nothing was to be done");
}

fn spawn(config: &str, threads: usize) -> Child {
    let mut command = program();
    command.args(["train", config, "--resume", "--threads", &threads.to_string()]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until a run has told of so many steps.
fn wait_for(place: &Place, steps: usize, child: &mut Child) {
    let started = Instant::now();
    let told =
        || fs::read(place.at("run/large/metrics.jsonl")).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count());
    while told() < steps {
        assert!(started.elapsed() < Duration::from_secs(60), "step {} of {steps}", told());
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn a_killed_run_resumes_to_the_same_files() {
    let place = Place::new();
    sae(&["train", &place.config("whole.toml", &[("\"run\"", "\"whole\"")])]).ended(0);
    let config = place.config("config.toml", &[]);
    for (kill, steps) in [3, 17, 31, 50, 78].into_iter().enumerate() {
        let mut child = spawn(&config, 1 + kill % 3);
        wait_for(&place, steps, &mut child);
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
    }
    sae(&["train", &config, "--resume", "--threads", "2"]).ended(0);
    for name in ["small", "large"] {
        for file in ["sae.safetensors", "evaluation.jsonl"] {
            let at = |run: &str| place.read(&format!("{run}/{name}/{file}"));
            assert!(at("whole") == at("run"), "{name}/{file}");
        }
        let steps = |run: &str| {
            let mut steps = lines(&place.at(&format!("{run}/{name}/metrics.jsonl")));
            steps.iter_mut().for_each(|step| step.retain(|key, _| key != "elapsed" && key != "tokens_per_second"));
            steps
        };
        assert_eq!(steps("whole"), steps("run"));
    }
}

#[cfg(unix)]
#[test]
fn interrupted_it_makes_a_checkpoint_and_says_how_to_go_on() {
    let place = Place::new();
    sae(&["train", &place.config("whole.toml", &[("\"run\"", "\"whole\"")])]).ended(0);
    let config = place.config("config.toml", &[("checkpoint_every = 5", "checkpoint_every = 1000")]);
    for (signal, code, steps) in [("INT", 130, 7), ("TERM", 143, 29)] {
        let mut child = spawn(&config, 1);
        wait_for(&place, steps, &mut child);
        let mut kill = std::process::Command::new("kill");
        assert!(kill.args([format!("-{signal}"), child.id().to_string()]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{text}");
        let step = fs::read_link(place.at("run/checkpoints/latest")).unwrap();
        for word in ["interrupted after step", step.to_str().unwrap(), "sae train --resume", &config] {
            assert!(text.contains(word), "{word}: {text}");
        }
        let told = lines(&place.at("run/large/metrics.jsonl")).len();
        assert_eq!(step.to_str().unwrap(), format!("step-{told:012}"), "nothing is lost");
        assert!(place.at("run/report.html").exists());
    }
    sae(&["train", &config, "--resume"]).ended(0);
    assert!(place.read("whole/small/sae.safetensors") == place.read("run/small/sae.safetensors"));
}

#[test]
fn a_run_that_diverges_ends_with_1_and_names_the_last_good_state() {
    let place = Place::new();
    let config = place.config(
        "config.toml",
        &[
            ("learning_rate = 2e-3", "learning_rate = 500.0\nwarmup_steps = 5000"),
            ("checkpoint_every = 5", "checkpoint_every = 5\ndivergence_factor = 1.5\ndivergence_steps = 3"),
        ],
    );
    let said = sae(&["train", &config]).ended(1);
    for word in ["small: step ", "diverges", "1.5 times", "the last good state", "step-0000000000"] {
        assert!(said.err.contains(word), "{word}: {}", said.err);
    }
    assert!(place.at("run/report.html").exists() && place.at("run/checkpoints/latest/run.json").exists());
    assert!(!place.at("run/small/sae.safetensors").exists(), "what diverged is not exported");
}

#[test]
fn other_formats_and_weights_are_exported_if_asked_for() {
    let place = Place::new();
    let export = "[export]\nformat = \"sparsify\"\nweights = \"last\"\n\n[run]\ntokens = 640\n";
    sae(&["train", &place.config("config.toml", &[("[run]\n", export)])]).ended(0);
    let model = place.at("run/small/sae");
    let info = sae(&["info", model.to_str().unwrap(), "--json"]).ended(0).json();
    assert_eq!(info["format"], "sparsify", "{info}");
    assert_eq!(lines(&place.at("run/small/metrics.jsonl")).len(), 10);
    // Weights of that step are what a checkpoint holds.
    let native = place.at("native");
    sae(&["convert", model.to_str().unwrap(), native.to_str().unwrap()]).ended(0);
    let stored =
        |bytes: &[u8]| safetensors::SafeTensors::deserialize(bytes).unwrap().tensor("W_dec").unwrap().data().to_vec();
    let checkpoint = place.read("run/checkpoints/latest/small/checkpoint.safetensors");
    assert!(stored(&fs::read(native).unwrap()) == stored(&checkpoint));
}

#[test]
fn a_run_may_start_from_an_sae_and_measure_other_files() {
    let place = Place::new();
    sae(&["train", &place.config("first.toml", &[("\"run\"", "\"first\"")])]).ended(0);
    planted::write(&place.at("others"), 1, 300).unwrap();
    let data = "held_out = 1000\nheld_out_paths = [\"others/*.npy\"]\nepochs = 2";
    let start = "name = \"large\"\nwarm_start = \"first/large/sae.safetensors\"";
    let changes = [("held_out = 512", data), ("name = \"large\"", start)];
    sae(&["train", &place.config("config.toml", &changes)]).ended(0);
    let fvu = |run: &str| lines(&place.at(&format!("{run}/large/metrics.jsonl")))[0]["fvu"].as_f64().unwrap();
    assert!(fvu("run") < 0.85 * fvu("first"), "{} {}", fvu("run"), fvu("first"));
    assert_eq!(lines(&place.at("run/large/metrics.jsonl")).len(), 240);
    assert_eq!(lines(&place.at("run/large/evaluation.jsonl"))[0]["rows"], 300);
}

#[test]
fn what_a_configuration_cannot_say_is_refused_by_name() {
    let place = Place::new();
    for (old, new, words) in [
        ("batch =", "bacth =", &["[run]", "unknown key bacth; did you mean batch?"][..]),
        ("folder =", "foldr =", &["[run] folder is missing"]),
        ("n_latents = 96", "n_latent = 96", &["[[sae]] small", "n_latent; did you mean n_latents?"]),
        ("held_out =", "heldout =", &["line 4", "heldout; did you mean held_out?"]),
        ("[data]", "[date]", &["line 2", "date; did you mean data?"]),
        ("batch = 64", "zzz = 64", &["unknown field `zzz`", "`batch`"]),
        ("k = 4", "k = \"many\"", &["[[sae]] small", "\"many\"", "`k`"]),
        ("k = 4", "k = 0", &["small: k must be"]),
        ("k = 4", "k = 4\nwarm_start = \"nowhere\"", &["nowhere"]),
        ("k = 4", "k = 4\nlayer = 3", &["small: layer is 3, but rows have 1"]),
        ("name = \"small\"", "name = \"large\"", &["two SAEs are called large"]),
        ("batch = 64", "batch = ", &["line 10"]),
        ("block_rows = 16", "shuffle = false", &["window_blocks is of the shuffle, but shuffle is false"]),
        ("held_out = 512", "held_out = 512\nepochs = 2", &["epochs", "held_out_paths"]),
        ("held_out = 512", "held_out = 5120", &["held_out is 5120 rows, more than half of the 7680"]),
        ("held_out = 512", "held_out = 9_000_000_000_000_000", &["held_out is 9000000000000000 rows, more than half"]),
        ("held_out = 512", "held_out = 0\nheld_out_paths = []", &["held_out is 0, but held_out_paths names files"]),
        ("held_out = 512", "first_position = 4\nend_position = 4", &["end_position is 4", "first_position"]),
        ("activations/", "nothing/", &["[data]", "nothing"]),
        ("[run]", "[export]\nformat = \"pickle\"\n[run]", &["[export] format", "native", "\"pickle\""]),
    ] {
        let config = place.config("config.toml", &[(old, new)]);
        let refused = sae(&["train", &config, "--check"]).ended(2);
        for word in words {
            assert!(refused.err.contains(word), "{new}: {word}: {}", refused.err);
        }
        assert!(!place.at("run").exists());
    }
    let none = &CONFIG[CONFIG.find("[[sae]]").unwrap()..];
    let config = place.config("config.toml", &[(none, "")]);
    assert!(sae(&["train", &config]).ended(2).err.contains("no [[sae]]"));
    assert!(sae(&["train", "no/such.toml"]).ended(2).err.contains("no/such.toml"));
}

#[test]
fn what_cannot_be_written_ends_it_with_the_path() {
    let place = Place::new();
    fs::write(place.at("file"), "").unwrap();
    let refused = sae(&["train", &place.config("config.toml", &[("\"run\"", "\"file/run\"")])]).ended(2);
    assert!(refused.err.contains("file/run"), "{}", refused.err);
}

#[test]
fn the_example_is_sound() {
    let place = Place::new();
    let example = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/train/planted.toml");
    let text = fs::read_to_string(example).unwrap().replace("16_384", "1024");
    fs::write(place.at("planted.toml"), text).unwrap();
    let config = place.at("planted.toml");
    let checked = said(program().args(["train", config.to_str().unwrap(), "--check"])).ended(0);
    assert!(checked.out.contains("n512-k8: 512 latents of 64"), "{}", checked.out);
}
