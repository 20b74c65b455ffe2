//! From residuals to distances: how unusual a row is, given how features usually stray together.
//!
//! What lives here: running covariance, the shrunk whitening matrix and the half whitening, distances. What never enters: time, thresholds.
//! Source: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004, with a fixed share instead of
//! the estimated one.

use super::symmetric::square_root;

/// Share of the mean variance that is added to every variance before the covariance is inverted. Without it the directions in which
/// training never strayed would decide everything.
pub const RIDGE: f64 = 0.3;

/// The same for the half whitening, which has little need of it: it divides by the fourth root of a variance.
const HALF_RIDGE: f64 = 0.001;

/// Of the mean variance of the other numbers: the least of one that is known to stray.
const VARIANCE_MIN: f64 = 0.3;

/// Mean and covariance of rows, summed up in double precision.
#[derive(Debug, Clone)]
pub struct Covariance {
    size: usize,
    /// Which numbers are known to stray, whether or not they do in these rows.
    may_stray: Vec<bool>,
    rows: f64,
    sum: Vec<f64>,
    products: Vec<f64>,
}

impl Covariance {
    /// No rows of so many numbers yet, each of which is left out if it never strays.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self::expecting(vec![false; size])
    }

    /// No rows yet of as many numbers. One that may stray counts, and with a variance of [`VARIANCE_MIN`] at least, if it hardly or never
    /// does in these rows: a disk of which nothing was used up while the model learnt may fill all the same.
    #[must_use]
    pub fn expecting(may_stray: Vec<bool>) -> Self {
        let size = may_stray.len();
        Self { size, may_stray, rows: 0.0, sum: vec![0.0; size], products: vec![0.0; size * size] }
    }

    /// Adds a row of finite numbers.
    ///
    /// # Panics
    /// If the row has another size: that is a mistake of the caller.
    pub fn add(&mut self, row: &[f32]) {
        assert_eq!(row.len(), self.size, "a row of a covariance");
        self.rows += 1.0;
        for (index, &value) in row.iter().enumerate() {
            let value = f64::from(value);
            self.sum[index] += value;
            if value != 0.0 {
                let products = &mut self.products[index * self.size..][..=index];
                products.iter_mut().zip(row).for_each(|(product, &other)| *product += value * f64::from(other));
            }
        }
    }

    /// The whitening of these rows, shrunk by [`RIDGE`]. With no variance at all it leaves everything out.
    #[must_use]
    pub fn whitening(&self) -> Whitening {
        let (mean, varies, mut covariance) = self.varying();
        let ridge = RIDGE * mean_variance(&covariance, varies.len());
        (0..varies.len()).for_each(|index| covariance[index * varies.len() + index] += ridge);
        Whitening::of(&mean, &varies, &covariance)
    }

    /// Half way to the whitening: each direction divided by the root of what usually happens in it. Undivided, what is always large
    /// decides; whitened, what is always small.
    #[must_use]
    pub fn half_whitening(&self) -> Whitening {
        let (mean, varies, covariance) = self.varying();
        let ridge = HALF_RIDGE * mean_variance(&covariance, varies.len());
        Whitening::of(&mean, &varies, &square_root(&covariance, varies.len(), ridge))
    }

    /// The mean, which numbers count, and the covariance of these. One that neither strays nor may is left out; it would lower the mean
    /// variance of the others.
    fn varying(&self) -> (Vec<f64>, Vec<usize>, Vec<f64>) {
        let rows = self.rows.max(1.0);
        let mean: Vec<f64> = self.sum.iter().map(|sum| sum / rows).collect();
        let at = |row: usize, column: usize| {
            self.products[row.max(column) * self.size + row.min(column)] / rows - mean[row] * mean[column]
        };
        let strays = |index: usize| at(index, index) > 1e-10;
        let others = (0..self.size).filter(|&index| strays(index) && !self.may_stray[index]);
        let variances: Vec<f64> = others.map(|index| at(index, index)).collect();
        let least = VARIANCE_MIN * variances.iter().sum::<f64>() / variances.len().max(1) as f64;
        let counts = |index: usize| strays(index) || (self.may_stray[index] && least > 0.0);
        let counting: Vec<usize> = (0..self.size).filter(|&index| counts(index)).collect();
        let pairs = counting.iter().flat_map(|&row| counting.iter().map(move |&column| (row, column)));
        let covariance = pairs.map(|(row, column)| {
            let is_known = row == column && self.may_stray[row];
            if is_known { at(row, column).max(least) } else { at(row, column) }
        });
        let covariance = covariance.collect();
        (mean, counting, covariance)
    }
}

