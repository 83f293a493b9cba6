//! Arrow's streams and files: as much of the format as nested lists of numbers need, which is how Hugging Face's `datasets`
//! keeps arrays, and SAELens its cached activations. Columns are read where they lie; nothing is copied.
//!
//! A file is a row of messages, each a flatbuffer that describes the bytes behind it: a schema, then batches of records.

use super::file::File;
use super::mapped::{Kind, Mapped};
use crate::error::{Error, Result, Status, fail};
use crate::tensor::{DType, Storage};

/// What files begin with; streams have nothing before their messages.
const MAGIC: &[u8] = b"ARROW1\0\0";
/// What messages begin with.
const CONTINUES: &[u8] = &[0xff; 4];
/// More bytes than the description of any batch of activations has.
const MAX_MESSAGE: usize = 16 << 20;
/// Lists in lists, beyond those that tensors are kept as, and more columns than any data set has.
const MAX_DEPTH: usize = 8;
const MAX_FIELDS: usize = 4096;

/// The codes of Arrow's types that are told apart.
mod types {
    pub(super) const NULL: u8 = 1;
    pub(super) const INT: u8 = 2;
    pub(super) const FLOAT: u8 = 3;
    pub(super) const LIST: u8 = 12;
    pub(super) const STRUCT: u8 = 13;
    pub(super) const UNION: u8 = 14;
    pub(super) const FIXED_LIST: u8 = 16;
    pub(super) const MAP: u8 = 17;
    pub(super) const LARGE_LIST: u8 = 21;
    pub(super) const RUNS: u8 = 22;
    /// Of binary, text, lists and large lists.
    pub(super) const VIEWS: [u8; 4] = [23, 24, 25, 26];
    /// Binary, text, and their large kin: three blocks of bytes.
    pub(super) const TEXTS: [u8; 4] = [4, 5, 19, 20];
    /// Booleans, decimals, dates, times, fixed binary, durations: two blocks of bytes.
    pub(super) const PLAIN: [u8; 8] = [6, 7, 8, 9, 10, 11, 15, 18];
}

/// Whether a file is one of Arrow's.
pub(super) fn is(file: &File) -> Result<bool> {
    let head = file.head(MAGIC.len())?;
    // The first message of a stream, the schema, is never as long as what else might begin with these bytes.
    let stream = head.len() == 8 && head.starts_with(CONTINUES) && head[7] == 0;
    Ok(head == MAGIC || stream)
}

/// A column, and where the numbers of a batch's part of it are.
pub(super) struct Batch {
    columns: Vec<(String, Result<Column>)>,
    map: Storage,
}

/// Numbers, row-major.
struct Column {
    kind: Kind,
    shape: Vec<usize>,
    start: usize,
    bytes: usize,
}

impl Batch {
    /// The columns' names.
    pub(super) fn names(&self) -> Vec<&str> {
        self.columns.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// The column of that name.
    pub(super) fn map(&self, name: &str) -> Result<Mapped> {
        let Some((_, column)) = self.columns.iter().find(|(n, _)| n == name) else {
            return fail!(Format, "column {name} is missing; found {}", self.names().join(", "));
        };
        let Column { kind, shape, start, bytes } = column.as_ref().map_err(|e| e.clone().at(name))?;
        Ok(Mapped { bytes: self.map.slice(*start, *bytes)?, kind: kind.clone(), shape: shape.clone() })
    }
}

/// The batches of a file that have records.
pub(super) fn batches(file: &File) -> Result<Vec<Batch>> {
    let Some(map) = file.map()? else { return fail!(Internal, "the file is not on a disk") };
    let bytes = map.bytes();
    let mut at = if bytes.starts_with(MAGIC) { MAGIC.len() } else { 0 };
    let (mut fields, mut batches) = (None, Vec::new());
    while let Some(message) = Message::read(bytes, &mut at)? {
        match message.kind {
            Header::Schema => fields = Some(schema(&message.header)?),
            Header::Batch => {
                let Some(fields) = &fields else { return Err(broken("records before their schema")) };
                let columns = columns(&message, fields)?;
                if !columns.is_empty() {
                    batches.push(Batch { columns, map: map.clone() });
                }
            }
            Header::Other => {}
        }
    }
    match fields {
        Some(_) => Ok(batches),
        None => Err(broken("there is no schema")),
    }
}

fn broken(what: &str) -> Error {
    Error::new(Status::Format, format!("broken Arrow file: {what}"))
}

enum Header {
    Schema,
    Batch,
    Other,
}

/// A message and the bytes behind it.
struct Message<'a> {
    kind: Header,
    header: Table<'a>,
    whole: &'a [u8],
    body: usize,
    body_len: usize,
}

