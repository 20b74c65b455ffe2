//! The LSTM: named weights, a streaming step, whole windows, and gradients by hand.
//!
//! What lives here: shapes and names (this file), and the arithmetic of one layer: plain slices of numbers in, plain slices out; products in
//! tiles of registers, with the gates applied while they are still in registers; the instruction set is chosen when the program runs, so
//! one binary runs on every x86-64. [`operator`] makes it an operation of candle, for training with its losses and optimisers.
//! What never enters: features, scaling, losses, randomness (its numbers are passed in), and `unsafe`.
//!
//! Formulas (gates in PyTorch's order i, f, g, o; `σ` the logistic function; Hochreiter & Schmidhuber 1997, with forget gates):
//! `i, f, o = σ(W x + U h + b)`, `g = tanh(W x + U h + b)`, `c' = f c + i g`, `h' = o tanh(c')`.

mod activation;
mod aligned;
mod backward;
mod dispatch;
mod forward;
mod layer;
pub mod operator;
mod product;
#[cfg(test)]
mod tests;

use backward::{BackwardScratch, Gradients};
pub use dispatch::instruction_set;
use forward::State;
use layer::{GATES, Layer};

use super::weights::{self, NamedTensor, Tensors, WeightsError};

/// Sizes of an LSTM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LstmShape {
    /// Numbers in a row of input.
    pub features: usize,
    /// Units of each layer: numbers in a row of output.
    pub units: usize,
    /// Layers, each fed by the one before.
    pub layers: usize,
}

impl LstmShape {
    /// Features of a layer's input.
    #[must_use]
    pub fn layer_features(&self, layer: usize) -> usize {
        if layer == 0 { self.features } else { self.units }
    }

    /// Names and shapes of a layer's tensors, as `torch.nn.LSTM` has them, in the order of [`LayerWeights`].
    #[must_use]
    pub fn tensors(&self, layer: usize) -> [(String, Vec<usize>); 4] {
        let rows = GATES * self.units;
        [
            (format!("weight_ih_l{layer}"), vec![rows, self.layer_features(layer)]),
            (format!("weight_hh_l{layer}"), vec![rows, self.units]),
            (format!("bias_ih_l{layer}"), vec![rows]),
            (format!("bias_hh_l{layer}"), vec![rows]),
        ]
    }
}

/// Why an LSTM cannot be made or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LstmError {
    /// No features, no units or no layers.
    #[error("an LSTM of {features} features, {units} units and {layers} layers: each must be at least 1", features = .0.features, units = .0.units, layers = .0.layers)]
    Empty(LstmShape),
    /// A tensor that does not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Numbers that do not fill a shape.
    #[error("{what} has {found} numbers, expected {expected}")]
    Length {
        /// What was passed.
        what: &'static str,
        /// How many numbers it has.
        found: usize,
        /// How many it must have.
        expected: usize,
    },
    /// A state of another LSTM.
    #[error("the state belongs to an LSTM of another shape: make it with LstmState::new for this one")]
    State,
    /// A tape that was not filled by the same forward call.
    #[error("the tape holds another window: call forward_training with this one first")]
    Tape,
}

/// Weights of one layer in PyTorch's shapes, row by row.
#[derive(Debug, Clone, PartialEq)]
struct LayerWeights {
    tensors: [Vec<f32>; 4],
}

/// An LSTM whose weights do not change; safe to share between threads.
#[derive(Debug, Clone)]
pub struct Lstm {
    shape: LstmShape,
    weights: Vec<LayerWeights>,
    layers: Vec<Layer>,
}

/// What an [`Lstm`] remembers of one sequence between steps.
#[derive(Debug, Clone)]
pub struct LstmState {
    shape: LstmShape,
    layers: Vec<State>,
}

impl LstmState {
    /// The state before the first step: zeros.
    #[must_use]
    pub fn new(lstm: &Lstm) -> Self {
        Self { shape: lstm.shape, layers: lstm.layers.iter().map(State::new).collect() }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.layers.iter_mut().for_each(State::reset);
    }

    /// The last layer's hidden state: `units` numbers, zeros before the first step.
    #[must_use]
    pub fn hidden(&self) -> &[f32] {
        self.layers.last().map_or(&[], State::hidden)
    }
}

