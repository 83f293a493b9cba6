//! How runs end: at the end of the data, by a bad number, by a disk that takes no more.

use std::fs;
use std::path::Path;

use sae::backend::Pool;
use sae::training::data::Source;
use sae::training::run::{Member, Plan, RunOptions, TrainingRun};
use sae::{Result, Status};

use crate::support::{D, Planted, bytes, finish, members, options, plan, records};

fn ended(plan: Plan) -> sae::Error {
    let mut run = TrainingRun::start(plan).unwrap();
    loop {
        match run.advance() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it did not fail"),
            Err(error) => {
                assert_eq!(run.advance().unwrap_err().status(), Status::BadState, "a failed run does not go on");
                assert_eq!(run.checkpoint().unwrap_err().status(), Status::BadState, "nor is it kept");
                return error;
            }
        }
    }
}

fn spoiled(folder: &Path, from: u64, factor: f32) -> Plan {
    Plan { source: Box::new(Planted { spoiled: Some((from, factor)), ..Planted::new(6400) }), ..plan(folder, 0) }
}

#[test]
fn a_run_ends_with_the_data_or_the_planned_tokens() {
    let dir = tempfile::tempdir().unwrap();
    for (name, tokens, steps) in [("all", 0, 10), ("more", 1000, 10), ("some", 100, 4), ("whole", 96, 3)] {
        let folder = dir.path().join(name);
        let mut plan = plan(&folder, 300);
        plan.options.tokens = tokens;
        let mut run = TrainingRun::start(plan).unwrap();
        finish(&mut run);
        assert_eq!(run.step(), steps, "{name}");
        assert_eq!(run.rows_planned(), Some(if tokens == 0 { 300 } else { tokens.min(300) }));
        assert_eq!(run.rows_given(), (steps * 32).min(300));
        let last = *records(&folder, "small").last().unwrap();
        assert_eq!((last.step, last.tokens), (steps, (steps * 32).min(300)));
    }
}

#[test]
fn a_gradient_that_is_not_finite_ends_the_run_and_leaves_the_last_good_state() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    // The 26th batch of 32 rows is so large that its error's square is beyond f32, though the rows are finite.
    let error = ended(spoiled(&folder, 800, 3e18));
    assert_eq!(error.status(), Status::NotFinite, "{error}");
    for word in ["small", "step 26", "gradient", "step 20", "step-000000000020"] {
        assert!(error.message().contains(word), "{word}: {error}");
    }
    assert_eq!(records(&folder, "small").len(), 25);
    // What was left is what a run has that never met such rows.
    let other = dir.path().join("other");
    let mut run = TrainingRun::start(spoiled(&other, u64::MAX, 1.0)).unwrap();
    for _ in 0..20 {
        run.advance().unwrap().unwrap();
    }
    let checkpoint = "checkpoints/step-000000000020/large/checkpoint.safetensors";
    assert!(fs::read(folder.join(checkpoint)).unwrap() == fs::read(other.join(checkpoint)).unwrap());
}

#[test]
fn a_loss_that_stays_too_high_ends_the_run_and_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    // From the 38th step on losses are some 10⁴ times as high; checkpoints fall due at 40 and 50.
    let mut plan = spoiled(&folder, 37 * 32, 100.0);
    plan.options.divergence_steps = 15;
    let error = ended(plan);
    assert_eq!(error.status(), Status::NotFinite, "{error}");
    for word in ["small", "step 52", "the loss is", "10 times", "15 steps", "step-000000000030"] {
        assert!(error.message().contains(word), "{word}: {error}");
    }
    assert_eq!(records(&folder, "small").len(), 52, "what went wrong can be looked at");
    assert!(!folder.join("checkpoints/step-000000000040").exists());

    // Fewer steps than that are got over, and the checkpoint that fell due is made up for.
    let folder = dir.path().join("other");
    let source = Short(Planted::new(6400));
    let plan = Plan { source: Box::new(source), ..crate::support::plan(&folder, 0) };
    let mut run = TrainingRun::start(plan).unwrap();
    for step in 1..=44 {
        run.advance().unwrap().unwrap();
        if (38..43).contains(&step) {
            let before = bytes(&folder.join("checkpoints"));
            let error = run.checkpoint().unwrap_err();
            assert_eq!(error.status(), Status::NotFinite);
            for word in ["small", "above its bound", "the last good state", "step-000000000030"] {
                assert!(error.message().contains(word), "{word}: {error}");
            }
            assert!(before == bytes(&folder.join("checkpoints")));
        }
        let newest = fs::read_link(folder.join("checkpoints/latest")).ok();
        if step >= 30 {
            let expected = if step < 43 { "step-000000000030" } else { "step-000000000043" };
            assert_eq!(newest.unwrap(), Path::new(expected), "step {step}");
        }
    }
}

