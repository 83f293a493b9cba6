//! What is drawn, and why it does not depend on the order in which activations come: each has its lots, the lowest stay.

/// Draws lots for activations.
#[derive(Clone, Copy)]
pub(super) struct Lots {
    pub(super) seed: u64,
    pub(super) first_latent: usize,
}

impl Lots {
    /// The lot of an activation among all of its feature, and that among those of its interval.
    pub(super) fn draw(&self, feature: u32, document: i64, position: u64) -> [u64; 2] {
        let latent = (self.first_latent + feature as usize) as u64;
        let token = mixed(mixed(self.seed ^ mixed(document as u64)) ^ position);
        [mixed(token ^ mixed(2 * latent)), mixed(token ^ mixed(2 * latent + 1))]
    }
}

/// Every bit depends on every bit of the argument (the finaliser of SplitMix64, Steele et al. 2014).
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}
