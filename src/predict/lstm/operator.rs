//! The LSTM as an operation of candle, so that candle's losses, gradients and optimisers train it.
//!
//! What lives here: one custom operation a layer, forward and backward, on the CPU; elsewhere (CUDA) the same from candle's own operations.
//! What never enters: losses and optimisers.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp3, D, DType, Device, Layout, Result, Shape, Storage, Tensor, Var, bail};

use super::backward::{BackwardScratch, Gradients};
use super::layer::{GATES, Layer};
use super::{Lstm, LstmError, LstmShape};
use crate::predict::weights::{NamedTensor, Tensors};

/// An LSTM whose weights are candle's variables.
#[derive(Debug)]
pub struct TrainableLstm {
    shape: LstmShape,
    /// In the order of [`LstmShape::tensors`], a layer each.
    layers: Vec<[Var; 4]>,
    device: Device,
    buffers: Buffers,
}

impl TrainableLstm {
    /// Variables with the weights of `lstm`.
    ///
    /// # Errors
    /// Those of candle, if the device has no room.
    pub fn new(lstm: &Lstm, device: &Device) -> Result<Self> {
        let shape = lstm.shape();
        let mut layers = Vec::new();
        for (layer, weights) in lstm.weights.iter().enumerate() {
            let variable = |index: usize| {
                let (_, sizes) = &shape.tensors(layer)[index];
                Var::from_slice(&weights.tensors[index], sizes.as_slice(), device)
            };
            layers.push([variable(0)?, variable(1)?, variable(2)?, variable(3)?]);
        }
        Ok(Self { shape, layers, device: device.clone(), buffers: Buffers::default() })
    }

    /// All variables, for an optimiser.
    #[must_use]
    pub fn variables(&self) -> Vec<Var> {
        self.layers.iter().flatten().cloned().collect()
    }

    /// The present weights, fixed.
    ///
    /// # Errors
    /// [`LstmError::Weights`] naming the tensor, if the training diverged.
    pub fn lstm(&self) -> std::result::Result<Lstm, LstmError> {
        let mut tensors = Tensors::new();
        for (layer, variables) in self.layers.iter().enumerate() {
            for ((name, shape), variable) in self.shape.tensors(layer).into_iter().zip(variables) {
                // A tensor that cannot be read appears as one that is missing.
                if let Ok(values) = variable.flatten_all().and_then(|values| values.to_vec1()) {
                    tensors.insert(name, NamedTensor { shape, values });
                }
            }
        }
        Lstm::from_tensors(self.shape, &tensors, "")
    }

    /// Hidden states of the last layer: [batch, steps, features] → [batch, steps, units], from the zero state. Has a gradient.
    ///
    /// # Errors
    /// Those of candle, or a window of another shape.
    pub fn forward(&self, window: &Tensor) -> Result<Tensor> {
        // Debug builds optimise candle and not this crate, so there its operations are the fast ones.
        if cfg!(debug_assertions) || !matches!(self.device, Device::Cpu) {
            self.forward_composed(window)
        } else {
            self.forward_fused(window)
        }
    }

    /// The same with one operation a layer; on the CPU only.
    ///
    /// # Errors
    /// Those of candle, or a window of another shape.
    pub fn forward_fused(&self, window: &Tensor) -> Result<Tensor> {
        let mut hidden = window.contiguous()?;
        for [weight_ih, weight_hh, bias_ih, bias_hh] in &self.layers {
            let weights = Tensor::cat(&[weight_ih.as_tensor(), weight_hh.as_tensor()], 1)?;
            let bias = (bias_ih.as_tensor() + bias_hh.as_tensor())?;
            hidden = hidden.apply_op3(&weights, &bias, LayerOperation::new(&self.buffers))?;
        }
        Ok(hidden)
    }

    /// The same from candle's own operations, on any device. Slower; what the fused operation is checked against.
    ///
    /// # Errors
    /// Those of candle, or a window of another shape.
    pub fn forward_composed(&self, window: &Tensor) -> Result<Tensor> {
        let mut hidden = window.clone();
        for [weight_ih, weight_hh, bias_ih, bias_hh] in &self.layers {
            let (batch, steps, _) = hidden.dims3()?;
            let bias = (bias_ih.as_tensor() + bias_hh.as_tensor())?;
            let projected = hidden.broadcast_matmul(&weight_ih.t()?)?.broadcast_add(&bias)?;
            let recurrent = weight_hh.t()?;
            let mut before = Tensor::zeros((batch, self.shape.units), DType::F32, &self.device)?;
            let mut cell = before.clone();
            let mut outputs = Vec::with_capacity(steps);
            for step in 0..steps {
                let sums = (projected.narrow(1, step, 1)?.squeeze(1)? + before.matmul(&recurrent)?)?;
                let gates = sums.chunk(GATES, D::Minus1)?;
                let input = candle_nn::ops::sigmoid(&gates[0])?;
                let forget = candle_nn::ops::sigmoid(&gates[1])?;
                let candidate = gates[2].tanh()?;
                let output = candle_nn::ops::sigmoid(&gates[3])?;
                cell = ((forget * cell)? + (input * candidate)?)?;
                before = (output * cell.tanh()?)?;
                outputs.push(before.clone());
            }
            hidden = Tensor::stack(&outputs, 1)?;
        }
        Ok(hidden)
    }
}

