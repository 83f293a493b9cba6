//! Reading what [`save`](super::save) wrote, and trusting none of it.

use std::fs::File;
use std::path::Path;

use half::bf16;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

use super::options::{AtlasOptions, INTERVALS};
use super::save::{CONTAINER, Facts};
use super::shelf::{Head, Shelf};
use super::statistics::{BINS, Statistics, bin, interval, range};
use super::{Atlas, Totals, height};
use crate::error::{Error, Result, fail};
use crate::tensor::Storage;

/// Bytes of memory that are taken for a file unasked.
const MEMORY: u64 = 8 << 30;
/// The most of anything that is counted, so that counting on never overflows.
const MOST: u64 = 1 << 62;

impl Atlas {
    /// Loads one that was saved; what it sees from then on is added. `most` is how many bytes of memory it may take; 0: 8 GiB.
    pub fn load(path: &Path, most: u64) -> Result<Self> {
        read(path, if most == 0 { MEMORY } else { most }).map_err(|e| e.at(path.display()))
    }
}

fn read(path: &Path, most: u64) -> Result<Atlas> {
    let bytes = Storage::map(&File::open(path)?)?;
    let Facts { options, totals, .. } = CONTAINER.facts(bytes.bytes())?;
    let Totals { tokens, not_finite, cut, stretches } = totals;
    if [tokens, not_finite, cut, stretches].iter().any(|&count| count > MOST) {
        return Err(broken(format!("{totals:?} are more than anybody has seen")));
    }
    let memory = options.memory().map_err(broken)?;
    let saved = Saved { found: SafeTensors::deserialize(bytes.bytes()).map_err(broken)?, options: &options };
    // So many latents are in the file, or nothing is allocated for them.
    let statistics = saved.statistics()?;
    let histograms = saved.rows::<8>("histogram", Dtype::U64, &[options.n_latents, BINS])?;
    if memory > most {
        return fail!(InvalidArgument, "takes {memory} bytes of memory, more than the {most} it may; allow it as many");
    }
    let mut atlas = Atlas::new(&options)?;
    let content = &mut atlas.content;
    for (to, &from) in content.histograms.iter_mut().zip(histograms) {
        *to = u64::from_le_bytes(from);
    }
    content.statistics.copy_from_slice(&statistics);
    for (i, of) in statistics.iter().enumerate() {
        check(of, content.histogram(i), totals.tokens).map_err(|e| e.at(format_args!("latent {i}")))?;
    }
    let range = |feature: u32| range(statistics[feature as usize].magnitude());
    let lots = content.lots;
    let draw = |feature, head: &Head| lots.draw(feature, head.document, head.position);
    saved.windows("top", &mut content.top, |_, head| (0, height(head.value)))?;
    saved.windows("random", &mut content.random, |feature, head| (0, draw(feature, head)[0]))?;
    saved.windows("intervals", &mut content.intervals, |feature, head| {
        (interval(head.value, range(feature), INTERVALS), draw(feature, head)[1])
    })?;
    atlas.totals = totals;
    Ok(atlas)
}

fn broken(error: impl std::fmt::Display) -> Error {
    CONTAINER.broken(error)
}

/// Refuses numbers that no feature has.
fn check(of: &Statistics, histogram: &[u64], tokens: u64) -> Result<()> {
    let finite = of.sums.iter().all(|sum| sum.is_finite()) && of.max.is_finite() && of.min.is_finite();
    let highest = if of.count == 0 { 0 } else { bin(of.magnitude()) };
    let counted = histogram.iter().try_fold(of.below, |sum, &count| sum.checked_add(count));
    let first = of.top_bin.saturating_add(1).saturating_sub(BINS as u64);
    let stray = (0..BINS as u64).any(|slot| histogram[slot as usize] > 0 && first == 0 && slot > of.top_bin);
    let sound = finite
        && of.min <= of.max
        && (of.count == 0) == (of.magnitude() == 0.0)
        && of.top_bin == highest
        && counted == Some(of.count)
        && of.count <= tokens
        && !stray;
    if sound { Ok(()) } else { Err(broken(format!("{of:?} do not go together, or with the histogram"))) }
}

struct Saved<'a> {
    found: SafeTensors<'a>,
    options: &'a AtlasOptions,
}