/// Rows that are 100 times as large from the 38th batch to the 42nd.
struct Short(Planted);

impl Source for Short {
    fn layout(&self) -> sae::training::data::Layout {
        self.0.layout()
    }

    fn len(&self) -> Option<u64> {
        self.0.len()
    }

    fn next(&mut self, rows: &mut sae::training::data::Rows) -> Result<usize> {
        self.0.spoiled = (37 * 32..42 * 32).contains(&self.0.at).then_some((0, 100.0));
        self.0.next(rows)
    }

    fn position(&self) -> sae::training::data::Position {
        self.0.position()
    }

    fn seek(&mut self, position: &sae::training::data::Position) -> Result<()> {
        self.0.seek(position)
    }
}

/// Files that may grow to so many bytes and no further are what a full disk looks like to a process.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_the_run_and_leaves_the_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other");
    finish(&mut TrainingRun::start(plan(&other, 640)).unwrap());
    // The first is less than a checkpoint takes, the second less than the metrics do in the end.
    for (limit, refused) in [("8000", "the checkpoint of step 20 was not saved"), ("60000", "metrics.jsonl")] {
        let folder = dir.path().join(limit);
        let mut command = std::process::Command::new("bash");
        command
            .args(["-c", "trap '' XFSZ; exec \"$0\" --exact ends::child --ignored"])
            .arg(std::env::current_exe().unwrap());
        command.env(FOLDER, &folder).env(LIMIT, limit).env(REFUSED, refused);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let checkpoints = bytes(&folder.join("checkpoints"));
        assert!(checkpoints.contains_key("latest/run.json"), "{:?}", checkpoints.keys());
        assert!(checkpoints.keys().all(|name| !name.contains(".partial")), "{:?}", checkpoints.keys());
        if limit == "8000" {
            // With room again, it goes on.
            finish(&mut TrainingRun::resume(plan(&folder, 640)).unwrap());
            assert_eq!(records(&folder, "large"), records(&other, "large"));
        }
    }
}

const FOLDER: &str = "SAE_TEST_RUN_FOLDER";
const LIMIT: &str = "SAE_TEST_RUN_LIMIT";
const REFUSED: &str = "SAE_TEST_RUN_REFUSED";