fn mean_variance(covariance: &[f64], size: usize) -> f64 {
    covariance.iter().step_by(size + 1).sum::<f64>() / size.max(1) as f64
}

/// The lower triangular matrix that makes rows uncorrelated, and their mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Whitening {
    size: usize,
    used: usize,
    mean: Vec<f32>,
    matrix: Vec<f32>,
}

impl Whitening {
    /// The inverse of the triangular factor (Cholesky) of the covariance of those numbers that stray, spread over all again.
    fn of(mean: &[f64], varies: &[usize], covariance: &[f64]) -> Self {
        let (all, size) = (mean.len(), varies.len());
        let mut factor = vec![0.0; size * size];
        for row in 0..size {
            for column in 0..=row {
                let known: f64 = (0..column).map(|k| factor[row * size + k] * factor[column * size + k]).sum();
                let rest = covariance[row * size + column] - known;
                factor[row * size + column] =
                    if row == column { rest.max(1e-12).sqrt() } else { rest / factor[column * size + column] };
            }
        }
        let mut matrix = vec![0.0_f32; all * all];
        for column in 0..size {
            let mut inverse = vec![0.0; size];
            for row in column..size {
                let known: f64 = (column..row).map(|k| factor[row * size + k] * inverse[k]).sum();
                inverse[row] = (f64::from(u8::from(row == column)) - known) / factor[row * size + row];
                matrix[varies[row] * all + varies[column]] = inverse[row] as f32;
            }
        }
        Self { size: all, used: size, mean: mean.iter().map(|&mean| mean as f32).collect(), matrix }
    }

    /// From a mean and a square matrix, row by row, whose upper triangle is not read. `None` if the sizes do not fit.
    #[must_use]
    pub fn from_parts(mean: &[f32], matrix: &[f32]) -> Option<Self> {
        let size = mean.len();
        (matrix.len() == size * size).then(|| {
            let used = (0..size).filter(|&index| matrix[index * size + index] != 0.0).count();
            Self { size, used, mean: mean.to_vec(), matrix: matrix.to_vec() }
        })
    }

    /// The mean and the matrix, row by row.
    #[must_use]
    pub fn parts(&self) -> (&[f32], &[f32]) {
        (&self.mean, &self.matrix)
    }

    /// Numbers in a row.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The root of the mean square of the whitened row (the Mahalanobis distance over √features): about 1 for a usual row.
    /// `centred` is overwritten; nothing is allocated if it is large enough.
    pub fn distance(&self, row: &[f32], centred: &mut Vec<f32>) -> f32 {
        centred.clear();
        centred.extend(row.iter().zip(&self.mean).map(|(value, mean)| value - mean));
        let mut sum = 0.0;
        for (index, matrix) in self.matrix.chunks_exact(self.size.max(1)).enumerate() {
            if matrix[index] != 0.0 {
                let whitened = dot(&matrix[..=index], centred);
                sum += whitened * whitened;
            }
        }
        (sum / self.used.max(1) as f32).sqrt()
    }
}

