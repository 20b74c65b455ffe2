//! From rows of input to rows of hidden state: one step, or a whole window of many sequences.
//!
//! A block of sequences goes through all its steps before the next begins, so that its state stays in the nearest cache.
//! What never enters: gradients.

#![expect(clippy::needless_range_loop, reason = "an iterator over an array of registers would put them into memory")]

use pulp::{Simd, WithSimd};

use super::activation;
use super::aligned::Aligned;
use super::dispatch;
use super::layer::{GATES, Layer};
use super::product::{columns, load, multiply, store};

/// What is kept of every row for the way back, in units of `padded_units`: i, f, g, o, cell, tanh(cell).
pub(crate) const KEPT: usize = 6;

/// Sequences that go through a step together: the weights of a panel are read once into the nearest cache for all of them, where their
/// states fit beside it.
const BLOCK: usize = 12;

/// Steps whose input is projected at once where there is one sequence.
const PROJECTED: usize = 6;

/// What a layer remembers of one sequence, between two steps.
#[derive(Debug, Clone)]
pub struct State {
    /// The hidden state, then room for the next one.
    hidden: Aligned,
    cell: Aligned,
    units: usize,
}

impl State {
    /// The state before the first step: zeros.
    #[must_use]
    pub fn new(layer: &Layer) -> Self {
        Self {
            hidden: Aligned::zeros(2 * layer.padded_units),
            cell: Aligned::zeros(layer.padded_units),
            units: layer.units,
        }
    }

    /// The hidden state after the last step: `units` numbers.
    #[must_use]
    pub fn hidden(&self) -> &[f32] {
        &self.hidden[..self.units]
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.hidden.fill(0.0);
        self.cell.fill(0.0);
    }
}

impl Layer {
    /// One step of one sequence; `input` has `features` numbers. Allocates nothing.
    ///
    /// # Panics
    /// If the input has another length, or the state is that of a layer of another width.
    pub fn step(&self, state: &mut State, input: &[f32]) {
        assert_eq!(input.len(), self.features, "a row of input has as many numbers as the layer has features");
        assert_eq!(state.units, self.units, "the state is that of a layer of the same width");
        dispatch::run(Step { layer: self, state, input });
    }

    /// Whole sequences from the zero state: `input` [batch, steps, features] → `output` [batch, steps, units].
    ///
    /// # Panics
    /// If a slice has another length.
    pub fn forward(&self, batch: usize, steps: usize, input: &[f32], output: &mut [f32]) {
        self.check(batch, steps, input, output);
        dispatch::run(Window { layer: self, batch, steps, input, output, kept: None });
    }

    /// The same, and `kept` becomes what [`Layer::backward`] needs.
    ///
    /// # Panics
    /// If a slice has another length.
    pub fn forward_keeping(&self, batch: usize, steps: usize, input: &[f32], output: &mut [f32], kept: &mut Vec<f32>) {
        self.check(batch, steps, input, output);
        kept.resize(batch * steps * KEPT * self.padded_units, 0.0);
        dispatch::run(Window { layer: self, batch, steps, input, output, kept: Some(kept) });
    }

    fn check(&self, batch: usize, steps: usize, input: &[f32], output: &[f32]) {
        assert_eq!(input.len(), batch * steps * self.features, "input is [batch, steps, features]");
        assert_eq!(output.len(), batch * steps * self.units, "output is [batch, steps, units]");
    }

    /// Where the sums of a panel begin: its biases.
    #[inline(always)]
    fn biases<S: Simd>(&self, panel: usize) -> [S::f32s; GATES] {
        *columns(S::as_simd_f32s(&self.bias).0, panel * GATES)
    }

    /// The packed input weights of a panel.
    #[inline(always)]
    fn input_panel(&self, panel: usize) -> &[f32] {
        let length = self.features * GATES * self.lanes;
        &self.input[panel * length..][..length]
    }

