//! Features of latent shards, merged into those of the whole.

use super::prepare::Prepared;
use super::scratch::RowScratch;
use super::select::{Kept, Key, Largest, sort};
use super::write::FeatureSink;
use crate::backend::Order;
use crate::features::FeaturesRef;

/// Merges one token's features from all shards; tells how many indices were not ones.
///
/// # Safety
/// No two threads may write the same row of `out`.
pub(crate) unsafe fn merge_row(
    row: usize,
    parts: &[FeaturesRef<'_>],
    k: Option<usize>,
    order: Order,
    (limit, keys): (usize, &mut [Key]),
    scratch: &mut RowScratch<'_>,
    out: &FeatureSink<'_>,
) -> u64 {
    let mut kept = Kept::default();
    let mut largest = Largest::new(keys, &mut kept, limit);
    let (mut active, mut finite, mut ignored) = (0usize, true, 0);
    for part in parts {
        let count = part.counts.element::<i32>(row);
        finite &= count >= 0;
        active += count.max(0) as usize;
        let values = &mut scratch.values[..part.width()];
        part.values.read_row(row, values);
        for (&index, &value) in part.indices.row::<i32>(row).iter().zip(&*values) {
            if index >= 0 && value.is_finite() {
                largest.push(Key::new(value, index));
            }
            ignored += u64::from(index < -1);
        }
    }
    let keys = largest.finish();
    sort(keys, order);
    // Every shard saw the same token, so the first one's statistics are everyone's.
    let state = parts.first().map_or([0.0; 2], |part| part.state(row));
    let prepared = if finite { Prepared::Ready(state) } else { Prepared::NotFinite };
    let keys = if finite { &*keys } else { &[] };
    // SAFETY: the caller's promise.
    unsafe { out.write(row, keys, k.map_or(active, |k| active.min(k)), prepared) };
    ignored
}
