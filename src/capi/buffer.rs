//! Shuffle buffers: what an engine computes, mixed into batches.

use std::ffi::c_char;
use std::path::Path;
use std::time::Duration;

use super::boundary::{array, boundary, check_flags, count, present, required_text, text};
use super::handle::{Handle, get, put, take_back};
use super::log::{SAE_LOG_INFO, log};
use super::run::SAE_RUN_ROUND_SUM;
use super::sized::{self, Output, sized};
use super::status::{sae_error, sae_status};
use super::tensor::{given, needed, sae_dtype, sae_tensor};
use crate::error::{Result, fail};
use crate::tensor::{DType, Tensor};
use crate::training::data::{Buffer, BufferOptions, Choice, Layout, Push, Room, Taken, Wait};

/// A shuffle buffer: takes activations in any order and number, as an engine computes them, and gives batches drawn uniformly
/// at random, without replacement, from all rows that it holds at that moment: at least half of what it can hold, until it is
/// closed. Rows are refused, never dropped: those that are left out for a reason are counted. For any number of threads at
/// once. What is given depends on the seed and the sequence of pushes and takes alone.
pub struct sae_buffer(Buffer);

impl Handle for sae_buffer {}

/// Rows come with their document's number, and are given with it.
pub const SAE_BUFFER_DOCUMENTS: u32 = 1;
/// Rows that are not finite are held like others, instead of left out and counted.
pub const SAE_BUFFER_KEEP_NOT_FINITE: u32 = 2;

/// How a buffer is made. `d` must be set; zero is a good default of all others.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_buffer_options {
    /// `sizeof(sae_buffer_options)`; `SAE_BUFFER_OPTIONS_INIT` sets it.
    pub struct_size: usize,
    /// Width of a vector of activations.
    pub d: i64,
    /// Layers of a row; 0: rows are vectors, and batches `[T, d]`, not `[T, layers, d]`.
    pub layers: i64,
    /// The most bytes of memory that the buffer takes, all that it needs counted; 0: 1 GiB.
    pub memory_bytes: u64,
    /// Size of the file that holds what does not fit into memory; 0: none.
    pub spill_bytes: u64,
    /// The folder of that file, which has no name and is gone when the buffer is, or the process; NULL: none.
    pub spill_folder: *const c_char,
    /// Of the order in which rows are given.
    pub seed: u64,
    /// With `SAE_BUFFER_DOCUMENTS`: documents of which rows must be held before any are given, unless the buffer is full;
    /// 0: 1.
    pub min_documents: u64,
    /// Rows whose norm exceeds this many times the running median of norms are left out: attention sinks, whose norms are 40
    /// to 150 times those of others. 0: none are.
    pub sink_multiple: f32,
    /// Rows whose norm exceeds this are left out; 0: none are.
    pub max_norm: f32,
    /// The type in which rows are held, f32, f16 or bf16; all zero: f32.
    pub dtype: sae_dtype,
    /// `SAE_BUFFER_…`.
    pub flags: u32,
}
sized!(sae_buffer_options: d, layers, memory_bytes, spill_bytes, spill_folder, seed, min_documents, sink_multiple, max_norm,
    dtype, flags);

/// What a buffer takes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_buffer_size {
    /// `sizeof(sae_buffer_size)`; `SAE_BUFFER_SIZE_INIT` sets it.
    pub struct_size: usize,
    /// Rows that can be held. A batch has at most half as many.
    pub capacity: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of the file.
    pub spill_bytes: u64,
}
sized!(sae_buffer_size: capacity, memory_bytes, spill_bytes);

/// Tells what a buffer of these options will take; nothing is allocated to find out.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_buffer_memory(
    options: *const sae_buffer_options,
    out: *mut sae_buffer_size,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (out, options) = unsafe { (Output::new("out", out)?, sized::require("options", options)?.read()?) };
        let size = Buffer::memory(&options).map_err(|e| e.at("options"))?;
        out.write(&sae_buffer_size {
            struct_size: 0,
            capacity: size.capacity as u64,
            memory_bytes: size.memory_bytes,
            spill_bytes: size.spill_bytes,
        });
        Ok(())
    })
}