impl<'a> Message<'a> {
    /// The next message; `None` at the end.
    fn read(whole: &'a [u8], at: &mut usize) -> Result<Option<Self>> {
        let rest = whole.get(*at..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(None);
        }
        let cut_off = || broken("it is cut off");
        let len =
            rest.get(4..8).and_then(|len| len.try_into().ok()).map(u32::from_le_bytes).ok_or_else(cut_off)? as usize;
        if !rest.starts_with(CONTINUES) || len > MAX_MESSAGE {
            return Err(broken("something that is not a message"));
        }
        if len == 0 {
            return Ok(None);
        }
        let flat = rest.get(8..8 + len).ok_or_else(cut_off)?;
        let described = || {
            let message = Table::root(flat)?;
            let kind = match message.u8(1)? {
                1 => Header::Schema,
                3 => Header::Batch,
                _ => Header::Other,
            };
            Some((kind, message.table(2)?, usize::try_from(message.i64(3).unwrap_or(0)).ok()?))
        };
        let (kind, header, body_len) = described().ok_or_else(|| broken("a message that is not understood"))?;
        let body = *at + 8 + len;
        let end = body.checked_add(body_len).filter(|&end| end <= whole.len()).ok_or_else(cut_off)?;
        *at = end;
        Ok(Some(Self { kind, header, whole, body, body_len }))
    }

    /// The bytes of a block, and where in the file they are.
    fn block(&self, offset: i64, len: i64) -> Option<(usize, &'a [u8])> {
        let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        let inside = offset.checked_add(len)? <= self.body_len;
        inside.then(|| (self.body + offset, &self.whole[self.body + offset..][..len]))
    }
}

/// What a schema says of a column, or of the elements of its lists.
struct Field {
    name: String,
    kind: FieldKind,
}

enum FieldKind {
    Numbers(Kind, usize),
    /// Lists of any length, whose ends are numbers of so many bytes.
    List(usize, Box<Field>),
    FixedList(usize, Box<Field>),
    /// Nothing that is read: its own blocks of bytes, and what is inside.
    Other(usize, Vec<Field>),
}

fn schema(schema: &Table<'_>) -> Result<Vec<Field>> {
    // Bytes in the order of this machine's kind.
    let columns = schema.tables(1).filter(|_| schema.i16(0).unwrap_or(0) == 0).ok_or_else(broken_schema)?;
    let mut left = MAX_FIELDS;
    columns.iter().map(|table| field(table, 0, &mut left)).collect()
}

fn broken_schema() -> Error {
    broken("its schema")
}

fn field(table: &Table<'_>, depth: usize, left: &mut usize) -> Result<Field> {
    *left = left.checked_sub(1).filter(|_| depth < MAX_DEPTH).ok_or_else(broken_schema)?;
    let name = table.text(0).unwrap_or_default().to_owned();
    let described = || Some((table.u8(2)?, table.table(3)?));
    let (code, about) = described().ok_or_else(broken_schema)?;
    let length = || about.i32(0).ok_or_else(broken_schema);
    let mut inner = || -> Result<Vec<Field>> {
        let children = table.tables(5).unwrap_or_default();
        children.iter().map(|child| field(child, depth + 1, left).map_err(|e| e.at(&name))).collect()
    };
    let mut only = || inner()?.into_iter().next().map(Box::new).ok_or_else(broken_schema);
    let kind = match code {
        // An index into a dictionary that lies elsewhere.
        _ if table.table(4).is_some() => FieldKind::Other(2, Vec::new()),
        types::FLOAT => match about.i16(0).unwrap_or(0) {
            0 => FieldKind::Numbers(Kind::Float(DType::F16), 2),
            1 => FieldKind::Numbers(Kind::Float(DType::F32), 4),
            _ => FieldKind::Numbers(Kind::Other("f64".to_owned()), 8),
        },
        types::INT => match (length()?, about.u8(1).unwrap_or(0)) {
            (bits @ (32 | 64), 1) => FieldKind::Numbers(Kind::Whole(bits as usize / 8), bits as usize / 8),
            (bits, signed) => {
                let name = format!("{}{bits}", if signed == 1 { "i" } else { "u" });
                FieldKind::Numbers(Kind::Other(name), usize::try_from(bits / 8).map_err(|_| broken_schema())?)
            }
        },
        types::LIST => FieldKind::List(4, only()?),
        types::LARGE_LIST => FieldKind::List(8, only()?),
        types::FIXED_LIST => FieldKind::FixedList(usize::try_from(length()?).map_err(|_| broken_schema())?, only()?),
        types::NULL => FieldKind::Other(0, Vec::new()),
        types::STRUCT => FieldKind::Other(1, inner()?),
        types::MAP => FieldKind::Other(2, inner()?),
        kind if types::TEXTS.contains(&kind) => FieldKind::Other(3, Vec::new()),
        kind if types::PLAIN.contains(&kind) => FieldKind::Other(2, Vec::new()),
        // How many blocks others have is not known, so that nothing behind them could be found.
        _ => {
            let what = match code {
                types::UNION => "a union".to_owned(),
                types::RUNS => "run-end encoded".to_owned(),
                _ if types::VIEWS.contains(&code) => "a view".to_owned(),
                _ => format!("of Arrow's type {code}"),
            };
            return fail!(
                Unsupported,
                "{name}: the column is {what}, which is not read, nor columns beside it; remove it"
            );
        }
    };
    Ok(Field { name, kind })
}