/// Memory that the operations of one LSTM hand on to those of its next training step.
type Buffers = Arc<Mutex<Vec<Memory>>>;

#[derive(Debug, Default)]
struct Memory {
    kept: Vec<f32>,
    gradients: Gradients,
    scratch: BackwardScratch,
}

/// One layer, once: what forward kept is for the backward of the same call.
struct LayerOperation {
    buffers: Buffers,
    pass: Mutex<Pass>,
}

#[derive(Default)]
struct Pass {
    memory: Memory,
    layer: Option<Layer>,
}

impl LayerOperation {
    fn new(buffers: &Buffers) -> Self {
        // Nothing half-written is ever read, so a lock that a panic left behind can be used.
        let memory = buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        Self { buffers: buffers.clone(), pass: Mutex::new(Pass { memory, layer: None }) }
    }
}

impl Drop for LayerOperation {
    fn drop(&mut self) {
        let pass = std::mem::take(self.pass.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).push(pass.memory);
    }
}

impl CustomOp3 for LayerOperation {
    fn name(&self) -> &'static str {
        "lstm-layer"
    }

    fn cpu_fwd(
        &self,
        input: &CpuStorage,
        input_layout: &Layout,
        weights: &CpuStorage,
        weights_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, steps, features) = input_layout.shape().dims3()?;
        let (rows, columns) = weights_layout.shape().dims2()?;
        let units = rows / GATES;
        if columns != features + units {
            bail!("the window has {features} features, the LSTM layer {}", columns.saturating_sub(units));
        }
        let (weights, bias) = (numbers(weights, weights_layout)?, numbers(bias, bias_layout)?);
        let split = |from: usize, to: usize| -> Vec<f32> {
            weights.chunks_exact(columns).flat_map(|row| &row[from..to]).copied().collect()
        };
        let (weight_ih, weight_hh) = (split(0, features), split(features, columns));
        let layer = Layer::new(features, units, &weight_ih, &weight_hh, bias, &vec![0.0; bias.len()]);
        let mut output = vec![0.0; batch * steps * units];
        let mut pass = self.pass.lock().unwrap_or_else(PoisonError::into_inner);
        layer.forward_keeping(batch, steps, numbers(input, input_layout)?, &mut output, &mut pass.memory.kept);
        pass.layer = Some(layer);
        Ok((CpuStorage::F32(output), Shape::from((batch, steps, units))))
    }

    fn bwd(
        &self,
        input: &Tensor,
        weights: &Tensor,
        _: &Tensor,
        output: &Tensor,
        output_gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (batch, steps, features) = input.dims3()?;
        let output_gradient = output_gradient.contiguous()?;
        let mut pass = self.pass.lock().unwrap_or_else(PoisonError::into_inner);
        let Pass { memory: Memory { kept, gradients, scratch }, layer } = &mut *pass;
        let Some(layer) = layer else { bail!("backward of an LSTM layer before its forward") };
        let mut input_gradient = input.track_op().then(|| vec![0.0; batch * steps * features]);
        with_numbers(input, |input| {
            with_numbers(output, |output| {
                with_numbers(&output_gradient, |output_gradient| {
                    layer.backward(
                        (batch, steps),
                        input,
                        output,
                        kept,
                        output_gradient,
                        gradients,
                        input_gradient.as_deref_mut(),
                        scratch,
                    );
                })
            })
        })???;
        let device = weights.device();
        let rows = gradients.bias.len();
        let mut joined = Vec::with_capacity(weights.elem_count());
        let rows_ih = gradients.weight_ih.chunks_exact(features);
        for (row_ih, row_hh) in rows_ih.zip(gradients.weight_hh.chunks_exact(rows / GATES)) {
            joined.extend_from_slice(row_ih);
            joined.extend_from_slice(row_hh);
        }
        let input_gradient =
            input_gradient.map(|gradient| Tensor::from_vec(gradient, input.shape(), device)).transpose()?;
        let weights_gradient = Tensor::from_vec(joined, weights.shape(), device)?;
        let bias_gradient = Tensor::from_slice(&gradients.bias, rows, device)?;
        Ok((input_gradient, Some(weights_gradient), Some(bias_gradient)))
    }
}

/// The numbers of a contiguous tensor on the CPU.
fn numbers<'storage>(storage: &'storage CpuStorage, layout: &Layout) -> Result<&'storage [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => bail!("an LSTM layer needs contiguous tensors"),
    }
}

/// Lends the numbers of a contiguous tensor on the CPU.
fn with_numbers<Output>(tensor: &Tensor, use_them: impl FnOnce(&[f32]) -> Output) -> Result<Output> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(use_them(numbers(storage, layout)?)),
        _ => bail!("an LSTM layer of the CPU got a tensor of another device"),
    }
}