/// Sum of products, in eight sums so that it runs in vector registers.
pub(super) fn dot(left: &[f32], right: &[f32]) -> f32 {
    let (left_chunks, left_rest) = left.as_chunks::<8>();
    let (right_chunks, right_rest) = right[..left.len()].as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for (left, right) in left_chunks.iter().zip(right_chunks) {
        for lane in 0..8 {
            sums[lane] += left[lane] * right[lane];
        }
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum();
    sums.iter().sum::<f32>() + rest
}

/// The root of the mean square of the numbers that are not always zero.
#[must_use]
pub fn root_mean_square(row: &[f32], used: usize) -> f32 {
    (dot(row, row) / used.max(1) as f32).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two features that always move together, one alone, one that never moves.
    fn rows() -> impl Iterator<Item = [f32; 4]> {
        (0..400).map(|row| {
            let together = if row % 2 == 0 { 1.0 } else { -1.0 };
            let alone = if row / 2 % 2 == 0 { 1.0 } else { -1.0 };
            [together, together, alone, 0.0]
        })
    }

    fn whitening() -> Whitening {
        whitened(Covariance::new(4))
    }

    fn whitened(mut covariance: Covariance) -> Whitening {
        rows().for_each(|row| covariance.add(&row));
        covariance.whitening()
    }

    #[test]
    fn whitened_covariance_is_the_inverse_of_the_shrunk_one() {
        let whitening = whitening();
        let mut centred = Vec::new();
        // Against the inverse of [[1.3, 1], [1, 1.3]] by hand: (1.3·2 − 2) / (1.69 − 1) for (1, 1), and 1/1.3 for the feature alone.
        let together = whitening.distance(&[1.0, 1.0, 0.0, 0.0], &mut centred).powi(2) * 3.0;
        assert!((together - 0.6 / 0.69).abs() < 1e-4, "{together}");
        let alone = whitening.distance(&[0.0, 0.0, 1.0, 0.0], &mut centred).powi(2) * 3.0;
        assert!((alone - 1.0 / 1.3).abs() < 1e-4, "{alone}");
    }

    #[test]
    fn moving_apart_is_farther_than_moving_together() {
        let whitening = whitening();
        let mut centred = Vec::new();
        let together = whitening.distance(&[1.0, 1.0, 0.0, 0.0], &mut centred);
        let apart = whitening.distance(&[1.0, -1.0, 0.0, 0.0], &mut centred);
        assert!(apart > 2.0 * together, "{apart} {together}");
    }

    #[test]
    fn half_whitening_lies_between_the_size_and_the_whitened_distance() {
        // One number strays ten times as far as the other, apart from it.
        let mut covariance = Covariance::new(2);
        (0..400).for_each(|row| {
            let signs = [row % 2, row / 2 % 2].map(|sign| if sign == 0 { 1.0 } else { -1.0 });
            covariance.add(&[10.0 * signs[0], signs[1]]);
        });
        let mut centred = Vec::new();
        let half = covariance.half_whitening();
        // Divided by the root of ten and by one, and the root of the mean of two squares.
        let wide = half.distance(&[10.0, 0.0], &mut centred);
        assert!((wide - (10.0_f32 / 2.0).sqrt()).abs() < 0.01, "{wide}");
        let narrow = half.distance(&[0.0, 1.0], &mut centred);
        assert!((narrow - 0.5_f32.sqrt()).abs() < 0.02, "{narrow}");
    }

    #[test]
    fn what_never_moved_is_left_out() {
        let mut centred = Vec::new();
        assert_eq!(whitening().distance(&[0.0, 0.0, 0.0, 9.0], &mut centred), 0.0);
        let nothing = Covariance::new(3).whitening();
        assert_eq!(nothing.distance(&[1.0, 2.0, 3.0], &mut centred), 0.0);
    }

    #[test]
    fn what_hardly_moved_but_may_counts_like_what_moved_little() {
        let mut centred = Vec::new();
        let mut distance = |whitening: &Whitening, row: [f32; 4]| whitening.distance(&row, &mut centred);
        let last_may = || Covariance::expecting(vec![false, false, false, true]);
        let whole = whitened(last_may());
        // Four numbers now; the variances of the others are 1, and so the mean with the least of the last one is 3.3 / 4.
        let still = distance(&whole, [0.0, 0.0, 0.0, 3.0]);
        assert!((still - (9.0_f32 / (0.3 + 0.3 * 3.3 / 4.0) / 4.0).sqrt()).abs() < 1e-4, "{still}");
        let half = |size: f32| {
            let mut covariance = last_may();
            rows().enumerate().for_each(|(row, others)| {
                let last = if row / 4 % 2 == 0 { size } else { -size };
                covariance.add(&[others[0], others[1], others[2], last]);
            });
            covariance.half_whitening()
        };
        let (still, hardly) = (distance(&half(0.0), [0.0, 0.0, 0.0, 3.0]), distance(&half(1e-4), [0.0, 0.0, 0.0, 3.0]));
        assert!((still - hardly).abs() < 1e-3, "no cliff: {still} {hardly}");
        let nothing = Covariance::expecting(vec![true; 4]).whitening();
        assert_eq!(distance(&nothing, [1.0; 4]), 0.0, "of nothing nothing is known");
    }

    #[test]
    fn it_survives_its_parts() {
        let whitening = whitening();
        let (mean, matrix) = whitening.parts();
        assert_eq!(Whitening::from_parts(mean, matrix), Some(whitening.clone()));
        assert_eq!(Whitening::from_parts(&mean[1..], matrix), None);
    }
}
