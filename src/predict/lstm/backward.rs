//! Back through time: from gradients of the hidden states to gradients of weights and input.
//!
//! A tile of sequences goes back through all its steps, then its part of the weights' gradients is one product over all its rows.
//! What never enters: an optimiser.
//!
//! Formulas: with `dh` and `dc` what arrives from above and from the step after, `do = dh tanh(c)`, `dc += dh o (1 - tanh²(c))`,
//! `di = dc g`, `df = dc c_before`, `dg = dc i`; through a gate `dz = dσ σ (1 - σ)` or `dz = dg (1 - g²)`; then
//! `dh_before = Uᵀ dz`, `dc_before = dc f`, `dx = Wᵀ dz`, `dW = Σ dz xᵀ`, `dU = Σ dz h_beforeᵀ`, `db = Σ dz`.

#![expect(clippy::needless_range_loop, reason = "an iterator over an array of registers would put them into memory")]

use pulp::{Simd, WithSimd};

use super::aligned::Aligned;
use super::dispatch;
use super::forward::KEPT;
use super::layer::{GATES, Layer, padded};
use super::product::{load, multiply, multiply_transposed, store};

/// Gradients of a layer's weights, in PyTorch's shapes. Both biases have the same.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gradients {
    /// [4 · units, features]
    pub weight_ih: Vec<f32>,
    /// [4 · units, units]
    pub weight_hh: Vec<f32>,
    /// [4 · units]
    pub bias: Vec<f32>,
}

/// Memory of the way back that is used again.
#[derive(Debug, Default)]
pub struct BackwardScratch {
    /// Gradients of the sums of the gates: `[row of the tile][gate][unit]`.
    sums: Aligned,
    /// What the weights were multiplied by: `[row of the tile][input, 1, padding | hidden before]`.
    factors: Aligned,
    /// Sums of products of the two: `[gate][unit][factor]`.
    products: Aligned,
    /// Gradients of hidden and cell state that the step before gets: `[sequence of the tile][unit]`.
    hidden: Aligned,
    cell: Aligned,
    /// `Uᵀ`, packed: `[group of panels][gate][unit][unit before]`.
    recurrent: Aligned,
    /// `Wᵀ`, packed: `[group of panels][gate][unit][feature]`.
    input: Aligned,
    /// One row of the input's gradient, padded.
    row: Aligned,
}

/// Rows that one product makes at most: with [`group_width`] columns as many sums as fit into the registers.
const TILE: usize = 6;

/// Rows whose part of the weights' gradients is added at once, so that they stay in the nearest cache.
const ROWS_AT_ONCE: usize = 16;

/// Registers of columns that one product makes at most, with registers of so many lanes: AVX-512 has twice as many registers.
fn group_width(lanes: usize) -> usize {
    if lanes >= 16 { 4 } else { 2 }
}