/// The process whose files may not grow; not a test by itself.
#[test]
#[ignore = "a child of the test above"]
fn child() {
    if std::env::var_os(FOLDER).is_none() {
        return;
    }
    let [folder, limit, refused] = [FOLDER, LIMIT, REFUSED].map(|name| std::env::var(name).unwrap());
    // The disk is the same for both, but only the shorter run goes on.
    let mut run = TrainingRun::start(plan(Path::new(&folder), if limit == "8000" { 640 } else { 64_000 })).unwrap();
    for _ in 0..15 {
        run.advance().unwrap().unwrap();
    }
    let process = std::process::id().to_string();
    let limited = std::process::Command::new("prlimit").args(["--pid", &process, &format!("--fsize={limit}")]).status();
    assert!(limited.unwrap().success());
    let error = loop {
        match run.advance() {
            Ok(made) => assert!(made.is_some(), "nothing was refused"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.status(), Status::Io, "{error}");
    for word in [&folder, &refused, "too large"] {
        assert!(error.message().contains(word), "{word}: {error}");
    }
}

#[test]
fn what_cannot_be_written_or_run_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut Plan)| {
        let mut plan = plan(&dir.path().join("run"), 640);
        change(&mut plan);
        TrainingRun::start(plan).err().unwrap()
    };
    fs::write(dir.path().join("file"), "").unwrap();
    let below = dir.path().join("file/run");
    type Change<'a> = &'a dyn Fn(&mut Plan);
    let layered = |change: fn(&mut Member)| {
        move |plan: &mut Plan| {
            plan.source = Box::new(Planted { layers: Some(2), ..Planted::new(640) });
            plan.held_out = None;
            change(&mut plan.members[0]);
        }
    };
    let named = |name: &'static str| move |plan: &mut Plan| plan.members[0].name = name.to_owned();
    let cases: [(Change<'_>, Status, &str); 23] = [
        (&|plan| plan.folder = below.clone(), Status::Io, "file/run"),
        (&|plan| plan.members.clear(), Status::InvalidArgument, "no SAE"),
        (&named("large"), Status::InvalidArgument, "two SAEs are called large"),
        (&named("../up"), Status::InvalidArgument, "\"../up\" cannot name"),
        (&named("checkpoints"), Status::InvalidArgument, "\"checkpoints\" cannot name"),
        (&named("Report.html"), Status::InvalidArgument, "\"Report.html\" cannot name"),
        (
            &|plan| {
                plan.members[1].export = Some(sae::training::Export::Ema);
                plan.members[1].options.no_ema = true;
            },
            Status::InvalidArgument,
            "large: the moving average is to be exported",
        ),
        (&|plan| plan.options.divergence_factor = 1.0, Status::InvalidArgument, "divergence_factor"),
        (&named("a.partial"), Status::InvalidArgument, "\"a.partial\" cannot name"),
        (&named(""), Status::InvalidArgument, "\"\" cannot name"),
        (&|plan| plan.members[1].options.k = 0, Status::InvalidArgument, "large: k must be"),
        (&|plan| plan.members[1].options.d = 5, Status::InvalidTensor, "large: sample"),
        (&|plan| plan.members[1].layer = Some(1), Status::InvalidArgument, "large: layer is 1, but rows have 1"),
        (&|plan| plan.options.divergence_factor = 0.5, Status::InvalidArgument, "divergence_factor"),
        (&|plan| plan.options.divergence_factor = f64::NAN, Status::InvalidArgument, "divergence_factor"),
        (&|plan| plan.source = Box::new(Planted::new(0)), Status::InvalidArgument, "no row"),
        (
            &|plan| plan.source = Box::new(Planted { layers: Some(2), ..Planted::new(99) }),
            Status::InvalidArgument,
            "rows held out are [12], those of the source [2, 12]",
        ),
        (&layered(|_| {}), Status::InvalidArgument, "small: rows have 2 layers; say which is read (layer, 0 to 1)"),
        (
            &layered(|member| (member.layer, member.options.layers) = (Some(1), 2)),
            Status::InvalidArgument,
            "small: layers 2 and layer 1",
        ),
        (&layered(|member| member.options.layers = 3), Status::InvalidArgument, "small: layers is 3, but rows have 2"),
        (&|plan| plan.options.batch = usize::MAX, Status::InvalidArgument, "batch must be between 1 and 16777216 rows"),
        (
            &|plan| plan.options.batch = (1 << 24) + 1,
            Status::InvalidArgument,
            "batch must be between 1 and 16777216 rows",
        ),
        (
            &|plan| plan.options.divergence_rate = 1.0,
            Status::InvalidArgument,
            "divergence_rate must lie between 0 and 1",
        ),
    ];
    for (change, status, word) in cases {
        let error = refused(change);
        assert!(error.status() == status && error.message().contains(word), "{word}: {error:?}");
    }
}

#[test]
fn a_folder_is_of_one_run_and_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut run = TrainingRun::start(plan(folder, 640)).unwrap();
    let error = TrainingRun::resume(plan(folder, 640)).err().unwrap();
    assert!(error.status() == Status::BadState && error.message().contains("another process"), "{error}");
    run.advance().unwrap();
    run.checkpoint().unwrap();
    drop(run);
    let error = TrainingRun::start(plan(folder, 640)).err().unwrap();
    assert!(error.status() == Status::BadState && error.message().contains("step 1; resume it"), "{error}");

    let refused = |change: &dyn Fn(&mut Plan)| {
        let mut plan = plan(folder, 640);
        change(&mut plan);
        TrainingRun::resume(plan).err().unwrap().to_string()
    };
    assert!(refused(&|plan| plan.options.batch = 16).contains("batch is 16, but the checkpoint was made with 32"));
    assert!(refused(&|plan| plan.members.swap(0, 1)).contains("the SAEs are large, small, but"));
    let recipe = refused(&|plan| plan.members[1].options.recipe = sae::training::Recipe::Matryoshka);
    assert!(recipe.contains("recipe is \"matryoshka\", but the checkpoint was made with \"batch_top_k\""), "{recipe}");
    assert!(refused(&|plan| plan.members[1].options.k = 4).contains("large: "));
    assert!(
        refused(&|plan| plan.members[0].layer = Some(0))
            .contains("small: layer is 0, but the checkpoint was made with none")
    );
    // Over the last of the rows that were planned, the learning rate falls.
    assert!(refused(&|plan| plan.options.tokens = 320).contains("small: tokens: the run was planned for 640 rows"));
    assert!(refused(&|plan| plan.source = Box::new(Planted::new(704))).contains("rows held out"));
    assert!(refused(&|plan| *plan = crate::support::plan(folder, 6400)).contains("704 planted rows"));
    // Of a run left after a checkpoint, one that is refused for the second SAE leaves the first's files too.
    let mut run = TrainingRun::resume(plan(folder, 640)).unwrap();
    run.advance().unwrap();
    drop(run);
    let before = bytes(folder);
    assert!(refused(&|plan| plan.members[1].options.k = 4).contains("large: "));
    assert!(before == bytes(folder));
    fs::write(folder.join("large/events.out.tfevents"), "short").unwrap();
    let before = bytes(folder);
    assert!(refused(&|_| {}).contains("has 5 bytes"));
    assert!(before == bytes(folder));
    fs::remove_file(folder.join("large/events.out.tfevents")).unwrap();
    // What the numbers do not depend on may change.
    let mut plan = plan(folder, 640);
    plan.options = RunOptions { keep: 1, checkpoint_every: 3, divergence_factor: f64::INFINITY, ..options() };
    plan.pool = Pool::new(2).unwrap();
    finish(&mut TrainingRun::resume(plan).unwrap());
    assert_eq!(records(folder, "small").len(), 20);
}

