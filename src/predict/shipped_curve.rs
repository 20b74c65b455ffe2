//! From surprise to risk, as `stormglass-train report --curve` wrote it; it writes it again.
//!
//! What never enters: a figure typed by hand.

/// The curve of all development machines, as far as it is claimed.
pub(super) const SHIPPED_CURVE: &[(f32, f32)] = &[
    (-0.125, 0.016),
    (0.125, 0.104),
    (0.375, 0.146),
    (0.625, 0.353),
    (0.875, 0.428),
    (1.125, 0.574),
    (1.375, 0.769),
    (1.625, 0.867),
];