    /// The packed recurrent weights of a panel.
    #[inline(always)]
    fn recurrent_panel(&self, panel: usize) -> &[f32] {
        let length = self.units * GATES * self.lanes;
        &self.recurrent[panel * length..][..length]
    }
}

struct Step<'a> {
    layer: &'a Layer,
    state: &'a mut State,
    input: &'a [f32],
}

impl WithSimd for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Step { layer, state, input } = self;
        let (hidden, next) = state.hidden.split_at_mut(layer.padded_units);
        for panel in 0..layer.padded_units / S::F32_LANES {
            let sums = [layer.biases::<S>(panel)];
            let sums = multiply(simd, [input], layer.input_panel(panel), sums);
            let [sums] = multiply(simd, [&*hidden], layer.recurrent_panel(panel), sums);
            let first = panel * S::F32_LANES;
            let cell = activation::cell(simd, sums, load::<S>(&state.cell, first));
            store::<S>(&mut state.cell, first, cell.cell);
            store::<S>(next, first, cell.hidden);
        }
        hidden.copy_from_slice(next);
    }
}

struct Window<'a> {
    layer: &'a Layer,
    batch: usize,
    steps: usize,
    input: &'a [f32],
    output: &'a mut [f32],
    kept: Option<&'a mut Vec<f32>>,
}

impl WithSimd for Window<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut first = 0;
        while first < self.batch {
            let rows = self.batch - first;
            // As many sums as fit into the registers, with room for a row of weights.
            first += if S::REGISTER_COUNT >= 32 {
                match rows {
                    6.. => self.block::<S, 6>(simd, first, rows),
                    4.. => self.block::<S, 4>(simd, first, 4),
                    3 => self.block::<S, 3>(simd, first, 3),
                    2 => self.block::<S, 2>(simd, first, 2),
                    _ => self.sequence(simd, first),
                }
            } else {
                match rows {
                    3.. => self.block::<S, 3>(simd, first, rows),
                    2 => self.block::<S, 2>(simd, first, 2),
                    _ => self.sequence(simd, first),
                }
            };
        }
    }
}

