//! A trainer's checkpoint: what resumes makes a step, is saved and exported.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libsae_fuzz::scratch;
use sae::backend::Pool;
use sae::tensor::Tensor;
use sae::training::{Batch, Export, TrainOptions, Trainer};

const ROWS: usize = 4;

fuzz_target!(|bytes: &[u8]| {
    let path = scratch("checkpoint.safetensors", bytes);
    let folder = path.parent().expect("a folder");
    // Memory for so many tokens, whatever the file asks for.
    let options = TrainOptions { max_batch_tokens: ROWS, ..TrainOptions::default() };
    let Ok(mut trainer) = Trainer::resume(folder, &options, Pool::serial()) else { return };
    let options = trainer.options();
    let d_out = options.d_out;
    let numbers = |width: usize| (0..ROWS * width).map(|i| (i % 7) as f32 - 3.0).collect::<Vec<f32>>();
    let (x, y) = (numbers(options.layers.max(1) * options.d), numbers(d_out));
    let x = Tensor::new(&x, &[ROWS, x.len() / ROWS]).expect("a view");
    let target = options.transcoder.then(|| Tensor::new(&y, &[ROWS, d_out]).expect("a view"));
    // Numbers that are finite may be so large that a step is refused.
    trainer.step(&Batch { target, ..x.into() }).ok();
    trainer.save(folder).ok();
    trainer.export(Export::Weights).ok();
});