/// Makes an empty buffer, which takes all its memory now.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_buffer_create(
    options: *const sae_buffer_options,
    out: *mut *mut sae_buffer,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        present("out", out)?;
        // SAFETY: the caller's pointers.
        let options = unsafe { sized::require("options", options)?.read()? };
        let buffer = Buffer::new(&options).map_err(|e| e.at("options"))?;
        // SAFETY: the caller's place for a handle.
        unsafe { put(out, sae_buffer(buffer)) };
        Ok(())
    })
}

/// Wait as long as it takes.
pub const SAE_WAIT_FOREVER: i64 = -1;

/// Rows to be mixed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_buffer_rows {
    /// `sizeof(sae_buffer_rows)`; `SAE_BUFFER_ROWS_INIT` sets it.
    pub struct_size: usize,
    /// `[T, d]`, or `[T, layers, d]`; f32, f16 or bf16, rounded to the buffer's type if that is another.
    pub x: *const sae_tensor,
    /// Like `x`: x + addend is held, formed in f32; NULL: x.
    pub addend: *const sae_tensor,
    /// `[T]`, i32: rows with 0 are left out; NULL: all count.
    pub row_mask: *const sae_tensor,
    /// The document of each of the T rows, if the buffer keeps documents.
    pub documents: *const i64,
    /// Rows at the front that are passed over: those that an earlier call has taken.
    pub first: i64,
    /// `SAE_RUN_ROUND_SUM`: x + addend is rounded to x's type before it is held, as `sae_train_step` does it.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
}
sized!(sae_buffer_rows: x, addend, row_mask, documents, first; flags, reserved);

/// Takes in rows, and tells how many in `taken`: all from `first` on, unless there is no room for them. Then it waits until there
/// is, for `wait_ms` milliseconds, 0: not at all, `SAE_WAIT_FOREVER`; call again with `first` raised by what was taken. Rows
/// that are left out count as taken: those of the mask, those that are not finite in the buffer's type, attention sinks.
/// `SAE_ERROR_BAD_STATE` if the buffer is closed before any row is taken.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_buffer_push(
    buffer: *const sae_buffer,
    rows: *const sae_buffer_rows,
    wait_ms: i64,
    taken: *mut i64,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        present("taken", taken)?;
        // SAFETY: the caller's pointers.
        let (buffer, rows) = unsafe { (get("buffer", buffer)?, sized::require("rows", rows)?.read()?) };
        let count = buffer.0.push(&rows, wait(wait_ms)?)?;
        // SAFETY: the caller's place for a number.
        unsafe { taken.write(count as i64) };
        Ok(())
    })
}

/// Everything has been given.
pub const SAE_BUFFER_END: i64 = -1;

/// Gives T rows into `out`, `[T, d]` or `[T, layers, d]`, of the buffer's type or f32, and their documents into `documents`, T
/// numbers, unless it is NULL. `taken` becomes the number of rows: fewer than T only where a closed buffer is left with fewer;
/// 0 if too few are held yet, even after `wait_ms` milliseconds (0: not waited for, or `SAE_WAIT_FOREVER`); `SAE_BUFFER_END`
/// once the buffer is closed and empty. If the spill file cannot be read (`SAE_ERROR_IO`), all rows stay in the buffer, but what
/// is in `out` and `documents` is not defined.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_buffer_take(
    buffer: *const sae_buffer,
    out: *const sae_tensor,
    documents: *mut i64,
    wait_ms: i64,
    taken: *mut i64,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        present("taken", taken)?;
        // SAFETY: the caller's pointers.
        let (buffer, mut out) = unsafe { (get("buffer", buffer)?, needed("out", out)?.write("out")?) };
        let documents = match documents.is_null() {
            true => None,
            // SAFETY: the caller's memory for as many numbers as `out` has rows, which nobody else uses.
            false => Some(unsafe { array_mut("documents", documents, out.rows())? }),
        };
        let count = match buffer.0.take_into(&mut out, documents, wait(wait_ms)?)? {
            Taken::Rows(rows) => rows as i64,
            Taken::NotYet => 0,
            Taken::End => SAE_BUFFER_END,
        };
        // SAFETY: the caller's place for a number.
        unsafe { taken.write(count) };
        Ok(())
    })
}

/// Takes in no more rows, and ends all waiting: those who push are told how many rows were taken, those who take get what is
/// left, to the last row. Either side may call it: when the stream ends, or when no more is wanted.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_buffer_close(buffer: *const sae_buffer, error: *mut *mut sae_error) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's handle.
        unsafe { get("buffer", buffer)? }.0.close()
    })
}

