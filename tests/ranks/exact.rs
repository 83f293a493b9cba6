//! With numbers so simple that no sum rounds, ranks together have the very bits of one process: the same latents win, of equals
//! the lower, whoever holds them.

use std::ops::Range;

use proptest::prelude::*;
use sae::backend::cpu::Kernels;
use sae::backend::cpu::training::CpuTraining;
use sae::backend::training::{
    BatchSums, JumpRelu, Level, LossParameters, Parameter, Penalty, Role, Rule, Training, TrainingShape,
};
use sae::backend::{Input, Pool};
use sae::collective::{Axis, Ranks};
use sae::tensor::Tensor;

use crate::runs::noise;
use crate::support::on_grid;

/// Widths are powers of two, so that the loss divides by such too.
const D: usize = 8;

/// One case: weights and rows are small whole numbers, of which few are different, so that scores tie all over.
#[derive(Clone, Debug)]
struct Case {
    rule: Rule,
    n: usize,
    k: usize,
    k_aux: usize,
    rows: usize,
    seed: u64,
}

/// What a batch came to.
#[derive(Debug, PartialEq)]
struct Found {
    sums: BatchSums,
    gradients: Vec<Vec<u32>>,
    unfired: Vec<u64>,
}

impl Case {
    fn shape(&self) -> TrainingShape {
        let Self { n, k, k_aux, rows, .. } = *self;
        TrainingShape { rule: self.rule.clone(), k_aux, max_tokens: rows.max(1), ..TrainingShape::top_k(k, D, n) }
    }

    fn weights(&self, parameter: Parameter, count: usize) -> Vec<f32> {
        let seed = self.seed + parameter as u64;
        let whole = |i: usize| (noise(seed, i) * 2.4).round();
        (0..count).map(|i| if parameter == Parameter::Threshold { whole(i).abs() } else { whole(i) }).collect()
    }

    /// Rows of whole numbers; some are zero, equal to each other, or not finite.
    fn rows(&self) -> Vec<f32> {
        let mut all: Vec<f32> = (0..self.rows * D).map(|i| (noise(self.seed + 100, i) * 2.4).round()).collect();
        for (row, x) in all.chunks_exact_mut(D).enumerate() {
            match (noise(self.seed + 101, row).abs() * 12.0) as usize {
                0 => x.fill(0.0),
                1 => x.fill(1.0),
                2 => x[row % D] = f32::NAN,
                3 => x[row % D] = f32::INFINITY,
                4 => x.fill(2e19),
                _ => {}
            }
        }
        all
    }

    /// The batch on one rank, whose tokens those `part` of all are; gradients of one row of ranks added up.
    fn run(&self, ranks: &Ranks, threads: usize, kernels: Kernels) -> Found {
        let shape = self.shape();
        let latents = ranks.part(self.n);
        let mut backend =
            CpuTraining::among(shape.shard(latents.clone()), Pool::new(threads).unwrap(), kernels, ranks.clone())
                .unwrap();
        for parameter in shape.parameters() {
            let (all, rows) = (self.weights(parameter, shape.len(parameter)), rows_of(parameter, &shape, &latents));
            backend.write(Role::Weight, parameter, &all[rows]).unwrap();
        }
        let unfired: Vec<u64> = (0..self.n).map(|i| (noise(self.seed + 102, i).abs() * 40.0) as u64).collect();
        backend.write_unfired(&unfired[latents.clone()]).unwrap();
        let (x, part) = (self.rows(), data_part(ranks, self.rows));
        let x = &x[part.start * D..part.end * D];
        let x = Tensor::new(x, &[part.len(), D]).unwrap();
        let loss = LossParameters {
            k: 0,
            normalizer: 0.5,
            aux_coefficient: 0.25,
            sparsity_coefficient: 2.0,
            fired: 1e-3,
            dead_after_tokens: 30,
        };
        let sums = backend.accumulate(&Input { x, addend: None, round_sum: false }.into(), &loss).unwrap();
        let gradients = shape.parameters().map(|parameter| {
            let rows = rows_of(parameter, &shape, &latents);
            let mut own = vec![0.0; rows.len()];
            backend.read(Role::Gradient, parameter, &mut own).unwrap();
            let mut all = vec![f32::NAN; shape.len(parameter)];
            all[rows].copy_from_slice(&own);
            all.iter().map(|v| v.to_bits()).collect()
        });
        let gradients = gradients.collect();
        let mut own = vec![0; latents.len()];
        backend.read_unfired(&mut own).unwrap();
        let mut unfired = vec![u64::MAX; self.n];
        unfired[latents].copy_from_slice(&own);
        Found { sums, gradients, unfired }
    }