impl Window<'_> {
    /// Some tiles of `ROWS` sequences, from `first` on and not more than `rows`, through all their steps. Answers how many sequences.
    #[inline(always)]
    fn block<S: Simd, const ROWS: usize>(&mut self, simd: S, first: usize, rows: usize) -> usize {
        let layer = self.layer;
        let (width, features) = (layer.padded_units, layer.features);
        let rows = rows.min(BLOCK) / ROWS * ROWS;
        let mut hidden = Aligned::zeros(2 * rows * width);
        let mut cells = Aligned::zeros(rows * width);
        for step in 0..self.steps {
            let (before, after) = halves(&mut hidden, step);
            for panel in 0..width / S::F32_LANES {
                let (input_panel, recurrent_panel) = (layer.input_panel(panel), layer.recurrent_panel(panel));
                for tile in (0..rows).step_by(ROWS) {
                    let at = |row: usize| (first + tile + row) * self.steps + step;
                    let inputs: [&[f32]; ROWS] =
                        std::array::from_fn(|row| &self.input[at(row) * features..][..features]);
                    let before: [&[f32]; ROWS] =
                        std::array::from_fn(|row| &before[(tile + row) * width..][..layer.units]);
                    let sums = [layer.biases::<S>(panel); ROWS];
                    let sums = multiply(simd, inputs, input_panel, sums);
                    let sums = multiply(simd, before, recurrent_panel, sums);
                    for row in 0..ROWS {
                        let at = (tile + row) * width + panel * S::F32_LANES;
                        let cell = activation::cell(simd, sums[row], load::<S>(&cells, at));
                        store::<S>(&mut cells, at, cell.cell);
                        store::<S>(after, at, cell.hidden);
                        self.keep(simd, (first + tile + row) * self.steps + step, panel, &cell);
                    }
                }
            }
            for row in 0..rows {
                self.output[((first + row) * self.steps + step) * layer.units..][..layer.units]
                    .copy_from_slice(&after[row * width..][..layer.units]);
            }
        }
        rows
    }

    /// One sequence through all its steps: the input of several steps is projected at once, so that its weights are read once for them.
    #[inline(always)]
    fn sequence<S: Simd>(&mut self, simd: S, first: usize) -> usize {
        let layer = self.layer;
        let (width, features) = (layer.padded_units, layer.features);
        let mut hidden = Aligned::zeros(2 * width);
        let mut cells = Aligned::zeros(width);
        let mut projected = Aligned::zeros(PROJECTED * GATES * width);
        for begin in (0..self.steps).step_by(PROJECTED) {
            let steps = PROJECTED.min(self.steps - begin);
            let row = |step: usize| &self.input[(first * self.steps + begin + step) * features..][..features];
            for panel in 0..width / S::F32_LANES {
                let (weights, bias) = (layer.input_panel(panel), layer.biases::<S>(panel));
                let mut keep = |step: usize, sums: [S::f32s; GATES]| {
                    let at = (step * width + panel * S::F32_LANES) * GATES;
                    S::as_mut_simd_f32s(&mut projected[at..at + GATES * S::F32_LANES]).0.copy_from_slice(&sums);
                };
                if steps == PROJECTED && S::REGISTER_COUNT >= 32 {
                    let sums = multiply(simd, std::array::from_fn::<_, PROJECTED, _>(row), weights, [bias; PROJECTED]);
                    for step in 0..PROJECTED {
                        keep(step, sums[step]);
                    }
                } else if steps == PROJECTED {
                    for half in [0, 3] {
                        let rows = std::array::from_fn::<_, 3, _>(|step| row(half + step));
                        let sums = multiply(simd, rows, weights, [bias; 3]);
                        for step in 0..3 {
                            keep(half + step, sums[step]);
                        }
                    }
                } else {
                    for step in 0..steps {
                        let [sums] = multiply(simd, [row(step)], weights, [bias]);
                        keep(step, sums);
                    }
                }
            }
            for step in 0..steps {
                let (before, after) = halves(&mut hidden, begin + step);
                let before = &before[..layer.units];
                for panel in 0..width / S::F32_LANES {
                    let at = (step * width + panel * S::F32_LANES) * GATES;
                    let sums = *columns(S::as_simd_f32s(&projected[at..]).0, 0);
                    let [sums] = multiply(simd, [before], layer.recurrent_panel(panel), [sums]);
                    let at = panel * S::F32_LANES;
                    let cell = activation::cell(simd, sums, load::<S>(&cells, at));
                    store::<S>(&mut cells, at, cell.cell);
                    store::<S>(after, at, cell.hidden);
                    self.keep(simd, first * self.steps + begin + step, panel, &cell);
                }
                self.output[(first * self.steps + begin + step) * layer.units..][..layer.units]
                    .copy_from_slice(&after[..layer.units]);
            }
        }
        1
    }

    /// Keeps what the way back needs, if there will be one.
    #[inline(always)]
    fn keep<S: Simd>(&mut self, _: S, row: usize, panel: usize, cell: &activation::Cell<S::f32s>) {
        let Some(kept) = &mut self.kept else { return };
        let width = self.layer.padded_units;
        let kept = &mut kept[row * KEPT * width..][..KEPT * width];
        let values = [cell.input_gate, cell.forget_gate, cell.candidate, cell.output_gate, cell.cell, cell.tanh_cell];
        for (kind, value) in values.into_iter().enumerate() {
            store::<S>(kept, kind * width + panel * S::F32_LANES, value);
        }
    }
}

/// The hidden states before and after a step, which take turns in two halves.
#[inline(always)]
fn halves(hidden: &mut [f32], step: usize) -> (&[f32], &mut [f32]) {
    let middle = hidden.len() / 2;
    let (even, odd) = hidden.split_at_mut(middle);
    if step.is_multiple_of(2) { (even, odd) } else { (odd, even) }
}
