//! A buffer on disk: a safetensors file of `documents` (i64 `[held]`, if they are kept), `norms` (f32, the oldest first) and
//! `x` (`[held, d]` or `[held, layers, d]`, in the order that decides what comes next). Its metadata hold one entry,
//! `libsae_buffer`, a JSON object.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorInfo, TensorView};
use serde::{Deserialize, Serialize};

use super::held::{Counts, Held};
use super::options::{BufferMemory, BufferOptions, Choice, MAX_CAPACITY, MEMORY, Plan, Room};
use crate::container::Container;
use crate::error::{Error, Result, fail};
use crate::tensor::{DType, Storage};
use crate::training::data::Layout;

/// Of the layout described above.
const CONTAINER: Container = Container { name: "buffer", key: "libsae_buffer", version: 1 };

/// The metadata's entry.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Facts {
    version: u32,
    layers: Option<usize>,
    d: usize,
    dtype: String,
    capacity: usize,
    room: Room,
    choice: Choice,
    counts: Counts,
    closed: bool,
    /// Words of random numbers used so far.
    drawn: u64,
}

/// Writes the file's content.
pub(super) fn write(out: &mut dyn Write, held: &mut Held) -> Result<()> {
    let header = header(held)?;
    let mut out = BufWriter::new(out);
    out.write_all(&header)?;
    held.each_document().try_for_each(|document| out.write_all(&document.to_le_bytes()))?;
    held.norms.in_order().try_for_each(|norm| out.write_all(&norm.to_le_bytes()))?;
    held.each(|row| Ok(out.write_all(row)?))?;
    Ok(out.flush()?)
}

fn header(held: &Held) -> Result<Vec<u8>> {
    let BufferOptions { layout, room, choice } = &held.options;
    let facts = Facts {
        version: CONTAINER.version,
        layers: layout.layers,
        d: layout.d,
        dtype: layout.dtype.to_string(),
        capacity: held.plan.capacity(),
        room: room.clone(),
        choice: choice.clone(),
        counts: held.counts,
        closed: held.closed,
        drawn: held.rng.get_word_pos() as u64,
    };
    let kinds = [
        ("documents", Dtype::I64, vec![held.len()], choice.documents),
        ("norms", Dtype::F32, vec![held.norms.len()], true),
        ("x", dtype_of(layout.dtype), layout.shape(held.len()), true),
    ];
    let mut end = 0;
    let infos = kinds.into_iter().filter(|(.., kept)| *kept).map(|(name, dtype, shape, _)| {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (name.to_owned(), TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    CONTAINER.header(&facts, infos.collect())
}

fn dtype_of(dtype: DType) -> Dtype {
    match dtype {
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        _ => Dtype::F32,
    }
}

fn broken(error: impl std::fmt::Display) -> Error {
    CONTAINER.broken(error)
}

pub(super) fn restore(path: &Path, room: Option<&Room>) -> Result<Held> {
    let bytes = Storage::map(&File::open(path)?)?;
    let facts: Facts = CONTAINER.facts(bytes.bytes())?;
    let found = SafeTensors::deserialize(bytes.bytes()).map_err(broken)?;
    let tensor = |name: &str, dtype: Dtype, width: &[usize]| -> Result<TensorView<'_>> {
        let tensor = found.tensor(name).map_err(broken)?;
        match tensor.shape().split_first() {
            Some((_, inner)) if tensor.dtype() == dtype && inner == width => Ok(tensor),
            _ => {
                let (kind, shape) = (tensor.dtype(), tensor.shape());
                Err(broken(format!("{name} must be {dtype:?} [rows, {width:?}], not {kind:?} {shape:?}")))
            }
        }
    };
    let layout = facts.layout()?;
    let options = BufferOptions { layout, room: room.unwrap_or(&facts.room).clone(), choice: facts.choice.clone() };
    let x = tensor("x", dtype_of(layout.dtype), &layout.shape(0)[1..])?;
    let norms = numbers(&tensor("norms", Dtype::F32, &[])?, f32::from_le_bytes);
    let documents = match facts.choice.documents {
        true => Some(numbers(&tensor("documents", Dtype::I64, &[])?, i64::from_le_bytes)),
        false => None,
    };
    let rows = x.shape()[0];
    facts.check(rows, documents.as_ref().map(ExactSizeIterator::len))?;

    let plan = facts.plan(&options, room.is_some())?;
    let mut held = Held::new(&options, plan)?;
    let mut documents = documents.into_iter().flatten();
    for row in x.data().chunks_exact(layout.row_bytes()) {
        held.put_back(row, documents.next().unwrap_or(0))?;
    }
    for norm in norms {
        held.norms.add(norm);
    }
    (held.counts, held.closed) = (facts.counts, facts.closed);
    if held.awaits_judgement() && held.norms.len() != rows {
        return Err(broken(format!("{} norms of {rows} rows", held.norms.len())));
    }
    held.rng.set_word_pos(facts.drawn.into());
    Ok(held)
}

fn numbers<'a, T, const N: usize>(
    tensor: &TensorView<'a>,
    number: fn([u8; N]) -> T,
) -> impl ExactSizeIterator<Item = T> + use<'a, T, N> {
    tensor.data().as_chunks::<N>().0.iter().map(move |&bytes| number(bytes))
}