/// How a buffer fares. At every moment `pushed` = `masked` + `not_finite` + `sinks` + `taken` + `held`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sae_buffer_state {
    /// `sizeof(sae_buffer_state)`; `SAE_BUFFER_STATE_INIT` sets it.
    pub struct_size: usize,
    /// Rows taken from those who push, whatever became of them.
    pub pushed: u64,
    /// Rows left out by masks.
    pub masked: u64,
    /// Rows left out because they were not finite.
    pub not_finite: u64,
    /// Rows left out because of their norm.
    pub sinks: u64,
    /// Rows given.
    pub taken: u64,
    /// Rows held.
    pub held: u64,
    /// Rows that can be held.
    pub capacity: u64,
    /// Batches given because the buffer was full, from fewer documents than were asked for.
    pub unmixed: u64,
    /// The running median of norms; 0 where sinks are not judged by it, or none is known.
    pub median_norm: f32,
    /// 1 if the buffer was closed, 0 if not.
    pub closed: i32,
}
sized!(sae_buffer_state: pushed, masked, not_finite, sinks, taken, held, capacity, unmixed, median_norm, closed);

/// Tells how a buffer fares.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_buffer_stats(
    buffer: *const sae_buffer,
    out: *mut sae_buffer_state,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (buffer, out) = unsafe { (get("buffer", buffer)?, Output::new("out", out)?) };
        let stats = buffer.0.stats()?;
        out.write(&sae_buffer_state {
            struct_size: 0,
            pushed: stats.pushed,
            masked: stats.masked,
            not_finite: stats.not_finite,
            sinks: stats.sinks,
            taken: stats.taken,
            held: stats.held as u64,
            capacity: stats.capacity as u64,
            unmixed: stats.unmixed,
            median_norm: stats.median_norm,
            closed: i32::from(stats.closed),
        });
        Ok(())
    })
}

/// Saves all that decides what comes next, the rows themselves included, into a file that appears whole or not at all. Other calls
/// wait while it is written, but not until it is on the disk.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_buffer_save(
    buffer: *const sae_buffer,
    path: *const c_char,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        // SAFETY: the caller's pointers.
        let (buffer, path) = unsafe { (get("buffer", buffer)?, required_text("path", path)?) };
        buffer.0.save(Path::new(path))?;
        log(SAE_LOG_INFO, || format!("{path}: buffer saved"));
        Ok(())
    })
}

/// Makes a buffer that goes on where one was saved: the same pushes and takes give the same bits. `options` may be NULL; what is
/// set in them must agree with what was saved, except for `memory_bytes`, `spill_bytes` and `spill_folder`, which say anew where
/// rows are held, if any of them is set. If none is, they are held in memory, in at most 1 GiB: a buffer that took more, or had a
/// spill file, is refused until that is said.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_buffer_restore(
    path: *const c_char,
    options: *const sae_buffer_options,
    out: *mut *mut sae_buffer,
    error: *mut *mut sae_error,
) -> sae_status {
    boundary(error, || {
        present("out", out)?;
        // SAFETY: the caller's pointers.
        let (path, given) = unsafe {
            let given = match sized::read("options", options)? {
                Some(given) => Some((given, given.read()?)),
                None => None,
            };
            (required_text("path", path)?, given)
        };
        let room = given.as_ref().map(|(_, options)| &options.room).filter(|room| **room != Room::default());
        let buffer = Buffer::restore(Path::new(path), room)?;
        if let Some((given, options)) = &given {
            given.agree(options, &buffer.options()?)?;
        }
        // SAFETY: the caller's place for a handle.
        unsafe { put(out, sae_buffer(buffer)) };
        Ok(())
    })
}

/// Frees a buffer, which no thread may still be waiting for; NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sae_buffer_free(buffer: *mut sae_buffer) {
    // SAFETY: the caller's handle, which it gives up.
    unsafe { take_back(buffer) };
}

fn wait(milliseconds: i64) -> Result<Wait> {
    match milliseconds {
        SAE_WAIT_FOREVER => Ok(Wait::Forever),
        0 => Ok(Wait::No),
        1.. => Ok(Wait::AtMost(Duration::from_millis(milliseconds as u64))),
        _ => fail!(InvalidArgument, "wait_ms: {milliseconds} is neither a time nor SAE_WAIT_FOREVER (-1)"),
    }
}

