//! The LSTM against candle's, against finite differences, and against itself.

use candle_core::{DType, Device, Tensor};
use candle_nn::rnn::{LSTMConfig, RNN, lstm};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder};

use super::operator::TrainableLstm;
use super::{Lstm, LstmError, LstmGradients, LstmShape, LstmState, Tape};
use crate::predict::weights::{self, Tensors, WeightsError};

/// Shapes with and without whole registers, one layer and several.
const SHAPES: [LstmShape; 4] = [
    LstmShape { features: 38, units: 64, layers: 2 },
    LstmShape { features: 1, units: 1, layers: 1 },
    LstmShape { features: 5, units: 19, layers: 3 },
    LstmShape { features: 16, units: 8, layers: 1 },
];

/// Numbers in [0, 1) from a seed (xorshift).
fn random(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    }
}

fn uniform(seed: u64, count: usize, bound: f32) -> Vec<f32> {
    let mut random = random(seed);
    (0..count).map(|_| (2.0 * random() - 1.0) * bound).collect()
}

fn model(shape: LstmShape) -> Lstm {
    Lstm::from_random(shape, random(7)).unwrap()
}

fn tensors(lstm: &Lstm) -> Tensors {
    let mut tensors = Tensors::new();
    lstm.add_tensors(&mut tensors, "");
    tensors
}

fn assert_near(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance, "{what}: {found} at {index}, expected {expected}");
    }
}