#[test]
fn a_run_may_be_longer_than_it_was_planned_where_nothing_depends_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let constant = |tokens| {
        let mut plan = plan(dir.path(), 640);
        plan.options.tokens = tokens;
        plan.members.iter_mut().for_each(|member| member.options.decay_fraction = 0.0);
        plan
    };
    finish(&mut TrainingRun::start(constant(320)).unwrap());
    let mut longer = TrainingRun::resume(constant(0)).unwrap();
    finish(&mut longer);
    assert_eq!((longer.step(), records(dir.path(), "large").len()), (20, 20));
    drop(longer);
    // As planned, for the schedules' sake.
    let mut saved = constant(0);
    saved.members[0].options.total_tokens = 640;
    let error = TrainingRun::resume(saved).err().unwrap();
    assert!(error.message().contains("small: ") && error.message().contains("total_tokens is 640"), "{error}");
}

/// Rows that are spoiled until they are sought a second time, as by a fault that does not come again.
struct Fault {
    rows: Planted,
    sought: usize,
}

impl Fault {
    fn new(from: u64) -> Self {
        Self { rows: Planted { spoiled: Some((from, 3e18)), ..Planted::new(6400) }, sought: 0 }
    }
}

impl Source for Fault {
    fn layout(&self) -> sae::training::data::Layout {
        self.rows.layout()
    }

    fn len(&self) -> Option<u64> {
        self.rows.len()
    }

    fn next(&mut self, rows: &mut sae::training::data::Rows) -> Result<usize> {
        self.rows.next(rows)
    }

    fn position(&self) -> sae::training::data::Position {
        self.rows.position()
    }

    fn seek(&mut self, position: &sae::training::data::Position) -> Result<()> {
        // Twice at the start, to the sample and back.
        self.sought += 1;
        if self.sought > 2 {
            self.rows.spoiled = None;
        }
        self.rows.seek(position)
    }
}

