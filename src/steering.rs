//! Edits, and how they change an activation.
//!
//! Write an activation vector as `y = SAE(x) + error`. Steering replaces `SAE(x)` by the reconstruction with chosen latents
//! changed and keeps the error ("Scaling Monosemanticity", Anthropic 2024), which equals adding each change in the
//! decoder's space:
//!
//! ```text
//! out = y + scale · Σ δ_i · W_dec[i]        δ_i = new activation − activation of latent i
//! ```
//!
//! `scale` is what the SAE's normalisation divided this token by (σ, or ‖x‖/√d), 1 without one; δ is divided by
//! `‖W_dec[i]‖` where the SAE rescales by it. Only `add` on every token can be done without knowing the latent's activation.
//! Whether a latent of a TopK SAE is active depends on all others, so its other edits cost an encode, unless the features
//! are already `known`.

use crate::error::{Result, fail};

/// What an edit does to the activation `z` of its latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EditOp {
    /// `z + strength`, active or not.
    Add,
    /// `strength`, whatever z was.
    Set,
    /// `strength · z`.
    Scale,
    /// 0.
    Ablate,
}

/// One change to one latent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edit {
    /// Global index of the latent.
    pub feature: i32,
    /// What is done.
    pub op: EditOp,
    /// By how much, in units of the latent's activation.
    pub strength: f32,
    /// The change δ is clamped to ±limit; 0 means no limit.
    pub limit: f32,
    /// Do nothing on tokens where the latent is not active.
    pub only_active: bool,
}

impl Edit {
    /// An edit of every token, without a limit.
    pub fn new(feature: i32, op: EditOp, strength: f32) -> Self {
        Self { feature, op, strength, limit: 0.0, only_active: false }
    }

    /// Whether the change depends on the latent's activation.
    pub fn needs_activation(&self) -> bool {
        self.op != EditOp::Add || self.only_active
    }

    /// The change δ of a latent whose activation is `z`.
    pub fn delta(&self, z: f32) -> f32 {
        if self.only_active && z == 0.0 {
            return 0.0;
        }
        let delta = match self.op {
            EditOp::Add => self.strength,
            EditOp::Set => self.strength - z,
            EditOp::Scale => (self.strength - 1.0) * z,
            EditOp::Ablate => -z,
        };
        if self.limit > 0.0 { delta.clamp(-self.limit, self.limit) } else { delta }
    }
}

/// Refuses lists that name a latent the SAE does not hold, name one twice, or hold numbers that are not finite.
pub(crate) fn check_edits(edits: &[Edit], latents: std::ops::Range<usize>) -> Result<()> {
    for (i, edit) in edits.iter().enumerate() {
        if !usize::try_from(edit.feature).is_ok_and(|feature| latents.contains(&feature)) {
            let (first, last) = (latents.start, latents.end - 1);
            return fail!(InvalidArgument, "edits[{i}].feature: {} is not one of {first}..={last}", edit.feature);
        }
        if !edit.strength.is_finite() {
            return fail!(InvalidArgument, "edits[{i}].strength: {} is not a finite number", edit.strength);
        }
        if !edit.limit.is_finite() || edit.limit < 0.0 {
            return fail!(InvalidArgument, "edits[{i}].limit: {} is not a finite number from 0 up", edit.limit);
        }
        if let Some(other) = edits[..i].iter().position(|other| other.feature == edit.feature) {
            return fail!(InvalidArgument, "edits[{i}] and edits[{other}] both change latent {}", edit.feature);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_do_what_they_say() {
        let delta = |op, strength, z| Edit::new(0, op, strength).delta(z);
        assert_eq!(delta(EditOp::Add, 3.0, 2.0), 3.0);
        assert_eq!(delta(EditOp::Set, 3.0, 2.0), 1.0);
        assert_eq!(delta(EditOp::Scale, 3.0, 2.0), 4.0);
        assert_eq!(delta(EditOp::Scale, 3.0, 0.0), 0.0);
        assert_eq!(delta(EditOp::Ablate, 3.0, 2.0), -2.0);
        let limited = Edit { limit: 0.5, ..Edit::new(0, EditOp::Set, 3.0) };
        assert_eq!((limited.delta(0.0), limited.delta(9.0)), (0.5, -0.5));
        let gated = Edit { only_active: true, ..Edit::new(0, EditOp::Add, 3.0) };
        assert_eq!((gated.delta(0.0), gated.delta(0.1)), (0.0, 3.0));
    }

    #[test]
    fn bad_lists_are_refused() {
        let good = Edit::new(5, EditOp::Add, 1.0);
        check_edits(&[good, Edit { feature: 6, ..good }], 5..8).unwrap();
        for (bad, named) in [
            (Edit { feature: 8, ..good }, "feature"),
            (Edit { feature: -1, ..good }, "feature"),
            (Edit { strength: f32::NAN, ..good }, "strength"),
            (Edit { limit: -1.0, ..good }, "limit"),
            (good, "both change latent 5"),
        ] {
            let error = check_edits(&[good, bad], 5..8).unwrap_err();
            assert!(error.message().contains(named), "{error}");
        }
    }
}