impl Layer {
    /// The way back of [`Layer::forward_keeping`], from the gradient of its output.
    ///
    /// `gradients` is overwritten; `input_gradient`, where wanted, too: [batch, steps, features].
    ///
    /// # Panics
    /// If a slice has another length than in that call.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        (batch, steps): (usize, usize),
        input: &[f32],
        output: &[f32],
        kept: &[f32],
        output_gradient: &[f32],
        gradients: &mut Gradients,
        input_gradient: Option<&mut [f32]>,
        scratch: &mut BackwardScratch,
    ) {
        assert_eq!(input.len(), batch * steps * self.features, "input is [batch, steps, features]");
        assert_eq!(output.len(), batch * steps * self.units, "output is [batch, steps, units]");
        assert_eq!(output_gradient.len(), output.len(), "the gradient of the output has its shape");
        assert_eq!(kept.len(), batch * steps * KEPT * self.padded_units, "kept is that of the same window");
        if let Some(gradient) = &input_gradient {
            assert_eq!(gradient.len(), input.len(), "the gradient of the input has its shape");
        }
        let input_width = padded(self.features + 1, self.lanes);
        let width = input_width + self.padded_units;
        let sums_width = GATES * self.padded_units;
        scratch.products.grow(sums_width * width);
        scratch.products.fill(0.0);
        self.pack_transposed(scratch, input_gradient.is_some());
        dispatch::run(Back {
            layer: self,
            batch,
            steps,
            input,
            output,
            kept,
            output_gradient,
            input_gradient,
            input_width,
            scratch,
        });

        gradients.weight_ih.resize(GATES * self.units * self.features, 0.0);
        gradients.weight_hh.resize(GATES * self.units * self.units, 0.0);
        gradients.bias.resize(GATES * self.units, 0.0);
        for gate in 0..GATES {
            for unit in 0..self.units {
                let sums = &scratch.products[(gate * self.padded_units + unit) * width..][..width];
                let row = gate * self.units + unit;
                gradients.weight_ih[row * self.features..][..self.features].copy_from_slice(&sums[..self.features]);
                gradients.bias[row] = sums[self.features];
                gradients.weight_hh[row * self.units..][..self.units]
                    .copy_from_slice(&sums[input_width..input_width + self.units]);
            }
        }
    }

    /// Packs the transposed weights, from the packed ones.
    fn pack_transposed(&self, scratch: &mut BackwardScratch, with_input: bool) {
        let depth = GATES * self.padded_units;
        let pack = |packed: &mut Aligned, weights: &[f32], columns: usize| {
            let panels = columns.div_ceil(self.lanes);
            packed.grow(depth * panels * self.lanes);
            packed.fill(0.0);
            for gate in 0..GATES {
                for unit in 0..self.units {
                    let (panel, lane) = (unit / self.lanes, unit % self.lanes);
                    for column in 0..columns {
                        let weight = weights[((panel * columns + column) * GATES + gate) * self.lanes + lane];
                        packed[transposed_at(gate * self.padded_units + unit, column, depth, panels, self.lanes)] =
                            weight;
                    }
                }
            }
        };
        pack(&mut scratch.recurrent, &self.recurrent, self.units);
        if with_input {
            pack(&mut scratch.input, &self.input, self.features);
        }
    }
}

/// Where a transposed weight is: groups of at most [`group_width`] panels, in each all rows.
fn transposed_at(row: usize, column: usize, depth: usize, panels: usize, lanes: usize) -> usize {
    let (panel, lane) = (column / lanes, column % lanes);
    let most = group_width(lanes);
    let group = panel / most;
    let width = most.min(panels - group * most);
    group * most * depth * lanes + (row * width + panel % most) * lanes + lane
}

struct Back<'a> {
    layer: &'a Layer,
    batch: usize,
    steps: usize,
    input: &'a [f32],
    output: &'a [f32],
    kept: &'a [f32],
    output_gradient: &'a [f32],
    input_gradient: Option<&'a mut [f32]>,
    input_width: usize,
    scratch: &'a mut BackwardScratch,
}

impl WithSimd for Back<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut first = 0;
        while first < self.batch {
            let rows = self.batch - first;
            first += match rows {
                TILE.. => self.tile::<S, TILE>(simd, first),
                4.. => self.tile::<S, 4>(simd, first),
                3 => self.tile::<S, 3>(simd, first),
                2 => self.tile::<S, 2>(simd, first),
                _ => self.tile::<S, 1>(simd, first),
            };
        }
    }
}