/// Memory of training: what the way back needs, used again from step to step.
#[derive(Debug, Default)]
pub struct Tape {
    window: Option<(LstmShape, usize, usize)>,
    layers: Vec<LayerTape>,
    gradient: Vec<f32>,
    gradient_below: Vec<f32>,
    scratch: BackwardScratch,
}

#[derive(Debug, Default)]
struct LayerTape {
    output: Vec<f32>,
    kept: Vec<f32>,
}

/// Gradients of an [`Lstm`], a layer each; [`LstmGradients::tensors`] names them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LstmGradients {
    layers: Vec<Gradients>,
}

impl LstmGradients {
    /// Names and gradients of all weights.
    pub fn tensors(&self) -> impl Iterator<Item = (String, &[f32])> {
        self.layers.iter().enumerate().flat_map(|(layer, gradients)| {
            [
                (format!("weight_ih_l{layer}"), gradients.weight_ih.as_slice()),
                (format!("weight_hh_l{layer}"), gradients.weight_hh.as_slice()),
                (format!("bias_ih_l{layer}"), gradients.bias.as_slice()),
                (format!("bias_hh_l{layer}"), gradients.bias.as_slice()),
            ]
        })
    }
}

impl Lstm {
    /// An LSTM with the weights of `tensors`, named `PREFIXweight_ih_l0` and so on; other tensors are left alone.
    ///
    /// # Errors
    /// [`LstmError::Empty`], or [`LstmError::Weights`] naming the first tensor that is missing, has another shape or holds what is no number.
    pub fn from_tensors(shape: LstmShape, tensors: &Tensors, prefix: &str) -> Result<Self, LstmError> {
        Self::build(shape, |name, shape| Ok(weights::take(tensors, &format!("{prefix}{name}"), shape)?.to_vec()))
    }

    /// An LSTM with random weights, as PyTorch begins: uniform in ±1/√units. `random` gives numbers in [0, 1), in the order of
    /// [`LstmShape::tensors`], layer by layer.
    ///
    /// # Errors
    /// [`LstmError::Empty`].
    pub fn from_random(shape: LstmShape, mut random: impl FnMut() -> f32) -> Result<Self, LstmError> {
        let bound = 1.0 / (shape.units as f32).sqrt();
        Self::build(shape, |_, shape| {
            Ok((0..shape.iter().product::<usize>()).map(|_| (2.0 * random() - 1.0) * bound).collect())
        })
    }

    fn build(
        shape: LstmShape,
        mut values: impl FnMut(&str, &[usize]) -> Result<Vec<f32>, LstmError>,
    ) -> Result<Self, LstmError> {
        if shape.features == 0 || shape.units == 0 || shape.layers == 0 {
            return Err(LstmError::Empty(shape));
        }
        let mut lstm = Self { shape, weights: Vec::new(), layers: Vec::new() };
        for layer in 0..shape.layers {
            let mut tensors: [Vec<f32>; 4] = Default::default();
            for (slot, (name, tensor_shape)) in tensors.iter_mut().zip(shape.tensors(layer)) {
                *slot = values(&name, &tensor_shape)?;
            }
            let [weight_ih, weight_hh, bias_ih, bias_hh] = &tensors;
            let features = shape.layer_features(layer);
            lstm.layers.push(Layer::new(features, shape.units, weight_ih, weight_hh, bias_ih, bias_hh));
            lstm.weights.push(LayerWeights { tensors });
        }
        Ok(lstm)
    }

    /// Adds the weights to `tensors`, named `PREFIXweight_ih_l0` and so on.
    pub fn add_tensors(&self, tensors: &mut Tensors, prefix: &str) {
        for (layer, weights) in self.weights.iter().enumerate() {
            for ((name, shape), values) in self.shape.tensors(layer).into_iter().zip(&weights.tensors) {
                tensors.insert(format!("{prefix}{name}"), NamedTensor { shape, values: values.clone() });
            }
        }
    }

    /// Its sizes.
    #[must_use]
    pub fn shape(&self) -> LstmShape {
        self.shape
    }