    /// The same by a grid: rows of ranks add up, and along them each has its own latents'.
    fn run_on(&self, data: usize, latents: usize, kernels: Kernels) -> Found {
        let all = on_grid(data, latents, |ranks| self.run(&ranks, 1 + ranks.rank() % 3, kernels));
        let (shape, mut whole) = (self.shape(), None::<Found>);
        for (rank, found) in all.into_iter().enumerate() {
            let Some(whole) = &mut whole else {
                whole = Some(found);
                continue;
            };
            assert_eq!(whole.sums, found.sums, "rank {rank} was told another sum");
            let part = |place: usize| self.n * place / latents..self.n * (place + 1) / latents;
            let own = part(rank % latents);
            for ((parameter, to), from) in shape.parameters().zip(&mut whole.gradients).zip(&found.gradients) {
                if !parameter.is_of_latents() && rank % latents > 0 {
                    continue;
                }
                let rows = rows_of(parameter, &shape, &own);
                for (to, from) in to[rows.clone()].iter_mut().zip(&from[rows]) {
                    let sum = if rank < latents {
                        f32::from_bits(*from)
                    } else {
                        f32::from_bits(*to) + f32::from_bits(*from)
                    };
                    *to = sum.to_bits();
                }
            }
            if rank < latents {
                whole.unfired[own.clone()].copy_from_slice(&found.unfired[own.clone()]);
            }
            assert_eq!(whole.unfired[own.clone()], found.unfired[own], "rank {rank} counts otherwise");
        }
        whole.unwrap()
    }
}

/// Where the numbers of some latents are among a parameter's.
fn rows_of(parameter: Parameter, shape: &TrainingShape, latents: &Range<usize>) -> Range<usize> {
    let size = if parameter.is_of_latents() {
        shape.len(parameter) / shape.n_latents
    } else {
        return 0..shape.len(parameter);
    };
    latents.start * size..latents.end * size
}

/// The tokens of a rank: not as many for each, and for some none.
fn data_part(ranks: &Ranks, rows: usize) -> Range<usize> {
    let count = ranks.count(Axis::Data);
    let start = |place: usize| if place == count { rows } else { rows * place * place / (count * count) };
    start(ranks.place(Axis::Data))..start(ranks.place(Axis::Data) + 1)
}

/// For `n` latents.
fn rules(n: usize) -> [Rule; 8] {
    let step = Rule::JumpRelu(JumpRelu { bandwidth: 2.0, penalty: Penalty::Step });
    let quadratic = Rule::JumpRelu(JumpRelu { bandwidth: 2.0, penalty: Penalty::Quadratic { target_l0: 4.0 } });
    let levels = |prefixes: &[(usize, f32)]| Rule::BatchTopK {
        levels: prefixes.iter().map(|&(prefix, weight)| Level { prefix, weight }).collect(),
    };
    let nested = levels(&[(1, 0.5), (n / 2, 2.0), (n, 1.0)]);
    [Rule::TopK, Rule::MultiTopK, Rule::AbsTopK, Rule::Relu, step, quadratic, levels(&[(n, 1.0)]), nested]
}