#[test]
fn a_run_that_diverges_goes_back_and_on_at_a_lower_rate() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, source: Box<dyn Source>, steps: usize| {
        let folder = dir.path().join(name);
        let mut plan = Plan { source, ..plan(&folder, 0) };
        (plan.options.divergence_tries, plan.options.divergence_rate) = (2, 0.25);
        plan.options.sample = 64; // of sound rows
        let mut run = TrainingRun::start(plan).unwrap();
        let mut told = Vec::new();
        for _ in 0..steps {
            told.extend(run.advance().unwrap().unwrap().first().map(|record| record.step));
        }
        (folder, told, run)
    };
    let (healthy, _, other) = run("healthy", Box::new(Planted::new(6400)), 40);
    assert!(other.rollbacks().is_empty());
    // From a checkpoint, and where there is none yet from the start.
    for (name, spoiled_at, back_to) in [("late", 26, 20), ("early", 5, 0)] {
        let (folder, told, ran) = run(name, Box::new(Fault::new((spoiled_at - 1) * 32)), 40);
        let expected: Vec<u64> = (1..spoiled_at).chain(back_to + 1..).take(40).collect();
        assert_eq!(told, expected, "{name}");
        let [back] = ran.rollbacks() else { panic!("{:?}", ran.rollbacks()) };
        let facts = (back.from, back.to, back.sae.as_str(), back.rate);
        assert_eq!(facts, (spoiled_at, back_to, "small", 0.25), "{name}");
        assert!(back.reason.contains("gradient"), "{name}: {back:?}");
        let (small, large) = (records(&folder, "small"), records(&folder, "large"));
        let (small_healthy, large_healthy) = (records(&healthy, "small"), records(&healthy, "large"));
        assert_eq!(small.len(), ran.step() as usize, "{name}: no step is there twice");
        for (i, (of, other)) in small.iter().zip(&small_healthy).enumerate() {
            let lower = i as u64 >= back_to;
            let rate = if lower { 0.25 } else { 1.0 };
            assert!(
                (of.step, of.lr, of.rollbacks) == (other.step, other.lr * rate, usize::from(lower)),
                "{name}: {of:?}"
            );
        }
        // The other went on as if nothing had been.
        for (of, other) in large.iter().zip(&large_healthy) {
            let rollbacks = of.rollbacks;
            assert_eq!(*of, sae::training::run::StepRecord { rollbacks, ..*other }, "{name}");
        }
        let checkpoint = "checkpoints/step-000000000030/large/checkpoint.safetensors";
        assert!(fs::read(folder.join(checkpoint)).unwrap() == fs::read(healthy.join(checkpoint)).unwrap(), "{name}");
        // A later process knows of it.
        drop(ran);
        let mut plan = Plan { source: Box::new(Planted::new(6400)), ..crate::support::plan(&folder, 0) };
        (plan.options.divergence_tries, plan.options.sample) = (2, 64);
        let mut later = TrainingRun::resume(plan).unwrap();
        assert_eq!(later.rollbacks().len(), 1, "{name}");
        let record = later.advance().unwrap().unwrap()[0];
        let was = small.iter().find(|of| of.step == record.step).unwrap();
        assert_eq!((record.lr, record.loss, record.rollbacks), (was.lr, was.loss, 1), "{name}");
    }
    // What does not end ends the run.
    let folder = dir.path().join("lasting");
    let mut plan = spoiled(&folder, 800, 3e18);
    plan.options.divergence_tries = 2;
    let mut run = TrainingRun::start(plan).unwrap();
    let error = loop {
        match run.advance() {
            Ok(record) => assert!(record.is_some()),
            Err(error) => break error,
        }
    };
    assert_eq!(error.status(), Status::NotFinite, "{error}");
    let rates: Vec<f64> = run.rollbacks().iter().map(|back| back.rate).collect();
    assert_eq!(rates, [0.5, 0.25]);
    assert_eq!(records(&folder, "small").last().unwrap().rollbacks, 2);
}