/// Where the columns of a batch lie; none if it has no records.
fn columns(message: &Message<'_>, fields: &[Field]) -> Result<Vec<(String, Result<Column>)>> {
    let not_understood = || broken("a batch of records that is not understood");
    let batch = &message.header;
    if batch.table(3).is_some() {
        return fail!(Unsupported, "the records are compressed; only such as are not are read in place");
    }
    let described = || Some((usize::try_from(batch.i64(0).unwrap_or(0)).ok()?, batch.pairs(1)?, batch.pairs(2)?));
    let (rows, nodes, blocks) = described().ok_or_else(not_understood)?;
    let mut rest = Rest { message, nodes: nodes.into_iter(), blocks: blocks.into_iter() };
    if rows == 0 {
        return Ok(Vec::new());
    }
    let columns = fields.iter().map(|field| {
        let mut shape = vec![rows];
        let column = rest.column(field, 0, rows, &mut shape).ok_or_else(not_understood)?;
        Ok((field.name.clone(), column.map(|(kind, start, bytes)| Column { kind, shape, start, bytes })))
    });
    columns.collect()
}

/// The parts of a batch's description that no column has taken yet.
struct Rest<'a> {
    message: &'a Message<'a>,
    /// Length and nulls of each list and each row of numbers.
    nodes: std::vec::IntoIter<(i64, i64)>,
    /// Place and length of each block of bytes.
    blocks: std::vec::IntoIter<(i64, i64)>,
}

impl Rest<'_> {
    /// Takes a field's parts: where its elements `first..first + count` lie, or why they cannot be read. `None` if the description
    /// contradicts itself.
    fn column(
        &mut self,
        field: &Field,
        first: usize,
        count: usize,
        shape: &mut Vec<usize>,
    ) -> Option<Result<(Kind, usize, usize)>> {
        let (_, nulls) = self.nodes.next()?;
        // Which of them are null; all are there if none is.
        let own = match &field.kind {
            FieldKind::Other(blocks, _) => *blocks,
            _ => 1,
        };
        for _ in 0..own {
            self.blocks.next()?;
        }
        let inner = match &field.kind {
            FieldKind::Other(_, inner) => {
                for field in inner {
                    // What becomes of it does not matter, but its parts are gone by.
                    self.column(field, 0, 0, &mut Vec::new())?.ok();
                }
                Err(Error::new(Status::Unsupported, "not a column of numbers"))
            }
            FieldKind::Numbers(kind, size) => {
                let (offset, len) = self.blocks.next()?;
                let (start, bytes) = self.message.block(offset, len)?;
                let (skipped, needed) = (first.checked_mul(*size)?, count.checked_mul(*size)?);
                (skipped.checked_add(needed)? <= bytes.len()).then_some(())?;
                Ok((kind.clone(), start + skipped, needed))
            }
            FieldKind::FixedList(len, inner) => {
                shape.push(*len);
                self.column(inner, first.checked_mul(*len)?, count.checked_mul(*len)?, shape)?
            }
            FieldKind::List(size, inner) => {
                let (offset, len) = self.blocks.next()?;
                let (_, ends) = self.message.block(offset, len)?;
                let end = |i: usize| -> Option<usize> {
                    let bytes = ends.get(i.checked_mul(*size)?..)?.get(..*size)?;
                    usize::try_from(bytes.iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte))).ok()
                };
                if count == 0 {
                    self.column(inner, 0, 0, shape)?
                } else {
                    let (begin, width) = (end(first)?, end(first + 1)?.checked_sub(end(first)?)?);
                    let mut even = true;
                    for i in 0..count {
                        even &= end(first + i + 1)? == begin.checked_add(width.checked_mul(i + 1)?)?;
                    }
                    if even {
                        shape.push(width);
                        self.column(inner, begin, width.checked_mul(count)?, shape)?
                    } else {
                        self.column(inner, 0, 0, shape)?.ok();
                        Err(Error::new(Status::Format, "its lists are not all of one length"))
                    }
                }
            }
        };
        if nulls != 0 && count > 0 {
            return Some(inner.and_then(|_| fail!(Format, "{nulls} of its entries are missing")));
        }
        Some(inner)
    }
}

