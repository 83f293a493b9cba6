//! `sae atlas`: from files of activations to pages, which a browser opens, and to what others' viewers read.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use sae::atlas::{Atlas, WindowKind};
use sae::backend::{Pool, Run};
use sae::features::Features;
use sae::formats::{self, SaveOptions};
use sae::sae::{Architecture, Matrix, Sae, Spec, Weights};
use sae::session::{Session, SessionOptions};
use sae::tensor::Tensor;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::support::{sae, said};

const D: usize = 8;
const N: usize = 40;
const K: usize = 4;
const DOCUMENTS: usize = 12;
const TOKENS: usize = 80;

/// Numbers in -1..1, the same every time.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Texts as bad as texts come.
fn vocabulary() -> Vec<String> {
    let hostile = [
        "</script><script>window.hacked = 1</script>",
        "<img src=x onerror=\"window.hacked = 2\">",
        "<!--",
        "]]>",
        "\u{2028}\u{2029}",
        "\\\"'`${window.hacked = 3}",
        "\n",
        "\t",
        "&lt;b&gt;&amp;",
        "\u{202e}dlrow",
        "👩‍👩‍👧é\u{301}",
        "javascript:window.hacked=4",
        "__proto__",
        "",
        "\u{0}",
        "verylongtokenwithoutanyplacetobreakitverylongtokenwithoutanyplacetobreakitverylongtokenwithoutanyplacetobreakit",
    ];
    hostile.map(str::to_owned).into_iter().chain((0..48).map(|i| format!(" word{i}"))).collect()
}