#[test]
fn rows_that_are_not_fit_to_train_on_are_told_and_end_the_run() {
    let dir = tempfile::tempdir().unwrap();
    // From the eleventh step on.
    let folder = dir.path().join("long");
    let mut plan = spoiled(&folder, 320, f32::NAN);
    plan.options.divergence_steps = 7;
    let error = ended(plan);
    assert_eq!(error.status(), Status::NotFinite, "{error}");
    for word in ["small", "step 17", "no row of the last 7 steps", "step-000000000010"] {
        assert!(error.message().contains(word), "{word}: {error}");
    }
    let all = records(&folder, "small");
    assert_eq!(all.len(), 17);
    assert!(all[..10].iter().all(|of| of.tokens_not_finite == 0 && of.loss.is_finite()));
    assert!(all[10..].iter().all(|of| of.tokens_not_finite == 32 && of.tokens == 320 && of.loss.is_nan()));
    let text = fs::read_to_string(folder.join("small/metrics.jsonl")).unwrap();
    assert!(text.lines().nth(10).unwrap().contains("\"loss\":null"), "{text}");
    // Too short for that, but no training either.
    let source = Planted { spoiled: Some((16, f32::NAN)), ..Planted::new(160) };
    let plan = Plan { source: Box::new(source), ..crate::support::plan(&dir.path().join("short"), 0) };
    let mut run = TrainingRun::start(plan).unwrap();
    let steps = (0..5).map(|_| run.advance().unwrap().unwrap()[0].tokens_not_finite).collect::<Vec<_>>();
    assert_eq!(steps, [16, 32, 32, 32, 32]);
    let error = run.advance().unwrap_err();
    assert_eq!(error.status(), Status::NotFinite);
    for word in ["small", "of 5 steps", "1"] {
        assert!(error.message().contains(word), "{word}: {error}");
    }
}

#[test]
fn latents_that_start_anew_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(dir.path(), 640);
    (plan.members[0].options.no_aux, plan.members[0].options.resample_every) = (true, 2);
    plan.members[0].options.dead_after_tokens = 20;
    finish(&mut TrainingRun::start(plan).unwrap());
    let all = records(dir.path(), "small");
    assert!(all.iter().any(|of| of.resampled > 0), "{all:?}");
    assert!(all.iter().all(|of| of.resampled == 0 || of.step.is_multiple_of(2)), "{all:?}");
}

/// Of different sizes, recipes and layers, a transcoder and a crosscoder among them: each has the bits that it has alone.
#[test]
fn saes_of_one_source_are_those_of_a_source_each() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = members();
    all[0].layer = Some(0);
    all[1].layer = Some(1);
    let mut transcoder = Member::new("transcoder", members()[0].options.clone());
    (transcoder.layer, transcoder.target_layer) = (Some(0), Some(1));
    let mut crosscoder = Member::new("crosscoder", members()[1].options.clone());
    crosscoder.options.layers = 2;
    all.extend([transcoder, crosscoder]);
    let run = |name: &str, members: &[Member]| {
        let folder = dir.path().join(name);
        let source = Planted { layers: Some(2), ..Planted::new(640) };
        let pool = Pool::new(members.len()).unwrap();
        let plan =
            Plan { source: Box::new(source), members: members.to_vec(), held_out: None, pool, ..plan(&folder, 0) };
        finish(&mut TrainingRun::start(plan).unwrap());
        bytes(&folder.join("checkpoints/step-000000000020"))
    };
    let together = run("together", &all);
    for member in &all {
        let alone = run(&format!("{}-alone", member.name), std::slice::from_ref(member));
        let file = format!("{}/checkpoint.safetensors", member.name);
        assert!(together[&file] == alone[&file], "{file}");
    }
}

#[test]
fn metrics_without_a_checkpoint_are_not_begun_anew_unasked() {
    let dir = tempfile::tempdir().unwrap();
    finish(&mut TrainingRun::start(plan(dir.path(), 640)).unwrap());
    fs::remove_dir_all(dir.path().join("checkpoints")).unwrap();
    let before = bytes(dir.path());
    let error = TrainingRun::start(plan(dir.path(), 640)).err().unwrap();
    assert!(error.status() == Status::BadState && error.message().contains("small/metrics.jsonl"), "{error}");
    assert!(before == bytes(dir.path()));
    finish(&mut TrainingRun::resume(plan(dir.path(), 640)).unwrap());
    assert_eq!(records(dir.path(), "small").len(), 20);
}

