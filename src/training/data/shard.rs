//! One file of activations, or a part of one.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::files::beside;
use super::fingerprint::Fingerprint;
use super::{Layout, ShardOptions};
use crate::error::{Result, fail};
use crate::formats::mapped::{Arrays, Kind, Mapped};
use crate::tensor::Storage;

/// An array of activations `[…, d]` or `[…, layers, d]`, mapped, and what is told of its tokens.
pub(super) struct Shard {
    path: PathBuf,
    name: String,
    bytes: Storage,
    shape: Vec<usize>,
    layout: Layout,
    rows: u64,
    /// Tokens of a context, where the shape tells contexts apart.
    context: Option<u64>,
    documents: Option<Numbers>,
    positions: Option<Numbers>,
    tokens: Option<Numbers>,
    first_document: i64,
}

impl Shard {
    /// What there is in a file, or a part of it; its contexts, if it tells them apart, are numbered from `first_document` on.
    pub(super) fn new(path: &Path, arrays: &Arrays, options: &ShardOptions, first_document: i64) -> Result<Self> {
        let name = choose(arrays, options)?;
        let Mapped { bytes, kind, shape } = arrays.map(&name)?;
        let shown = shown(&name);
        let Kind::Float(dtype) = kind else {
            let found = kind.name();
            return fail!(InvalidArgument, "{shown}: expected f32, f16 or bf16, found {found}");
        };
        let inner = if options.layered { 2 } else { 1 };
        if shape.len() <= inner {
            let expected = if options.layered { "[tokens, layers, d]" } else { "[tokens, d]" };
            return fail!(InvalidArgument, "{shown}: expected {expected}, found {shape:?}");
        }
        let (outer, row) = shape.split_at(shape.len() - inner);
        let layout = Layout { layers: options.layered.then(|| row[0]), d: row[inner - 1], dtype };
        layout.check().map_err(|e| e.at(format_args!("{shown} {shape:?}")))?;
        let rows = outer.iter().map(|&len| len as u64).product();
        if rows == 0 {
            return fail!(InvalidArgument, "{shown}: is empty, {shape:?}");
        }
        let context = outer.get(1..).and_then(|lens| lens.last()).map(|&len| len as u64);
        let mut shard = Self {
            path: path.to_owned(),
            name,
            bytes,
            layout,
            rows,
            context,
            documents: None,
            positions: None,
            tokens: None,
            first_document,
            shape,
        };
        shard.documents = shard.numbers(arrays, options.documents.as_deref())?;
        shard.positions = shard.numbers(arrays, options.positions.as_deref())?;
        shard.tokens = shard.numbers(arrays, options.tokens.as_deref())?;
        for (what, numbers) in [("positions", &shard.positions), ("tokens", &shard.tokens)] {
            if numbers.as_ref().is_some_and(|numbers| numbers.each != 1) {
                return fail!(
                    InvalidArgument,
                    "{}: has a number for each context, not for each token",
                    shard.what(what)
                );
            }
        }
        Ok(shard)
    }

    /// The numbers beside the activations.
    fn numbers(&self, arrays: &Arrays, name: Option<&str>) -> Result<Option<Numbers>> {
        let Some(name) = name else { return Ok(None) };
        let Mapped { bytes, kind, shape } = if arrays.is_one() {
            let path = beside(&self.path, name);
            let map = || match Arrays::open(&path)?.as_slice() {
                [only] if only.is_one() => only.map(""),
                _ => fail!(Format, "not an array of numpy"),
            };
            map().map_err(|e| e.at(path.file_name().unwrap_or_default().display()))?
        } else {
            arrays.map(name)?
        };
        let Kind::Whole(size) = kind else {
            return fail!(InvalidArgument, "{name}: expected i32 or i64, found {}", kind.name());
        };
        let count = shape.iter().map(|&len| len as u64).product::<u64>();
        let each = match self.context {
            _ if count == self.rows => 1,
            Some(context) if count.checked_mul(context) == Some(self.rows) => context,
            _ => {
                let rows = self.rows;
                return fail!(InvalidArgument, "{name}: {shape:?} are not the {rows} tokens of {}", self.describe());
            }
        };
        Ok(Some(Numbers { bytes, size, each }))
    }

    fn what(&self, what: &str) -> String {
        format!("{what} of {}", self.describe())
    }