/// Zeros are zeros; and deviations are from a mean, which rounds.
fn normal(found: Found) -> Found {
    let zero = |bits: u32| if f32::from_bits(bits) == 0.0 { 0 } else { bits };
    let gradients = found.gradients.iter().map(|all| all.iter().map(|&bits| zero(bits)).collect()).collect();
    let squared_deviation = f64::from(found.sums.squared_deviation as f32);
    Found { gradients, sums: BatchSums { squared_deviation, ..found.sums }, ..found }
}

fn check(case: &Case, data: usize, latents: usize) {
    let kernels = Kernels::best().unwrap();
    let whole = normal(case.run(&Ranks::alone(), 1, Kernels::named("scalar").unwrap()));
    let found = normal(case.run_on(data, latents, kernels));
    assert!(whole == found, "{case:?} on {data} × {latents}\n{whole:?}\n{found:?}");
}

#[test]
fn what_wins_is_what_would_win_in_one_process() {
    for (n, k, k_aux, rows) in
        [(13, 3, 4, 17), (13, 13, 13, 5), (40, 1, 1, 33), (64, 9, 30, 20), (5, 5, 2, 3), (13, 4, 2, 0)]
    {
        for rule in rules(n) {
            let unbounded = rule.is_unbounded();
            for (seed, (data, latents)) in [(1, 2), (1, 3), (1, 5), (2, 1), (2, 2), (3, 4)].into_iter().enumerate() {
                // What AuxK divides by is no power of two, so that tokens must be summed in one order.
                let k_aux = if unbounded || data > 1 { 0 } else { k_aux };
                let k = if unbounded { 0 } else { k };
                check(&Case { rule: rule.clone(), n, k, k_aux, rows, seed: 7 * seed as u64 }, data, latents);
            }
        }
    }
}

#[test]
fn each_rank_may_have_a_single_latent() {
    for rule in rules(6) {
        let k = if rule.is_unbounded() { 0 } else { 3 };
        check(&Case { rule, n: 6, k, k_aux: 0, rows: 9, seed: 3 }, 1, 6);
    }
}

/// All scores are equal: the lowest latents win, all on the first ranks, and the others have nothing.
#[test]
fn of_equals_the_lowest_win_wherever_they_are() {
    let (n, k) = (12, 5);
    for latents in [2, 3, 4, 12] {
        let active = on_grid(1, latents, |ranks| {
            let shape = TrainingShape { max_tokens: 4, ..TrainingShape::top_k(k, D, n) };
            let part = ranks.part(n);
            let shard = shape.shard(part.clone());
            let mut backend =
                CpuTraining::among(shard, Pool::serial(), Kernels::best().unwrap(), ranks.clone()).unwrap();
            backend.write(Role::Weight, Parameter::WEnc, &vec![1.0; part.len() * D]).unwrap();
            let x = [1.0; 4 * D];
            let x = Tensor::new(&x, &[4, D]).unwrap();
            let loss = LossParameters {
                k: 0,
                normalizer: 1.0,
                aux_coefficient: 0.0,
                sparsity_coefficient: 0.0,
                fired: 1e-3,
                dead_after_tokens: 4,
            };
            let sums = backend.accumulate(&Input { x, addend: None, round_sum: false }.into(), &loss).unwrap();
            assert_eq!((sums.active, sums.dead), (4 * k as u64, n - k));
            let mut unfired = vec![0; part.len()];
            backend.read_unfired(&mut unfired).unwrap();
            unfired
        });
        let expected: Vec<u64> = (0..n).map(|i| if i < k { 0 } else { 4 }).collect();
        assert_eq!(active.concat(), expected, "{latents} ranks");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn any_grid_has_the_bits_of_one_process(
        rule in 0usize..8, n in 4usize..60, k in 1usize..20, rows in 0usize..40,
        data in 1usize..4, latents in 1usize..5, seed in 0u64..1 << 20,
    ) {
        let rule = rules(n)[rule].clone();
        let k = if rule.is_unbounded() { 0 } else { k.min(n) };
        let k_aux = if k == 0 || data > 1 { 0 } else { (seed as usize % n).max(1) };
        check(&Case { rule, n, k, k_aux, rows, seed }, data, latents);
    }
}
