//! The square root of a symmetric matrix, by its eigenvectors.
//!
//! What lives here: cyclic Jacobi rotations (Golub and Van Loan, "Matrix Computations", section 8.5), which are slow for thousands of
//! columns and exact for tens. What never enters: what the matrix means, and what is no number.

/// Rotations end when what is left beside the diagonal is this share of the diagonal.
const OFF_DIAGONAL_MAX: f64 = 1e-12;
/// Passes over all pairs; five to ten are enough for any matrix.
const SWEEPS_MAX: usize = 30;

/// The symmetric square root of `matrix` (row by row, `size` columns) plus `ridge` on its diagonal: eigenvalues that are negative by
/// rounding count as zero.
///
/// # Panics
/// If the matrix has another size: a mistake of the caller.
#[must_use]
pub fn square_root(matrix: &[f64], size: usize, ridge: f64) -> Vec<f64> {
    assert_eq!(matrix.len(), size * size, "a square matrix");
    let mut values = matrix.to_vec();
    // Row `k` becomes eigenvector `k`.
    let mut vectors = vec![0.0; size * size];
    (0..size).for_each(|index| vectors[index * size + index] = 1.0);
    for _ in 0..SWEEPS_MAX {
        let diagonal: f64 = (0..size).map(|index| values[index * size + index].powi(2)).sum();
        let off: f64 = values.iter().map(|value| value * value).sum::<f64>() - diagonal;
        if off <= OFF_DIAGONAL_MAX * OFF_DIAGONAL_MAX * diagonal {
            break;
        }
        for first in 0..size {
            for second in first + 1..size {
                rotate(&mut values, &mut vectors, size, (first, second));
            }
        }
    }
    let roots: Vec<f64> = (0..size).map(|index| (values[index * size + index].max(0.0) + ridge).sqrt()).collect();
    let mut root = vec![0.0; size * size];
    for (vector, scale) in vectors.chunks_exact(size.max(1)).zip(&roots) {
        for (row, left) in root.chunks_exact_mut(size).zip(vector) {
            row.iter_mut().zip(vector).for_each(|(sum, right)| *sum += scale * left * right);
        }
    }
    root
}

/// Turns two axes so that nothing is left between them.
fn rotate(values: &mut [f64], vectors: &mut [f64], size: usize, (first, second): (usize, usize)) {
    let between = values[first * size + second];
    if between == 0.0 {
        return;
    }
    let half = (values[second * size + second] - values[first * size + first]) / (2.0 * between);
    let tangent = half.signum() / (half.abs() + half.hypot(1.0));
    let cosine = 1.0 / tangent.hypot(1.0);
    let sine = tangent * cosine;
    let turn = |left: usize, right: usize, of: &mut [f64]| {
        let (low, high) = (of[left], of[right]);
        of[left] = cosine * low - sine * high;
        of[right] = sine * low + cosine * high;
    };
    for index in 0..size {
        turn(index * size + first, index * size + second, values);
    }
    for index in 0..size {
        turn(first * size + index, second * size + index, values);
        turn(first * size + index, second * size + index, vectors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_times_itself_is_the_matrix() {
        // Symmetric and positive: a product with its own transpose, of numbers without a pattern.
        let size = 7;
        let factor: Vec<f64> = (0..size * size).map(|index| ((index * index + 3) as f64 * 0.37).sin()).collect();
        let times = |left: &[f64], right: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
            (0..size * size)
                .map(|at| (0..size).map(|k| left[at / size * size + k] * right(k, at % size)).sum())
                .collect()
        };
        let matrix = times(&factor, &|k, column| factor[column * size + k]);
        let root = square_root(&matrix, size, 0.0);
        let squared = times(&root, &|k, column| root[k * size + column]);
        for (index, (found, expected)) in squared.iter().zip(&matrix).enumerate() {
            assert!((found - expected).abs() < 1e-9, "{index}: {found} {expected}");
        }
        let (row, column) = (2, 5);
        assert!((root[row * size + column] - root[column * size + row]).abs() < 1e-12, "symmetric");
    }

    #[test]
    fn a_diagonal_is_its_own_eigenvalues_and_the_ridge_counts_once() {
        let root = square_root(&[4.0, 0.0, 0.0, 0.0], 2, 5.0);
        assert_eq!(root, [3.0, 0.0, 0.0, 5.0_f64.sqrt()]);
    }

    #[test]
    fn equal_variances_are_turned_by_half_a_right_angle() {
        // Eigenvalues 2 and 0 along (1, 1) and (1, −1).
        let root = square_root(&[1.0, 1.0, 1.0, 1.0], 2, 0.0);
        for value in root {
            assert!((value - 0.5_f64.sqrt()).abs() < 1e-12, "{value}");
        }
    }

    #[test]
    fn nothing_has_a_root_of_nothing() {
        assert!(square_root(&[], 0, 1.0).is_empty());
    }
}