impl<'a> Saved<'a> {
    /// A tensor's numbers, `SIZE` bytes each.
    fn rows<const SIZE: usize>(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&'a [[u8; SIZE]]> {
        let tensor = self.found.tensor(name).map_err(broken)?;
        if tensor.dtype() != dtype || tensor.shape() != shape {
            let (kind, found) = (tensor.dtype(), tensor.shape());
            return Err(broken(format!("{name}: expected {dtype:?} {shape:?}, found {kind:?} {found:?}")));
        }
        Ok(tensor.data().as_chunks().0)
    }

    fn statistics(&self) -> Result<Vec<Statistics>> {
        let n = self.options.n_latents;
        let whole = |name| self.rows::<8>(name, Dtype::U64, &[n]);
        let (counts, below, top_bin) = (whole("count")?, whole("below")?, whole("top_bin")?);
        let float = |name| self.rows::<4>(name, Dtype::F32, &[n]);
        let (max, min) = (float("max")?, float("min")?);
        let sums = self.rows::<32>("sums", Dtype::F64, &[n, 4])?;
        let of = |i: usize| Statistics {
            count: u64::from_le_bytes(counts[i]),
            sums: std::array::from_fn(|power| f64::from_le_bytes(sums[i].as_chunks().0[power])),
            max: f32::from_le_bytes(max[i]),
            min: f32::from_le_bytes(min[i]),
            below: u64::from_le_bytes(below[i]),
            top_bin: u64::from_le_bytes(top_bin[i]),
        };
        Ok((0..n).map(of).collect())
    }

    /// Fills a shelf. `place` tells the class and the key of a feature's window.
    fn windows(&self, kind: &str, shelf: &mut Shelf, place: impl Fn(u32, &Head) -> (usize, u64)) -> Result<()> {
        let (n, width) = (self.options.n_latents, shelf.context.width());
        let name = |part: &str| format!("{kind}.{part}");
        let counts = self.rows::<2>(&name("windows"), Dtype::U16, &[n, shelf.classes])?;
        let counts = || counts.iter().map(|&count| usize::from(u16::from_le_bytes(count)));
        let m = counts().sum();
        let documents = self.rows(&name("document"), Dtype::I64, &[m])?;
        let positions = self.rows(&name("position"), Dtype::U64, &[m])?;
        let values = self.rows(&name("value"), Dtype::F32, &[m])?;
        let at = self.rows(&name("at"), Dtype::U16, &[m])?;
        let lens = self.rows(&name("len"), Dtype::U16, &[m])?;
        let tokens = self.rows(&name("tokens"), Dtype::I32, &[m, width])?;
        let activations = self.rows(&name("activations"), Dtype::BF16, &[m, width])?;
        let (mut i, mut to_tokens, mut to_activations) = (0, vec![0; width], vec![0; width]);
        for (slot, count) in counts().enumerate() {
            let (feature, class) = ((slot / shelf.classes) as u32, slot % shelf.classes);
            let wrong = |what: &str| Err(broken(format!("{kind} window {i} of latent {feature}: {what}")));
            if count > shelf.per_class {
                return wrong(&format!("{count} of a class, the most is {}", shelf.per_class));
            }
            let mut last = None;
            for i in i..i + count {
                let mut head = Head {
                    key: 0,
                    document: i64::from_le_bytes(documents[i]),
                    position: u64::from_le_bytes(positions[i]),
                    value: f32::from_le_bytes(values[i]),
                    at: u16::from_le_bytes(at[i]),
                    len: u16::from_le_bytes(lens[i]),
                };
                if !head.value.is_finite() || head.value == 0.0 || head.at >= head.len || usize::from(head.len) > width
                {
                    return wrong(&format!("{head:?} is none"));
                }
                let (belongs, key) = place(feature, &head);
                head.key = key;
                if belongs != class || last.as_ref().is_some_and(|last: &Head| last.rank(&head).is_gt()) {
                    return wrong(&format!("{head:?} is out of order"));
                }
                for (to, &from) in to_tokens.iter_mut().zip(&tokens[i * width..]) {
                    *to = i32::from_le_bytes(from);
                }
                for (to, &from) in to_activations.iter_mut().zip(&activations[i * width..]) {
                    *to = u16::from_le_bytes(from);
                }
                if to_activations.iter().any(|&bits| !bf16::from_bits(bits).is_finite()) {
                    return wrong("an activation is not finite");
                }
                shelf.take(feature, class, (&head, &to_tokens, &to_activations));
                last = Some(head);
            }
            i += count;
        }
        Ok(())
    }
}