impl Back<'_> {
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize>(&mut self, simd: S, first: usize) -> usize {
        let width = self.layer.padded_units;
        let sums_width = GATES * width;
        self.scratch.sums.grow(ROWS * self.steps * sums_width);
        self.scratch.hidden.grow(ROWS * width);
        self.scratch.hidden.fill(0.0);
        self.scratch.cell.grow(ROWS * width);
        self.scratch.cell.fill(0.0);
        for step in (0..self.steps).rev() {
            for row in 0..ROWS {
                self.gates(simd, first, row, step);
            }
            if step > 0 {
                let BackwardScratch { sums, hidden, recurrent, .. } = &mut *self.scratch;
                let left: [&[f32]; ROWS] =
                    std::array::from_fn(|row| &sums[(row * self.steps + step) * sums_width..][..sums_width]);
                for_groups(simd, left, recurrent, width / S::F32_LANES, |row, column, sum| {
                    store::<S>(hidden, row * width + column, sum);
                });
            }
        }
        self.input_gradients::<S, ROWS>(simd, first);
        self.weight_gradients(simd, first, ROWS);
        ROWS
    }

    /// Gradients of the four sums of one row, and of the cell state before.
    #[inline(always)]
    fn gates<S: Simd>(&mut self, simd: S, first: usize, row: usize, step: usize) {
        let (width, units) = (self.layer.padded_units, self.layer.units);
        let at = (first + row) * self.steps + step;
        let kept = &self.kept[at * KEPT * width..][..KEPT * width];
        let before = (step > 0).then(|| &self.kept[((at - 1) * KEPT + 4) * width..][..width]);
        let BackwardScratch { sums, hidden, cell, .. } = &mut *self.scratch;
        let sums = &mut sums[(row * self.steps + step) * GATES * width..][..GATES * width];
        let hidden = &mut hidden[row * width..][..width];
        let cell = &mut cell[row * width..][..width];
        // What arrives from above joins what comes from the step after; units that were added for padding get nothing.
        for (hidden, above) in hidden.iter_mut().zip(&self.output_gradient[at * units..][..units]) {
            *hidden += above;
        }
        let one = simd.splat_f32s(1.0);
        let mul = |a, b| simd.mul_f32s(a, b);
        let of_logistic = |gradient, value| mul(mul(gradient, value), simd.sub_f32s(one, value));
        let of_tanh = |gradient, value| mul(gradient, simd.negate_mul_add_f32s(value, value, one));
        for unit in (0..width).step_by(S::F32_LANES) {
            let value = |kind: usize| load::<S>(kept, kind * width + unit);
            let (input, forget, candidate, output, tanh_cell) = (value(0), value(1), value(2), value(3), value(5));
            let before = before.map_or(simd.splat_f32s(0.0), |before| load::<S>(before, unit));
            let from_hidden = load::<S>(hidden, unit);
            let from_cell = simd.add_f32s(load::<S>(cell, unit), of_tanh(mul(from_hidden, output), tanh_cell));
            store::<S>(sums, unit, of_logistic(mul(from_cell, candidate), input));
            store::<S>(sums, width + unit, of_logistic(mul(from_cell, before), forget));
            store::<S>(sums, 2 * width + unit, of_tanh(mul(from_cell, input), candidate));
            store::<S>(sums, 3 * width + unit, of_logistic(mul(from_hidden, tanh_cell), output));
            store::<S>(cell, unit, mul(from_cell, forget));
        }
    }

    /// Gradients of the tile's input, where they are wanted.
    #[inline(always)]
    fn input_gradients<S: Simd, const ROWS: usize>(&mut self, simd: S, first: usize) {
        let Some(gradient) = &mut self.input_gradient else { return };
        let features = self.layer.features;
        let sums_width = GATES * self.layer.padded_units;
        let panels = features.div_ceil(S::F32_LANES);
        let BackwardScratch { sums, input, row: padded, .. } = &mut *self.scratch;
        padded.grow(ROWS * panels * S::F32_LANES);
        for step in 0..self.steps {
            let left: [&[f32]; ROWS] =
                std::array::from_fn(|row| &sums[(row * self.steps + step) * sums_width..][..sums_width]);
            for_groups(simd, left, input, panels, |row, column, sum| {
                store::<S>(padded, row * panels * S::F32_LANES + column, sum);
            });
            for row in 0..ROWS {
                gradient[((first + row) * self.steps + step) * features..][..features]
                    .copy_from_slice(&padded[row * panels * S::F32_LANES..][..features]);
            }
        }
    }

    /// Adds the tile's part to the gradients of the weights.
    #[inline(always)]
    fn weight_gradients<S: Simd>(&mut self, simd: S, first: usize, rows: usize) {
        let Layer { features, units, padded_units, .. } = *self.layer;
        let width = self.input_width + padded_units;
        let sums_width = GATES * padded_units;
        let count = rows * self.steps;
        self.scratch.factors.grow(count * width);
        let BackwardScratch { sums, factors, products, .. } = &mut *self.scratch;
        for row in 0..count {
            let at = first * self.steps + row;
            let factors = &mut factors[row * width..][..width];
            factors.fill(0.0);
            factors[..features].copy_from_slice(&self.input[at * features..][..features]);
            factors[features] = 1.0;
            if row % self.steps > 0 {
                factors[self.input_width..][..units].copy_from_slice(&self.output[(at - 1) * units..][..units]);
            }
        }
        let panels = width / S::F32_LANES;
        for row in (0..count).step_by(ROWS_AT_ONCE) {
            let rows = ROWS_AT_ONCE.min(count - row);
            let sums = &sums[row * sums_width..][..rows * sums_width];
            let factors = S::as_simd_f32s(&factors[row * width..][..rows * width]).0;
            let mut sum = 0;
            while sum < sums_width {
                let left = (sums, sums_width, sum);
                sum += match sums_width - sum {
                    TILE.. => add_products::<S, TILE>(simd, left, factors, panels, products),
                    4.. => add_products::<S, 4>(simd, left, factors, panels, products),
                    _ => add_products::<S, 1>(simd, left, factors, panels, products),
                };
            }
        }
    }
}

