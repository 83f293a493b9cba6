//! What tells data apart in a few bytes, the same on every machine and in every version.

/// FNV-1a of 64 bits (Fowler, Noll, Vo) over parts, each behind its length.
pub(in crate::training) struct Fingerprint(u64);

impl Fingerprint {
    pub(in crate::training) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(in crate::training) fn add(&mut self, part: &[u8]) {
        for &byte in (part.len() as u64).to_le_bytes().iter().chain(part) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub(in crate::training) fn value(&self) -> u64 {
        self.0
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
