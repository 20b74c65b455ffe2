//! The gates: logistic function and hyperbolic tangent, many at once.
//!
//! Both are made of one exponential, and the quotients of a cell share their divisions, which are the slowest instructions.
//! What never enters: memory.

use pulp::Simd;

/// Exponents beyond this saturate: `2^-40` is below what a single-precision number beside 1 can show, and three such factors do not overflow.
const EXPONENT_MAX: f32 = 40.0;

/// Adding it moves a number's integral part into the lowest bits of the mantissa: 1.5 · 2^23.
const ROUND: f32 = 12_582_912.0;

/// Coefficients of 2^x on [-½, ½], from degree 1 to 5, fitted for the least largest relative error with a constant term of 1: 9.1 · 10^-8.
const POWER: [f32; 5] = [0.693_146_97, 0.240_222_42, 0.055_507_34, 0.009_671_513, 0.001_326_472_7];

/// `2^x`, for x limited to ±[`EXPONENT_MAX`]. What is not a number stays so.
#[inline(always)]
fn power_of_two<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // The limits stand first: where one side is not a number, x86 takes the second.
    let x = simd.max_f32s(simd.splat_f32s(-EXPONENT_MAX), x);
    let x = simd.min_f32s(simd.splat_f32s(EXPONENT_MAX), x);
    let rounded = simd.add_f32s(x, simd.splat_f32s(ROUND));
    let rest = simd.sub_f32s(x, simd.sub_f32s(rounded, simd.splat_f32s(ROUND)));
    let mut power = simd.splat_f32s(POWER[4]);
    for coefficient in [POWER[3], POWER[2], POWER[1], POWER[0], 1.0] {
        power = simd.mul_add_f32s(power, rest, simd.splat_f32s(coefficient));
    }
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(power), exponent))
}

/// `e^(factor · x)`.
#[inline(always)]
fn exponential<S: Simd>(simd: S, x: S::f32s, factor: f32) -> S::f32s {
    power_of_two(simd, simd.mul_f32s(x, simd.splat_f32s(factor * std::f32::consts::LOG2_E)))
}

/// What a cell makes of its four sums.
pub(crate) struct Cell<V> {
    pub(crate) input_gate: V,
    pub(crate) forget_gate: V,
    pub(crate) candidate: V,
    pub(crate) output_gate: V,
    pub(crate) cell: V,
    pub(crate) tanh_cell: V,
    pub(crate) hidden: V,
}

/// The next cell and hidden state, from the sums of the four gates (i, f, g, o) and the cell before. Unused members cost nothing.
#[inline(always)]
pub(crate) fn cell<S: Simd>(simd: S, sums: [S::f32s; 4], before: S::f32s) -> Cell<S::f32s> {
    let one = simd.splat_f32s(1.0);
    let mul = |a, b| simd.mul_f32s(a, b);
    // σ(x) = 1 / (1 + e^-x), tanh(x) = (1 - e^-2x) / (1 + e^-2x)
    let candidate_power = exponential(simd, sums[2], -2.0);
    let input_divisor = simd.add_f32s(one, exponential(simd, sums[0], -1.0));
    let forget_divisor = simd.add_f32s(one, exponential(simd, sums[1], -1.0));
    let candidate_divisor = simd.add_f32s(one, candidate_power);
    let candidate_dividend = simd.sub_f32s(one, candidate_power);
    let input_candidate = mul(input_divisor, candidate_divisor);
    let shared = simd.div_f32s(one, mul(input_candidate, forget_divisor));
    let cell = mul(simd.mul_add_f32s(before, input_candidate, mul(candidate_dividend, forget_divisor)), shared);

    let cell_power = exponential(simd, cell, -2.0);
    let cell_divisor = simd.add_f32s(one, cell_power);
    let cell_dividend = simd.sub_f32s(one, cell_power);
    let output_divisor = simd.add_f32s(one, exponential(simd, sums[3], -1.0));
    let both = simd.div_f32s(one, mul(output_divisor, cell_divisor));
    Cell {
        input_gate: mul(mul(candidate_divisor, forget_divisor), shared),
        forget_gate: mul(input_candidate, shared),
        candidate: mul(mul(candidate_dividend, mul(input_divisor, forget_divisor)), shared),
        output_gate: mul(cell_divisor, both),
        cell,
        tanh_cell: mul(mul(cell_dividend, output_divisor), both),
        hidden: mul(cell_dividend, both),
    }
}