/// Products of rows with a packed matrix of `panels` registers a row, handed to `take` with row and column.
#[inline(always)]
fn for_groups<S: Simd, const ROWS: usize>(
    simd: S,
    left: [&[f32]; ROWS],
    right: &[f32],
    panels: usize,
    mut take: impl FnMut(usize, usize, S::f32s),
) {
    let depth = left[0].len();
    let mut panel = 0;
    while panel < panels {
        let at = panel * depth * S::F32_LANES;
        let column = panel * S::F32_LANES;
        panel += match (panels - panel).min(group_width(S::F32_LANES)) {
            4 => group::<S, ROWS, 4>(simd, left, &right[at..], column, &mut take),
            3 => group::<S, ROWS, 3>(simd, left, &right[at..], column, &mut take),
            2 => group::<S, ROWS, 2>(simd, left, &right[at..], column, &mut take),
            _ => group::<S, ROWS, 1>(simd, left, &right[at..], column, &mut take),
        };
    }
}

#[inline(always)]
fn group<S: Simd, const ROWS: usize, const WIDTH: usize>(
    simd: S,
    left: [&[f32]; ROWS],
    right: &[f32],
    first: usize,
    take: &mut impl FnMut(usize, usize, S::f32s),
) -> usize {
    let right = &right[..left[0].len() * WIDTH * S::F32_LANES];
    let sums = multiply(simd, left, right, [[simd.splat_f32s(0.0); WIDTH]; ROWS]);
    for row in 0..ROWS {
        for column in 0..WIDTH {
            take(row, first + column * S::F32_LANES, sums[row][column]);
        }
    }
    WIDTH
}

/// Adds the products of `ROWS` columns of `left` with all columns of `right`.
#[inline(always)]
fn add_products<S: Simd, const ROWS: usize>(
    simd: S,
    left: (&[f32], usize, usize),
    right: &[S::f32s],
    panels: usize,
    products: &mut [f32],
) -> usize {
    let mut panel = 0;
    while panel < panels {
        panel += match (panels - panel).min(group_width(S::F32_LANES)) {
            4 => add_group::<S, ROWS, 4>(simd, left, (right, panels, panel), products),
            3 => add_group::<S, ROWS, 3>(simd, left, (right, panels, panel), products),
            2 => add_group::<S, ROWS, 2>(simd, left, (right, panels, panel), products),
            _ => add_group::<S, ROWS, 1>(simd, left, (right, panels, panel), products),
        };
    }
    ROWS
}

#[inline(always)]
fn add_group<S: Simd, const ROWS: usize, const WIDTH: usize>(
    simd: S,
    left: (&[f32], usize, usize),
    (right, panels, panel): (&[S::f32s], usize, usize),
    products: &mut [f32],
) -> usize {
    let at = |row: usize, column: usize| ((left.2 + row) * panels + panel + column) * S::F32_LANES;
    let mut start = [[simd.splat_f32s(0.0); WIDTH]; ROWS];
    for row in 0..ROWS {
        for column in 0..WIDTH {
            start[row][column] = load::<S>(products, at(row, column));
        }
    }
    let sums = multiply_transposed::<S, ROWS, WIDTH>(simd, left, (right, panels, panel), start);
    for row in 0..ROWS {
        for column in 0..WIDTH {
            store::<S>(products, at(row, column), sums[row][column]);
        }
    }
    WIDTH
}