    /// What tells it from others wherever its file lies: its tensor, and of what is in there two rows.
    pub(super) fn tell(&self, data: &mut Fingerprint) {
        data.add(self.describe().as_bytes());
        // Not the first: what a model makes of the token that begins texts is the same in all data.
        for row in [self.rows / 2, self.rows - 1] {
            data.add(self.row(row));
        }
    }

    /// The tensor, its shape and its type.
    pub(super) fn describe(&self) -> String {
        format!("{} {:?} {}", shown(&self.name), self.shape, self.layout.dtype)
    }

    /// The same with the file.
    pub(super) fn describe_with_path(&self) -> String {
        format!("{} of {}", self.describe(), self.path.display())
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Contexts that its shape tells apart.
    pub(super) fn contexts(&self) -> i64 {
        self.context.map_or(0, |context| (self.rows / context) as i64)
    }

    /// The bytes of a row, which must be there.
    pub(super) fn row(&self, row: u64) -> &[u8] {
        let bytes = self.layout.row_bytes();
        &self.bytes.bytes()[row as usize * bytes..][..bytes]
    }

    /// The document of a row.
    pub(super) fn document(&self, row: u64) -> i64 {
        match (&self.documents, self.context) {
            (Some(documents), _) => documents.get(row),
            (None, Some(context)) => self.first_document + (row / context) as i64,
            (None, None) => 0,
        }
    }

    /// The token of a row, if it is known.
    pub(super) fn token(&self, row: u64) -> Option<i64> {
        self.tokens.as_ref().map(|tokens| tokens.get(row))
    }

    /// Whether positions are known.
    pub(super) fn tells_positions(&self) -> bool {
        self.positions.is_some() || self.context.is_some()
    }

    /// The position of a row; `None` if it is not known, or negative.
    pub(super) fn position(&self, row: u64) -> Option<u64> {
        match (&self.positions, self.context) {
            (Some(positions), _) => u64::try_from(positions.get(row)).ok(),
            (None, context) => context.map(|context| row % context),
        }
    }

    /// How many rows are at positions to keep.
    pub(super) fn count(&self, keep: &Range<u64>) -> u64 {
        match (&self.positions, self.context) {
            (Some(_), _) if *keep != (0..u64::MAX) => {
                (0..self.rows).filter(|&row| self.position(row).is_some_and(|p| keep.contains(&p))).count() as u64
            }
            (None, Some(context)) => {
                self.rows / context * (keep.end.min(context).saturating_sub(keep.start.min(context)))
            }
            _ => self.rows,
        }
    }
}

/// The tensor to read.
fn choose(arrays: &Arrays, options: &ShardOptions) -> Result<String> {
    let names = arrays.names();
    let listed =
        || names.iter().take(9).map(|name| name.chars().take(60).collect::<String>()).collect::<Vec<_>>().join(", ");
    if arrays.is_one() {
        return Ok(String::new());
    }
    if let Some(name) = &options.tensor {
        return match names.contains(&name.as_str()) {
            true => Ok(name.clone()),
            false => fail!(InvalidArgument, "tensor {name} is not there; found {}", listed()),
        };
    }
    let fits = |name: &str| {
        let beside = [&options.documents, &options.positions, &options.tokens].into_iter().flatten().any(|n| n == name);
        let map = arrays.map(name);
        !beside && map.is_ok_and(|m| matches!(m.kind, Kind::Float(_)) && m.shape.len() > 1)
    };
    let fitting: Vec<&str> = names.iter().copied().filter(|&name| fits(name)).collect();
    match (fitting.as_slice(), names.as_slice()) {
        // What is wrong with the only tensor there is will be said of it by name.
        ([only], _) | ([], [only]) => Ok((*only).to_owned()),
        ([], _) => fail!(InvalidArgument, "holds no tensor [tokens, d] of f32, f16 or bf16; found {}", listed()),
        (several, _) => fail!(InvalidArgument, "holds several tensors ({}); say which", several.join(", ")),
    }
}

/// What a tensor is called in messages.
fn shown(name: &str) -> &str {
    if name.is_empty() { "the array" } else { name }
}

/// Whole numbers, mapped, of which each stands for so many rows.
struct Numbers {
    bytes: Storage,
    size: usize,
    each: u64,
}

impl Numbers {
    fn get(&self, row: u64) -> i64 {
        let bytes = &self.bytes.bytes()[(row / self.each) as usize * self.size..][..self.size];
        match *bytes {
            [a, b, c, d] => i32::from_le_bytes([a, b, c, d]).into(),
            [a, b, c, d, e, f, g, h] => i64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => unreachable!("of 4 or 8 bytes, as was checked"),
        }
    }
}