/// The hidden states by candle_nn's own LSTM.
fn by_candle(model: &Lstm, (batch, steps): (usize, usize), input: &[f32]) -> Vec<f32> {
    let shape = model.shape();
    let device = Device::Cpu;
    let mut hidden = Tensor::from_slice(input, (batch, steps, shape.features), &device).unwrap();
    let map = tensors(model)
        .into_iter()
        .map(|(name, tensor)| (name, Tensor::from_vec(tensor.values, tensor.shape, &device).unwrap()))
        .collect();
    let builder = VarBuilder::from_tensors(map, DType::F32, &device);
    for layer in 0..shape.layers {
        let config = LSTMConfig { layer_idx: layer, ..LSTMConfig::default() };
        let layer = lstm(shape.layer_features(layer), shape.units, config, builder.clone()).unwrap();
        hidden = layer.states_to_tensor(&layer.seq(&hidden).unwrap()).unwrap();
    }
    hidden.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_window_gives_what_candle_gives() {
    for shape in SHAPES {
        let model = model(shape);
        // Batches that fill tiles of every height.
        for batch in [1, 2, 3, 4, 5, 7, 13] {
            for (steps, bound) in [(1, 1.0), (8, 10.0)] {
                let input = uniform(3, batch * steps * shape.features, bound);
                let found = model.forward((batch, steps), &input).unwrap();
                assert_near(
                    &format!("{shape:?}, {batch} × {steps}"),
                    &found,
                    &by_candle(&model, (batch, steps), &input),
                    1e-5,
                );
            }
        }
    }
}

#[test]
fn rounding_does_not_grow_over_a_long_window() {
    let model = model(SHAPES[0]);
    let input = uniform(4, 200 * 38, 3.0);
    assert_near("200 steps", &model.forward((1, 200), &input).unwrap(), &by_candle(&model, (1, 200), &input), 1e-5);
}

#[test]
fn extreme_input_saturates_and_stays_finite() {
    let shape = LstmShape { features: 3, units: 9, layers: 2 };
    let model = model(shape);
    for value in [1e3, -1e3, 1e30, -1e30] {
        let input = vec![value; 5 * 3];
        let found = model.forward((1, 5), &input).unwrap();
        assert_near(&format!("{value}"), &found, &by_candle(&model, (1, 5), &input), 1e-5);
    }
}

#[test]
fn what_is_not_a_number_is_not_hidden() {
    let model = model(LstmShape { features: 3, units: 9, layers: 1 });
    let found = model.forward((1, 1), &[0.5, f32::NAN, 0.5]).unwrap();
    assert!(found.iter().all(|value| value.is_nan()), "{found:?}");
}

#[test]
fn steps_give_what_a_window_gives() {
    for shape in SHAPES {
        let model = model(shape);
        let steps = 23;
        let input = uniform(5, steps * shape.features, 2.0);
        let window = model.forward((1, steps), &input).unwrap();
        let mut state = LstmState::new(&model);
        for round in 0..2 {
            for (row, expected) in input.chunks(shape.features).zip(window.chunks(shape.units)) {
                let found = model.step(&mut state, row).unwrap();
                assert_near(&format!("{shape:?}, round {round}"), found, expected, 2e-6);
            }
            state.reset();
        }
    }
}

/// `Σ weight · hidden`, a loss whose gradient is `weight`.
fn loss(model: &Lstm, size: (usize, usize), input: &[f32], weights: &[f32]) -> f64 {
    let hidden = model.forward(size, input).unwrap();
    hidden.iter().zip(weights).map(|(hidden, weight)| f64::from(*hidden) * f64::from(*weight)).sum()
}

#[test]
fn gradients_agree_with_finite_differences() {
    let shape = LstmShape { features: 3, units: 5, layers: 2 };
    let (batch, steps) = (4, 6);
    let model = model(shape);
    let input = uniform(11, batch * steps * shape.features, 1.0);
    let weights = uniform(12, batch * steps * shape.units, 1.0);
    let (mut tape, mut gradients) = (Tape::default(), LstmGradients::default());
    model.forward_training((batch, steps), &input, &mut tape).unwrap();
    model.backward(&input, &weights, &mut tape, &mut gradients).unwrap();
    let original = tensors(&model);
    let mut largest: f32 = 0.0;
    for (name, gradient) in gradients.tensors() {
        for (index, found) in gradient.iter().enumerate() {
            let moved = |by: f32| {
                let mut moved = original.clone();
                moved.get_mut(&name).unwrap().values[index] += by;
                loss(&Lstm::from_tensors(shape, &moved, "").unwrap(), (batch, steps), &input, &weights)
            };
            let step = 5e-3;
            let expected = ((moved(step) - moved(-step)) / (2.0 * f64::from(step))) as f32;
            assert!((found - expected).abs() <= 2e-3 * expected.abs().max(1.0), "{name}[{index}]: {found}, {expected}");
            largest = largest.max(found.abs());
        }
    }
    assert!(largest > 0.1, "the gradients are not all small: {largest}");
}

#[test]
fn gradients_agree_with_those_of_candle() {
    let device = Device::Cpu;
    for shape in SHAPES {
        for (batch, steps) in [(1, 1), (2, 9), (8, 14)] {
            let model = model(shape);
            let trainable = TrainableLstm::new(&model, &device).unwrap();
            let input = uniform(21, batch * steps * shape.features, 1.0);
            let window = candle_core::Var::from_slice(&input, (batch, steps, shape.features), &device).unwrap();
            let weights = uniform(22, batch * steps * shape.units, 1.0);
            let above = Tensor::from_slice(&weights, (batch, steps, shape.units), &device).unwrap();

            let gradients_of = |hidden: Tensor| (hidden * &above).unwrap().sum_all().unwrap().backward().unwrap();
            let fused = gradients_of(trainable.forward_fused(&window).unwrap());
            let composed = gradients_of(trainable.forward_composed(&window).unwrap());
            let numbers = |gradients: &candle_core::backprop::GradStore, tensor: &Tensor| -> Vec<f32> {
                gradients.get(tensor).unwrap().flatten_all().unwrap().to_vec1().unwrap()
            };
            let (mut tape, mut by_hand) = (Tape::default(), LstmGradients::default());
            model.forward_training((batch, steps), &input, &mut tape).unwrap();
            model.backward(&input, &weights, &mut tape, &mut by_hand).unwrap();
            for (variable, (name, by_hand)) in trainable.variables().iter().zip(by_hand.tensors()) {
                let what = format!("{shape:?} {batch} × {steps} {name}");
                let expected = numbers(&composed, variable);
                let scale = expected.iter().fold(1.0_f32, |scale, value| scale.max(value.abs()));
                assert_near(&what, &numbers(&fused, variable), &expected, 1e-5 * scale);
                assert_near(&what, by_hand, &expected, 1e-5 * scale);
            }
            assert_near("the window", &numbers(&fused, &window), &numbers(&composed, &window), 1e-5);
        }
    }
}

#[test]
fn it_learns_with_candles_optimiser() {
    let device = Device::Cpu;
    let shape = LstmShape { features: 2, units: 12, layers: 1 };
    let trainable = TrainableLstm::new(&model(shape), &device).unwrap();
    // The mean over the past of the first feature is to appear in the first unit.
    let (batch, steps) = (16, 8);
    let input = uniform(31, batch * steps * 2, 1.0);
    let window = Tensor::from_slice(&input, (batch, steps, 2), &device).unwrap();
    let wanted = (window.narrow(2, 0, 1).unwrap().mean(1).unwrap().squeeze(1).unwrap() * 0.8).unwrap();
    let mut optimiser = AdamW::new(trainable.variables(), ParamsAdamW { lr: 0.02, ..ParamsAdamW::default() }).unwrap();
    let mut losses = Vec::new();
    for _ in 0..60 {
        let hidden = trainable.forward_fused(&window).unwrap();
        let last = hidden.narrow(1, steps - 1, 1).unwrap().narrow(2, 0, 1).unwrap().flatten_all().unwrap();
        let loss = candle_nn::loss::mse(&last, &wanted).unwrap();
        losses.push(loss.to_scalar::<f32>().unwrap());
        optimiser.backward_step(&loss).unwrap();
    }
    assert!(losses[59] < 0.1 * losses[0], "{losses:?}");
    // What was learnt is what the streaming model computes.
    let learnt = trainable.lstm().unwrap();
    assert_near(
        "learnt",
        &learnt.forward((batch, steps), &input).unwrap(),
        &trainable.forward_composed(&window).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(),
        1e-5,
    );
}

#[test]
fn weights_survive_a_safetensors_file() {
    let model = model(SHAPES[2]);
    let mut tensors = Tensors::new();
    model.add_tensors(&mut tensors, "lstm.");
    let bytes = weights::write(&tensors).unwrap();
    let read = weights::read(&bytes).unwrap();
    assert_eq!(read, tensors);
    assert_eq!(read["lstm.weight_ih_l2"].shape, [76, 19]);
    let again = Lstm::from_tensors(SHAPES[2], &read, "lstm.").unwrap();
    let input = uniform(41, 4 * 5, 1.0);
    assert_eq!(again.forward((1, 4), &input).unwrap(), model.forward((1, 4), &input).unwrap());
}

#[test]
fn weights_that_do_not_fit_name_their_tensor() {
    let shape = LstmShape { features: 2, units: 3, layers: 1 };
    let good = tensors(&model(shape));
    let error = |tensors: &Tensors| Lstm::from_tensors(shape, tensors, "").unwrap_err();

    let mut missing = good.clone();
    missing.remove("bias_hh_l0");
    assert_eq!(error(&missing), LstmError::Weights(WeightsError::Missing { name: "bias_hh_l0".to_owned() }));

    let mut wrong = good.clone();
    wrong.get_mut("weight_hh_l0").unwrap().shape = vec![3, 12];
    assert_eq!(
        error(&wrong).to_string(),
        "tensor \"weight_hh_l0\" has shape [3, 12], expected [12, 3]: the weights belong to another architecture"
    );

    let mut infinite = good.clone();
    infinite.get_mut("weight_ih_l0").unwrap().values[4] = f32::NAN;
    assert_eq!(
        error(&infinite).to_string(),
        "tensor \"weight_ih_l0\" holds NaN at 4: the training diverged, or the file is damaged"
    );

    let empty = LstmShape { units: 0, ..shape };
    assert_eq!(Lstm::from_tensors(empty, &good, "").unwrap_err(), LstmError::Empty(empty));

    let bytes = weights::write(&good).unwrap();
    let error = weights::read(&bytes[..bytes.len() / 2]).unwrap_err();
    assert!(error.to_string().starts_with("weights are not a whole safetensors file"), "{error}");
}

#[test]
fn wrong_lengths_and_foreign_states_are_errors() {
    let model = model(LstmShape { features: 2, units: 3, layers: 1 });
    let error = model.forward((2, 3), &[0.0; 11]).unwrap_err();
    assert_eq!(error.to_string(), "the window has 11 numbers, expected 12");
    let mut state = LstmState::new(&model);
    assert_eq!(
        model.step(&mut state, &[0.0; 3]).unwrap_err().to_string(),
        "the row of input has 3 numbers, expected 2"
    );
    let other = Lstm::from_random(LstmShape { features: 2, units: 4, layers: 1 }, random(1)).unwrap();
    assert_eq!(model.step(&mut LstmState::new(&other), &[0.0; 2]).unwrap_err(), LstmError::State);
    let (mut tape, mut gradients) = (Tape::default(), LstmGradients::default());
    assert_eq!(model.backward(&[], &[], &mut tape, &mut gradients).unwrap_err(), LstmError::Tape);
    other.forward_training((1, 1), &[0.0; 2], &mut tape).unwrap();
    assert_eq!(model.backward(&[0.0; 2], &[0.0; 3], &mut tape, &mut gradients).unwrap_err(), LstmError::Tape);
}