/// A table of a flatbuffer: numbers and places of others, found by the number of the field. Every read is within bounds, or
/// gives `None`, as does a field that is not there.
#[derive(Clone, Copy)]
struct Table<'a> {
    flat: &'a [u8],
    at: usize,
}

impl<'a> Table<'a> {
    fn root(flat: &'a [u8]) -> Option<Self> {
        Some(Self { flat, at: number::<4>(flat, 0).map(u32::from_le_bytes)? as usize })
    }

    /// Where a field lies.
    fn place(&self, field: usize) -> Option<usize> {
        let back = i32::from_le_bytes(number(self.flat, self.at)?);
        let listed = usize::try_from(i64::try_from(self.at).ok()? - i64::from(back)).ok()?;
        let size = u16::from_le_bytes(number(self.flat, listed)?) as usize;
        let entry = 4 + 2 * field;
        let offset = if entry + 2 <= size { u16::from_le_bytes(number(self.flat, listed + entry)?) } else { 0 };
        (offset != 0).then(|| self.at + offset as usize)
    }

    fn u8(&self, field: usize) -> Option<u8> {
        self.flat.get(self.place(field)?).copied()
    }

    fn i16(&self, field: usize) -> Option<i16> {
        number(self.flat, self.place(field)?).map(i16::from_le_bytes)
    }

    fn i32(&self, field: usize) -> Option<i32> {
        number(self.flat, self.place(field)?).map(i32::from_le_bytes)
    }

    fn i64(&self, field: usize) -> Option<i64> {
        number(self.flat, self.place(field)?).map(i64::from_le_bytes)
    }

    /// Where what a field points to lies.
    fn target(&self, field: usize) -> Option<usize> {
        let place = self.place(field)?;
        place.checked_add(u32::from_le_bytes(number(self.flat, place)?) as usize)
    }

    fn table(&self, field: usize) -> Option<Self> {
        Some(Self { flat: self.flat, at: self.target(field)? })
    }

    /// The bytes of a vector of elements of so many bytes.
    fn vector(&self, field: usize, size: usize) -> Option<(usize, &'a [u8])> {
        let at = self.target(field)?;
        let len = u32::from_le_bytes(number(self.flat, at)?) as usize;
        Some((at + 4, self.flat.get(at + 4..)?.get(..len.checked_mul(size)?)?))
    }

    fn text(&self, field: usize) -> Option<&'a str> {
        std::str::from_utf8(self.vector(field, 1)?.1).ok()
    }

    fn tables(&self, field: usize) -> Option<Vec<Self>> {
        let (at, places) = self.vector(field, 4)?;
        let tables = (0..places.len() / 4).map(|i| {
            let place = at + 4 * i;
            let target = place.checked_add(u32::from_le_bytes(number(self.flat, place)?) as usize)?;
            Some(Self { flat: self.flat, at: target })
        });
        tables.collect()
    }

    /// A vector of pairs of numbers.
    fn pairs(&self, field: usize) -> Option<Vec<(i64, i64)>> {
        let (at, pairs) = self.vector(field, 16)?;
        let pair = |place| {
            Some((i64::from_le_bytes(number(self.flat, place)?), i64::from_le_bytes(number(self.flat, place + 8)?)))
        };
        (0..pairs.len() / 16).map(|i| pair(at + 16 * i)).collect()
    }
}

/// The bytes of a number.
fn number<const N: usize>(flat: &[u8], at: usize) -> Option<[u8; N]> {
    flat.get(at..)?.first_chunk().copied()
}