/// `count` numbers to write.
///
/// # Safety
/// A pointer that passes the checks must point to `count` initialised numbers, which nobody else uses for `'a`.
unsafe fn array_mut<'a>(name: &str, pointer: *mut i64, count: usize) -> Result<&'a mut [i64]> {
    // SAFETY: the caller's promise; it makes the checks.
    let numbers = unsafe { array(name, pointer.cast_const(), count)? };
    if numbers.is_empty() {
        return Ok(&mut []);
    }
    // SAFETY: as many numbers as were just checked, writable by the caller's promise; `numbers` is used no more.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, count) })
}

impl sae_buffer_options {
    /// # Safety
    /// What the pointers point to must be so.
    unsafe fn read(&self) -> Result<BufferOptions> {
        check_flags("options.flags", self.flags, SAE_BUFFER_DOCUMENTS | SAE_BUFFER_KEEP_NOT_FINITE)?;
        // SAFETY: the caller's promise.
        let folder = unsafe { text("options.spill_folder", self.spill_folder)? };
        let layers = count("options.layers", self.layers)?;
        Ok(BufferOptions {
            layout: Layout {
                layers: (layers > 0).then_some(layers),
                d: count("options.d", self.d)?,
                dtype: self.dtype.choose("options")?.unwrap_or(DType::F32),
            },
            room: Room {
                memory_bytes: self.memory_bytes,
                spill_bytes: self.spill_bytes,
                spill_folder: folder.map(Into::into),
            },
            choice: Choice {
                seed: self.seed,
                documents: self.flags & SAE_BUFFER_DOCUMENTS != 0,
                min_documents: self.min_documents,
                sink_multiple: self.sink_multiple,
                max_norm: self.max_norm,
                keep_not_finite: self.flags & SAE_BUFFER_KEEP_NOT_FINITE != 0,
            },
        })
    }

    /// Refuses options that contradict those a buffer was saved with; `said` is what these options say.
    fn agree(&self, said: &BufferOptions, saved: &BufferOptions) -> Result<()> {
        let shown = |layout: &Layout| format!("{:?} {}", &layout.shape(0)[1..], layout.dtype);
        let dtype = self.dtype.bits != 0 && said.layout.dtype != saved.layout.dtype;
        let layers = self.layers != 0 && said.layout.layers != saved.layout.layers;
        if dtype || layers || (self.d != 0 && said.layout.d != saved.layout.d) {
            let (said, saved) = (shown(&said.layout), shown(&saved.layout));
            return fail!(InvalidArgument, "options: rows are {said}, but the buffer was saved with {saved}");
        }
        let (unsaid, choice) = (Choice::default(), &saved.choice);
        macro_rules! agree {
            ($($field:ident),*) => {$(
                if said.choice.$field != unsaid.$field && said.choice.$field != choice.$field {
                    return fail!(
                        InvalidArgument,
                        "options: {} is {:?}, but the buffer was saved with {:?}; leave it at its default to keep that",
                        stringify!($field),
                        said.choice.$field,
                        choice.$field
                    );
                }
            )*};
        }
        agree!(seed, documents, min_documents, sink_multiple, max_norm, keep_not_finite);
        Ok(())
    }
}

impl sae_buffer_rows {
    /// # Safety
    /// What the pointers describe must be so, for `'a`.
    unsafe fn read<'a>(&self) -> Result<Push<'a>> {
        check_flags("rows.flags", self.flags, SAE_RUN_ROUND_SUM)?;
        if self.reserved != 0 {
            return fail!(InvalidArgument, "rows.reserved: {} is not known; leave it 0", self.reserved);
        }
        // SAFETY: the caller's promise.
        unsafe {
            let optional = |name: &str, tensor| -> Result<Option<Tensor<'a>>> {
                given(name, tensor)?.map(|tensor: &sae_tensor| tensor.read(name)).transpose()
            };
            let x = needed("x", self.x)?.read("x")?;
            let documents = match self.documents.is_null() {
                true => None,
                false => Some(array("documents", self.documents, x.rows())?),
            };
            Ok(Push {
                x,
                addend: optional("addend", self.addend)?,
                round_sum: self.flags & SAE_RUN_ROUND_SUM != 0,
                row_mask: optional("row_mask", self.row_mask)?,
                documents,
                first: count("first", self.first)?,
            })
        }
    }
}