    /// One more row of `features` numbers: answers the last layer's hidden state, `units` numbers. Allocates nothing.
    ///
    /// # Errors
    /// [`LstmError::Length`] or [`LstmError::State`]; the state is as before.
    pub fn step<'state>(&self, state: &'state mut LstmState, input: &[f32]) -> Result<&'state [f32], LstmError> {
        check("the row of input", input.len(), self.shape.features)?;
        if state.shape != self.shape {
            return Err(LstmError::State);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            match state.layers.split_at_mut(index) {
                ([], states) => layer.step(&mut states[0], input),
                (below, states) => layer.step(&mut states[0], below[index - 1].hidden()),
            }
        }
        Ok(state.hidden())
    }

    /// Whole windows from the zero state: `input` [batch, steps, features] → the last layer's hidden states [batch, steps, units].
    ///
    /// # Errors
    /// [`LstmError::Length`].
    pub fn forward(&self, (batch, steps): (usize, usize), input: &[f32]) -> Result<Vec<f32>, LstmError> {
        check("the window", input.len(), batch * steps * self.shape.features)?;
        let mut output = vec![0.0; batch * steps * self.shape.units];
        let mut below = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            if index == 0 {
                layer.forward(batch, steps, input, &mut output);
            } else {
                below.resize(output.len(), 0.0);
                std::mem::swap(&mut below, &mut output);
                layer.forward(batch, steps, &below, &mut output);
            }
        }
        Ok(output)
    }

    /// As [`Lstm::forward`], and `tape` keeps what [`Lstm::backward`] needs.
    ///
    /// # Errors
    /// [`LstmError::Length`].
    pub fn forward_training<'tape>(
        &self,
        (batch, steps): (usize, usize),
        input: &[f32],
        tape: &'tape mut Tape,
    ) -> Result<&'tape [f32], LstmError> {
        check("the window", input.len(), batch * steps * self.shape.features)?;
        tape.layers.resize_with(self.layers.len(), LayerTape::default);
        for (index, layer) in self.layers.iter().enumerate() {
            let (below, rest) = tape.layers.split_at_mut(index);
            let LayerTape { output, kept } = &mut rest[0];
            output.resize(batch * steps * self.shape.units, 0.0);
            let input = below.last().map_or(input, |below| below.output.as_slice());
            layer.forward_keeping(batch, steps, input, output, kept);
        }
        tape.window = Some((self.shape, batch, steps));
        Ok(tape.layers.last().map_or(&[], |layer| layer.output.as_slice()))
    }

    /// Gradients of all weights, from the gradient of the hidden states [batch, steps, units]; overwrites `gradients`.
    /// The state before a window is zero and gets no gradient.
    ///
    /// # Errors
    /// [`LstmError::Tape`] if the tape was not filled by this LSTM's [`Lstm::forward_training`], or [`LstmError::Length`].
    pub fn backward(
        &self,
        input: &[f32],
        hidden_gradient: &[f32],
        tape: &mut Tape,
        gradients: &mut LstmGradients,
    ) -> Result<(), LstmError> {
        let Some((_, batch, steps)) = tape.window.filter(|(shape, ..)| *shape == self.shape) else {
            return Err(LstmError::Tape);
        };
        check("the window", input.len(), batch * steps * self.shape.features)?;
        check("the gradient", hidden_gradient.len(), batch * steps * self.shape.units)?;
        gradients.layers.resize_with(self.layers.len(), Gradients::default);
        let Tape { layers, gradient, gradient_below, scratch, .. } = tape;
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let (below, rest) = layers.split_at(index);
            let above = if index + 1 == self.layers.len() { hidden_gradient } else { gradient.as_slice() };
            let (input, input_gradient) = match below.last() {
                None => (input, None),
                Some(below) => {
                    gradient_below.resize(batch * steps * self.shape.units, 0.0);
                    (below.output.as_slice(), Some(gradient_below.as_mut_slice()))
                }
            };
            layer.backward(
                (batch, steps),
                input,
                &rest[0].output,
                &rest[0].kept,
                above,
                &mut gradients.layers[index],
                input_gradient,
                scratch,
            );
            std::mem::swap(gradient, gradient_below);
        }
        Ok(())
    }
}

fn check(what: &'static str, found: usize, expected: usize) -> Result<(), LstmError> {
    if found == expected { Ok(()) } else { Err(LstmError::Length { what, found, expected }) }
}