impl Facts {
    fn layout(&self) -> Result<Layout> {
        let known = [DType::F32, DType::F16, DType::BF16].into_iter().find(|known| known.to_string() == self.dtype);
        let Some(dtype) = known else { return Err(broken(format!("its rows are {}", self.dtype))) };
        let layout = Layout { layers: self.layers, d: self.d, dtype };
        layout.check().map_err(broken)?;
        Ok(layout)
    }

    /// Refuses numbers that no buffer comes to.
    fn check(&self, rows: usize, documents: Option<usize>) -> Result<()> {
        self.choice.check().map_err(broken)?;
        self.room.check().map_err(broken)?;
        if !(2..=MAX_CAPACITY).contains(&(self.capacity as u64)) {
            return Err(broken(format!("capacity is {}, and not 2 to {MAX_CAPACITY}", self.capacity)));
        }
        let Counts { pushed, masked, not_finite, sinks, taken, unmixed } = self.counts;
        let known = [masked, not_finite, sinks, taken, rows as u64];
        if known.into_iter().try_fold(0u64, u64::checked_add) != Some(pushed) || unmixed > taken {
            return Err(broken(format!("its counts do not add up: {:?} and {rows} held", self.counts)));
        }
        if rows > self.capacity || documents.is_some_and(|documents| documents != rows) {
            let capacity = self.capacity;
            return Err(broken(format!("{rows} rows, {documents:?} documents, and room for {capacity}")));
        }
        Ok(())
    }

    /// Where as many rows go as could be held. A file alone puts nothing on a disk, and takes no more memory than a buffer of which
    /// nothing is said; beyond that the caller has `chosen`.
    fn plan(&self, options: &BufferOptions, chosen: bool) -> Result<Plan> {
        let plan = Plan::new(options, Some(self.capacity)).map_err(|e| if chosen { e } else { broken(e.message()) })?;
        let BufferMemory { capacity, memory_bytes, spill_bytes } = plan.memory();
        if capacity < self.capacity {
            let few = format!(
                "memory_bytes and spill_bytes have room for {capacity} rows, the saved buffer for {}",
                self.capacity
            );
            return match chosen {
                true => fail!(InvalidArgument, "{few}: give as much as it had"),
                false => Err(broken(few)),
            };
        }
        if !chosen && spill_bytes > 0 {
            return fail!(
                InvalidArgument,
                "spill_folder: the buffer was saved with a spill file of {spill_bytes} bytes; say where that goes now \
                 (spill_bytes and spill_folder), or give memory_bytes for all of it"
            );
        }
        if !chosen && memory_bytes > MEMORY {
            return fail!(
                InvalidArgument,
                "memory_bytes: the saved buffer takes {memory_bytes}, more than the {MEMORY} that are taken unasked; say \
                 that it may take as many"
            );
        }
        Ok(plan)
    }
}
