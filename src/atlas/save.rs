//! An atlas on disk: a safetensors file of what is kept of each latent (`count` u64 `[n]`, `sums` f64 `[n, 4]`, `max`, `min` f32,
//! `below` and `top_bin` u64, `histogram` u64 `[n, 64]`: the bin b of all that f32 has, four to an octave, at b modulo 64), and
//! for each kind of window, `top`, `intervals` and `random`, of how many a latent has (`top.windows`, u16 `[n, classes]`) and of
//! the windows one after the other, the best of a class first (`top.document` i64, `top.position` u64, `top.value` f32, `top.at` and
//! `top.len` u16, `top.tokens` i32 `[m, width]`, `top.activations` bf16 `[m, width]`). Its metadata hold one entry,
//! `libsae_atlas`, a JSON object. The same atlas has the same bytes.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, TensorInfo};
use serde::{Deserialize, Serialize};

use super::options::AtlasOptions;
use super::shelf::{Head, Shelf};
use super::statistics::BINS;
use super::{Atlas, Totals};
use crate::atomic;
use crate::container::Container;
use crate::error::Result;

pub(super) const CONTAINER: Container = Container { name: "atlas", key: "libsae_atlas", version: 1 };

/// The metadata's entry.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Facts {
    pub(super) version: u32,
    pub(super) options: AtlasOptions,
    pub(super) totals: Totals,
}

impl Atlas {
    /// Saves it into a file that appears whole or not at all. All documents are ended before.
    pub fn save(&mut self, path: &Path) -> Result<()> {
        self.finish();
        let write = |out: &mut dyn Write| {
            let mut out = BufWriter::with_capacity(1 << 20, out);
            self.write(&mut out)?;
            Ok(out.flush()?)
        };
        atomic::write(path, write).map_err(|e| e.at(path.display()))
    }

    fn write(&self, out: &mut dyn Write) -> Result<()> {
        let facts = Facts { version: CONTAINER.version, options: self.options.clone(), totals: self.totals() };
        let columns = self.columns();
        let mut end = 0;
        let infos = columns.iter().map(|Column { name, dtype, shape, .. }| {
            let start = end;
            end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
            (name.clone(), TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: (start, end) })
        });
        out.write_all(&CONTAINER.header(&facts, infos.collect())?)?;
        Ok(columns.iter().try_for_each(|column| (column.write)(out))?)
    }

    /// All tensors, those of larger numbers first, so that all are aligned.
    fn columns(&self) -> Vec<Column<'_>> {
        let n = self.options.n_latents;
        let content = &self.content;
        macro_rules! of_each {
            ($name:literal, $dtype:ident, $shape:expr, $field:ident) => {
                Column::new($name, Dtype::$dtype, $shape, |out| {
                    content.statistics.iter().try_for_each(|s| out.write_all(bytemuck::bytes_of(&s.$field)))
                })
            };
        }
        let mut columns = vec![
            of_each!("count", U64, &[n], count),
            of_each!("sums", F64, &[n, 4], sums),
            of_each!("below", U64, &[n], below),
            of_each!("top_bin", U64, &[n], top_bin),
            of_each!("max", F32, &[n], max),
            of_each!("min", F32, &[n], min),
            Column::new("histogram", Dtype::U64, &[n, BINS], |out| {
                out.write_all(bytemuck::cast_slice(&content.histograms))
            }),
        ];
        for (kind, shelf) in [("top", &content.top), ("intervals", &content.intervals), ("random", &content.random)] {
            columns.extend(windows(kind, shelf, n));
        }
        columns.sort_by_key(|column| std::cmp::Reverse(column.dtype.bitsize()));
        columns
    }
}

/// Writes a tensor's numbers.
type Body<'a> = Box<dyn Fn(&mut dyn Write) -> io::Result<()> + 'a>;

/// A tensor to be written.
struct Column<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    write: Body<'a>,
}

impl<'a> Column<'a> {
    fn new(
        name: impl Into<String>,
        dtype: Dtype,
        shape: &[usize],
        write: impl Fn(&mut dyn Write) -> io::Result<()> + 'a,
    ) -> Self {
        Self { name: name.into(), dtype, shape: shape.to_vec(), write: Box::new(write) }
    }
}

/// A window's part of a tensor.
type Part = fn((&Head, &[i32], &[u16]), &mut dyn Write) -> io::Result<()>;

/// The windows of one kind.
fn windows<'a>(kind: &str, shelf: &'a Shelf, n: usize) -> Vec<Column<'a>> {
    let classes = move || (0..n as u32).flat_map(|feature| (0..shelf.classes).map(move |class| (feature, class)));
    let m = classes().map(|(feature, class)| shelf.len(feature, class)).sum();
    let width = shelf.context.width();
    let lens = move |out: &mut dyn Write| {
        classes().try_for_each(|(feature, class)| out.write_all(&(shelf.len(feature, class) as u16).to_le_bytes()))
    };
    let parts: [(&str, Dtype, &[usize], Part); 7] = [
        ("document", Dtype::I64, &[m], |(head, ..), out| out.write_all(&head.document.to_le_bytes())),
        ("position", Dtype::U64, &[m], |(head, ..), out| out.write_all(&head.position.to_le_bytes())),
        ("value", Dtype::F32, &[m], |(head, ..), out| out.write_all(&head.value.to_le_bytes())),
        ("at", Dtype::U16, &[m], |(head, ..), out| out.write_all(&head.at.to_le_bytes())),
        ("len", Dtype::U16, &[m], |(head, ..), out| out.write_all(&head.len.to_le_bytes())),
        ("tokens", Dtype::I32, &[m, width], |(_, tokens, _), out| out.write_all(bytemuck::cast_slice(tokens))),
        ("activations", Dtype::BF16, &[m, width], |(.., activations), out| {
            out.write_all(bytemuck::cast_slice(activations))
        }),
    ];
    let mut columns = vec![Column::new(format!("{kind}.windows"), Dtype::U16, &[n, shelf.classes], lens)];
    for (name, dtype, shape, part) in parts {
        let write = move |out: &mut dyn Write| {
            let mut all = classes().flat_map(|(feature, class)| shelf.sorted(feature, class));
            all.try_for_each(|window| part(window, out))
        };
        columns.push(Column::new(format!("{kind}.{name}"), dtype, shape, write));
    }
    columns
}
