//! Which instruction set this process uses.
//!
//! What never enters: arithmetic.

use pulp::{Scalar, Simd, WithSimd};

/// Runs `operation` compiled for the best instruction set of this machine; the same one during a process.
pub(crate) fn run<Operation: WithSimd>(operation: Operation) -> Operation::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(simd) = pulp::x86::V4::try_new() {
            return Simd::vectorize(simd, operation);
        }
        if let Some(simd) = pulp::x86::V3::try_new() {
            return Simd::vectorize(simd, operation);
        }
    }
    Simd::vectorize(Scalar, operation)
}

struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

/// Numbers in one register.
pub(crate) fn lanes() -> usize {
    run(Lanes)
}

/// The instruction set that this machine's arithmetic uses, for people.
#[must_use]
pub fn instruction_set() -> &'static str {
    match lanes() {
        16 => "AVX-512",
        8 => "AVX2 and FMA",
        _ => "no vector instructions",
    }
}