#[test]
fn a_checkpoint_whose_numbers_do_not_agree_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut long = plan(folder, 640);
    long.options.sample = usize::MAX; // more than there are takes no memory
    let mut run = TrainingRun::start(long).unwrap();
    run.advance().unwrap();
    let checkpoint = run.checkpoint().unwrap();
    drop(run);
    let refused = |words: &[&str]| {
        let mut plan = plan(folder, 640);
        plan.options.sample = usize::MAX;
        let error = TrainingRun::resume(plan).err().unwrap();
        assert_eq!(error.status(), Status::Format, "{error}");
        for word in words {
            assert!(error.message().contains(word), "{word}: {error}");
        }
    };
    let path = checkpoint.join("run.json");
    let sound: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for step in [0, 2, u64::MAX] {
        let value = serde_json::json!({ "step": step });
        let mut text = sound.clone();
        text["step"] = value["step"].clone();
        fs::write(&path, text.to_string()).unwrap();
        refused(&["run.json: not a sound checkpoint", "in the folder of step 1", &step.to_string()]);
    }
    let mut text = sound.clone();
    text["position"]["given"] = 100.into();
    fs::write(&path, text.to_string()).unwrap();
    refused(&["36 rows were given, but 32 to small"]);
    fs::write(&path, sound.to_string()).unwrap();
    fs::rename(&checkpoint, checkpoint.with_file_name(format!("step-{}", u64::MAX))).unwrap();
    refused(&["not a sound checkpoint", "step 1 after"]);
}

#[test]
fn batches_accumulate_to_steps_and_a_last_short_step_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, batch, accumulate, rows| {
        let mut plan = plan(&dir.path().join(name), rows);
        plan.options = RunOptions { batch, accumulate, ..options() };
        plan.members.iter_mut().for_each(|member| member.options.no_aux = true);
        finish(&mut TrainingRun::start(plan).unwrap());
        records(&dir.path().join(name), "small")
    };
    let (one, four) = (run("one", 32, 1, 330), run("four", 8, 4, 330));
    assert_eq!((one.len(), four.len(), four[10].tokens), (11, 11, 330));
    for (one, four) in one.iter().zip(&four) {
        assert_eq!((one.step, one.tokens, one.dead), (four.step, four.tokens, four.dead));
        for (a, b) in [(one.mse, four.mse), (one.l0, four.l0), (one.grad_norm, four.grad_norm)] {
            assert!((a - b).abs() < 1e-3 * a, "{one:?} {four:?}");
        }
    }
}

#[test]
fn saes_read_their_own_layers() {
    let dir = tempfile::tempdir().unwrap();
    let layered = |members: Vec<Member>, name: &str| {
        let source = Planted { layers: Some(2), ..Planted::new(640) };
        let folder = dir.path().join(name);
        let plan = Plan { source: Box::new(source), members, held_out: None, ..plan(&folder, 0) };
        let mut run = TrainingRun::start(plan).unwrap();
        finish(&mut run);
        run.export().unwrap().remove(0).1
    };
    let of = |layer| {
        let mut all = members();
        all.iter_mut().for_each(|member| member.layer = Some(layer));
        all
    };
    let transcoders = of(0).into_iter().map(|member| Member { target_layer: Some(1), ..member }).collect();
    let transcoder = layered(transcoders, "transcoder");
    let (first, second) = (layered(of(0), "first"), layered(of(1), "second"));
    // The layers differ by a constant, which b_dec takes in.
    let apart: f32 = second.weights().b_dec.iter().zip(&first.weights().b_dec).map(|(a, b)| a - b).sum();
    assert!((apart / D as f32 - 0.1).abs() < 0.02, "{apart}");
    // The transcoder writes where the second is.
    assert!(!transcoder.spec().subtract_b_dec);
    let apart: f32 = transcoder.weights().b_dec.iter().zip(&second.weights().b_dec).map(|(a, b)| a - b).sum();
    assert!((apart / D as f32).abs() < 0.02, "{apart}");
}
