//! The products of matrices, a tile of registers at a time.
//!
//! What never enters: gates, and where the numbers come from.

#![expect(
    clippy::needless_range_loop,
    reason = "slices of one known length need no checks; arrays of registers stay registers"
)]

use pulp::Simd;

/// `start[row][column] + Σ_k left[row][k] · right[k][column]`; `right` holds `WIDTH` registers for each k.
#[inline(always)]
pub(crate) fn multiply<S: Simd, const ROWS: usize, const WIDTH: usize>(
    simd: S,
    left: [&[f32]; ROWS],
    right: &[f32],
    start: [[S::f32s; WIDTH]; ROWS],
) -> [[S::f32s; WIDTH]; ROWS] {
    let (right, _) = S::as_simd_f32s(right).0.as_chunks::<WIDTH>();
    // Rows of one known length need no check of their bounds in the loop.
    let depth = right.len();
    let left = left.map(|row| &row[..depth]);
    let mut sums = start;
    for k in 0..depth {
        let mut factors = [0.0; ROWS];
        for row in 0..ROWS {
            factors[row] = left[row][k];
        }
        add(simd, &factors, &right[k], &mut sums);
    }
    sums
}

/// `start[row][column] + Σ_k left[k][first + row] · right[k][column]`: products of columns, summed over the rows of both matrices.
/// `left` has `left_width` numbers a row; `right` has `right_width` registers a row, of which `WIDTH` from `right_first` on are used.
#[inline(always)]
pub(crate) fn multiply_transposed<S: Simd, const ROWS: usize, const WIDTH: usize>(
    simd: S,
    (left, left_width, left_first): (&[f32], usize, usize),
    (right, right_width, right_first): (&[S::f32s], usize, usize),
    start: [[S::f32s; WIDTH]; ROWS],
) -> [[S::f32s; WIDTH]; ROWS] {
    let mut sums = start;
    for (left, right) in left[left_first..].chunks(left_width).zip(right[right_first..].chunks(right_width)) {
        let (Some(factors), Some(columns)) = (left.first_chunk::<ROWS>(), right.first_chunk::<WIDTH>()) else { break };
        add(simd, factors, columns, &mut sums);
    }
    sums
}

/// Adds `factors[row] · columns[column]` to each sum, in the order that needs the fewest registers beside the sums: with one too many, a
/// sum goes through memory each time, and takes twice as long.
#[inline(always)]
fn add<S: Simd, const ROWS: usize, const WIDTH: usize>(
    simd: S,
    factors: &[f32; ROWS],
    columns: &[S::f32s; WIDTH],
    sums: &mut [[S::f32s; WIDTH]; ROWS],
) {
    if ROWS < WIDTH {
        let factors = factors.map(|factor| simd.splat_f32s(factor));
        for column in 0..WIDTH {
            let value = columns[column];
            for row in 0..ROWS {
                sums[row][column] = simd.mul_add_f32s(value, factors[row], sums[row][column]);
            }
        }
    } else {
        for row in 0..ROWS {
            let factor = simd.splat_f32s(factors[row]);
            for column in 0..WIDTH {
                sums[row][column] = simd.mul_add_f32s(columns[column], factor, sums[row][column]);
            }
        }
    }
}

/// `COUNT` values from `first` on.
#[inline(always)]
pub(crate) fn columns<T, const COUNT: usize>(values: &[T], first: usize) -> &[T; COUNT] {
    values[first..].first_chunk().expect("so many values from there on")
}

/// Loads the register at `first`.
#[inline(always)]
pub(crate) fn load<S: Simd>(values: &[f32], first: usize) -> S::f32s {
    S::as_simd_f32s(&values[first..first + S::F32_LANES]).0[0]
}

/// Stores a register at `first`.
#[inline(always)]
pub(crate) fn store<S: Simd>(values: &mut [f32], first: usize, register: S::f32s) {
    S::as_mut_simd_f32s(&mut values[first..first + S::F32_LANES]).0[0] = register;
}