struct World {
    dir: tempfile::TempDir,
    sae: Arc<Sae>,
    x: Vec<f32>,
    tokens: Vec<i32>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let matrix = |seed| Matrix::from_f32(&numbers(N * D, seed), N, D).unwrap();
        let mut b_enc = numbers(N, 3);
        b_enc[7] = -100.0; // never active
        let weights = Weights::new(matrix(1), b_enc, matrix(2), numbers(D, 4));
        let sae = Arc::new(Sae::new(Spec::new(Architecture::TopK { k: K }, D, N), weights).unwrap());
        formats::save(&sae, dir.path().join("sae.safetensors"), &SaveOptions::default()).unwrap();
        let x = numbers(DOCUMENTS * TOKENS * D, 5);
        let tokens: Vec<i32> = (0..DOCUMENTS * TOKENS).map(|i| (i * 29 % 64) as i32).collect();
        let bytes: [&[u8]; 2] = [bytemuck::cast_slice(&x), bytemuck::cast_slice(&tokens)];
        let views = [
            ("x", TensorView::new(Dtype::F32, vec![DOCUMENTS, TOKENS, D], bytes[0]).unwrap()),
            ("tokens", TensorView::new(Dtype::I32, vec![DOCUMENTS, TOKENS], bytes[1]).unwrap()),
        ];
        fs::write(dir.path().join("x.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        let texts = serde_json::to_string(&vocabulary()).unwrap();
        fs::write(dir.path().join("vocabulary.json"), texts).unwrap();
        let explanation =
            |index: usize, description: &str| json!({"index": index.to_string(), "description": description});
        let labels = [
            explanation(3, "<b>bold</b><script>window.hacked = 5</script> & \"dates\""),
            explanation(
                11,
                "numbers and a very long label that goes on and on and on, longer than any window of a phone is wide",
            ),
            explanation(12, "constructor"),
            explanation(99_999, "of no latent"),
        ];
        let labels = labels.map(|label| label.to_string()).join("\n");
        fs::write(dir.path().join("labels.jsonl"), labels).unwrap();
        let unembedding = Matrix::from_f32(&numbers(64 * D, 6), 64, D).unwrap();
        let view = TensorView::new(Dtype::F32, vec![64, D], unembedding.bytes()).unwrap();
        fs::write(dir.path().join("unembedding.safetensors"), safetensors::serialize([("W_U", view)], None).unwrap())
            .unwrap();
        Self { dir, sae, x, tokens }
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn observe(&self, out: &str, more: &[&str]) {
        let (model, x, out) = (self.at("sae.safetensors"), self.at("x.safetensors"), self.at(out));
        let arguments = ["atlas", "observe", &model, &x, "-o", &out, "--before", "11", "--after", "4"];
        sae(&[&arguments[..], more].concat()).ended(0);
    }

    fn page(&self, more: &[&str]) {
        let [atlas, out, model] = ["atlas", "pages", "sae.safetensors"].map(|name| self.at(name));
        let [labels, vocabulary] = ["labels.jsonl", "vocabulary.json"].map(|name| self.at(name));
        let arguments =
            ["atlas", "page", &atlas, &out, "--model", &model, "--labels", &labels, "--vocabulary", &vocabulary];
        sae(&[&arguments[..], more].concat()).ended(0);
    }

    /// The features of all tokens.
    fn encoded(&self) -> Features {
        let rows = DOCUMENTS * TOKENS;
        let options = SessionOptions { max_tokens: rows, pool: Pool::serial(), ..SessionOptions::default() };
        let mut session = Session::new(Arc::clone(&self.sae), options).unwrap();
        let mut features = Features::new(rows, K, 0);
        let x = Tensor::new(&self.x, &[rows, D]).unwrap();
        session.encode(Run::default(), x.into(), features.view_mut()).unwrap();
        features
    }
}

/// What the pages are to show.
fn expected(world: &World, atlas: &Atlas) -> Value {
    let texts = vocabulary();
    let text = |&token: &i32| texts[token as usize].clone();
    let features = world.encoded();
    let label = |latent: usize| match latent {
        3 => "<b>bold</b><script>window.hacked = 5</script> & \"dates\"",
        11 => "numbers and a very long label that goes on and on and on, longer than any window of a phone is wide",
        12 => "constructor",
        _ => "",
    };
    let feature = |latent: usize| {
        let of = atlas.feature(latent).unwrap();
        // Of each latent, counted once more, from the tokens.
        let rows = (0..features.rows()).filter(|&t| features.row(t).any(|(i, z)| i as usize == latent && z != 0.0));
        assert_eq!(rows.count() as u64, of.count);
        let top = atlas.windows(latent, WindowKind::Top).unwrap();
        let window = |w: &sae::atlas::Window| {
            let start = w.document as usize * TOKENS + w.position as usize - w.at;
            assert_eq!(w.tokens, &world.tokens[start..start + w.tokens.len()]);
            json!({"tokens": w.tokens.iter().map(text).collect::<Vec<_>>(), "value": w.value, "position": w.position})
        };
        let check = [0, 3, 7, 11, 20, 38].contains(&latent);
        json!({
            "latent": latent, "label": label(latent), "count": of.count, "max": of.max, "min": of.min,
            "largest": of.max.max(-of.min), "histogram": of.count - of.below,
            "top": top.iter().map(window).collect::<Vec<_>>(),
            "check": check,
        })
    };
    let on = |t| {
        let mut on: Vec<(i32, f32)> = features.row(t).filter(|&(_, z)| z != 0.0).collect();
        on.sort_by(|a, b| b.1.total_cmp(&a.1));
        on
    };
    let active: u64 = atlas.latents().map(|latent| atlas.count(latent).unwrap()).sum();
    json!({
        "tokens": DOCUMENTS * TOKENS, "n": N, "l0": active as f64 / (DOCUMENTS * TOKENS) as f64,
        "features": (0..N).map(feature).collect::<Vec<_>>(),
        "prompt": {
            "tokens": world.tokens[..TOKENS].iter().map(text).collect::<Vec<_>>(),
            "on": (0..TOKENS).map(on).collect::<Vec<_>>(),
        },
    })
}

#[test]
fn a_browser_shows_what_was_seen() {
    let world = World::new();
    world.observe("atlas", &[]);
    let atlas = Atlas::load(Path::new(&world.at("atlas")), 0).unwrap();
    let (x, unembedding) = (world.at("x.safetensors"), world.at("unembedding.safetensors"));
    world.page(&[
        "--title",
        "A <i>title</i>",
        "--fvu",
        "0.25",
        "--prompts",
        &x,
        "--prompt-tokens",
        "200",
        "--unembedding",
        &unembedding,
    ]);
    fs::write(world.at("expected.json"), expected(&world, &atlas).to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tool/browser/pages.py");
    let mut python = Command::new("python3");
    python.arg("-B").arg(script).args([world.at("pages"), world.at("expected.json")]);
    // Where somebody wants to look at them.
    python.args(std::env::var_os("SAE_SCREENSHOTS"));
    print!("{}", said(&mut python).ended(0).out);
}

#[test]
fn atlases_of_parts_merge_to_that_of_all() {
    let world = World::new();
    world.observe("whole", &[]);
    world.observe("first", &["--max-tokens", "400"]);
    // The last documents, in a file of their own, whose numbers go on.
    let (from, rows) = (5 * TOKENS, 7 * TOKENS);
    let documents: Vec<i64> = (0..rows).map(|t| (5 + t / TOKENS) as i64).collect();
    let positions: Vec<i64> = (0..rows).map(|t| (t % TOKENS) as i64).collect();
    let bytes: [&[u8]; 4] = [
        bytemuck::cast_slice(&world.x[from * D..]),
        bytemuck::cast_slice(&world.tokens[from..]),
        bytemuck::cast_slice(&documents),
        bytemuck::cast_slice(&positions),
    ];
    let view = |dtype, shape: &[usize], i: usize| TensorView::new(dtype, shape.to_vec(), bytes[i]).unwrap();
    let views = [
        ("x", view(Dtype::F32, &[rows, D], 0)),
        ("tokens", view(Dtype::I32, &[rows], 1)),
        ("doc", view(Dtype::I64, &[rows], 2)),
        ("pos", view(Dtype::I64, &[rows], 3)),
    ];
    fs::write(world.at("second.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let [model, x, second, first] =
        ["sae.safetensors", "second.safetensors", "second", "first"].map(|name| world.at(name));
    let told = ["--documents", "doc", "--positions", "pos"];
    let observed = ["atlas", "observe", &model, &x, "-o", &second, "--before", "11", "--after", "4"];
    sae(&[&observed[..], &told].concat()).ended(0);
    let [merged, added] = ["merged", "added"].map(|name| world.at(name));
    sae(&["atlas", "merge", &merged, &second, &first]).ended(0);
    let observed = ["atlas", "observe", &model, &x, "-o", &added, "--add-to", &first];
    sae(&[&observed[..], &told].concat()).ended(0);
    let whole = Atlas::load(Path::new(&world.at("whole")), 0).unwrap();
    for other in [merged, added] {
        let other = Atlas::load(Path::new(&other), 0).unwrap();
        assert_eq!(other.totals(), whole.totals());
        for latent in 0..N {
            let [a, b] = [&whole, &other].map(|atlas| atlas.feature(latent).unwrap());
            assert_eq!((a.count, a.max, a.min, a.histogram), (b.count, b.max, b.min, b.histogram));
            for kind in [WindowKind::Top, WindowKind::Intervals, WindowKind::Random] {
                assert_eq!(whole.windows(latent, kind).unwrap(), other.windows(latent, kind).unwrap());
            }
        }
    }
}

#[test]
fn others_viewers_get_what_they_read() {
    let world = World::new();
    world.observe("atlas", &[]);
    let atlas = Atlas::load(Path::new(&world.at("atlas")), 0).unwrap();
    let [path, vocabulary, out] = ["atlas", "vocabulary.json", "out"].map(|name| world.at(name));
    let export = |to: &str| {
        sae(&["atlas", "export", &path, &out, "--to", to, "--vocabulary", &vocabulary, "--model-id", "m"]).ended(0);
    };
    let read = |name: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(Path::new(&out).join(name)).unwrap()).unwrap()
    };
    export("neuronpedia");
    export("atoms");
    let batch = read("batch-0.json");
    assert_eq!((&batch["model_id"], batch["features"].as_array().unwrap().len()), (&json!("m"), N));
    for latent in 0..N {
        let feature = atlas.feature(latent).unwrap();
        let top = atlas.windows(latent, WindowKind::Top).unwrap();
        let (theirs, atom) = (&batch["features"][latent], read(&format!("atoms/{latent}.json")));
        assert_eq!(theirs["feature_index"], json!(latent));
        let density = feature.count as f64 / (DOCUMENTS * TOKENS) as f64;
        assert_eq!((&theirs["frac_nonzero"], &atom["density"]), (&json!(density), &json!(density)));
        let heights = theirs["freq_hist_data_bar_heights"].as_array().unwrap();
        assert_eq!(heights.iter().map(|h| h.as_u64().unwrap()).sum::<u64>(), feature.count - feature.below);
        let drawn = atlas.n_windows(latent, WindowKind::Intervals).unwrap();
        let sequences = theirs["activations"].as_array().unwrap();
        assert_eq!(sequences.len(), top.len() + drawn);
        for sequence in sequences {
            assert_eq!(sequence["tokens"].as_array().unwrap().len(), sequence["values"].as_array().unwrap().len());
            let (min, max) = (sequence["bin_min"].as_f64().unwrap(), sequence["bin_max"].as_f64().unwrap());
            let at = sequence["qualifying_token_index"].as_u64().unwrap() as usize;
            let value = sequence["values"][at].as_f64().unwrap();
            assert!(min == -1.0 || (0.99 * min..1.01 * max).contains(&value), "{sequence}");
        }
        assert_eq!(atom["top"].as_array().unwrap().len(), top.len());
        for (theirs, window) in atom["top"].as_array().unwrap().iter().zip(&top) {
            assert_eq!(theirs["token_ints"], json!(window.tokens));
            assert_eq!(
                (&theirs["act"], &theirs["idx"], &theirs["doc_id"]),
                (&json!(window.value), &json!(window.at), &json!(window.document))
            );
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let world = World::new();
    world.observe("atlas", &[]);
    let [atlas, out, x, model] = ["atlas", "out", "x.safetensors", "sae.safetensors"].map(|name| world.at(name));
    let refused = |arguments: &[&str], named: &str| {
        let said = sae(arguments).ended(2);
        assert!(said.err.contains(named), "{}", said.err);
        assert!(!Path::new(&out).exists(), "nothing is written");
    };
    refused(&["atlas", "page", &x, &out], "libsae_atlas");
    refused(&["atlas", "page", &atlas, &out, "--labels", &x], "x.safetensors");
    refused(&["atlas", "page", &atlas, &out, "--vocabulary", &world.at("labels.jsonl")], "labels.jsonl");
    refused(&["atlas", "observe", &model, &x, "-o", &out, "--tokens", "token"], "token");
    refused(&["atlas", "observe", &model, &x, "-o", &out, "--top", "2000"], "top");
    refused(&["atlas", "merge", &out, &atlas, &world.at("nothing")], "nothing");
}
