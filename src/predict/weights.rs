//! Named tensors of single-precision numbers, from and to the bytes of a safetensors file.
//!
//! What never enters: files, checksums (whoever reads the file checks it first), and what the tensors mean.

use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// One tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Values, row by row.
    pub values: Vec<f32>,
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, NamedTensor>;

/// Why tensors cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WeightsError {
    /// Not a safetensors file, or truncated.
    #[error("weights are not a whole safetensors file ({why}): publish or copy the model again")]
    Format {
        /// What the parser said.
        why: String,
    },
    /// Numbers of another kind.
    #[error("tensor {name:?} holds {found}, expected F32: convert it with .float() before saving")]
    Kind {
        /// Which tensor.
        name: String,
        /// Its kind.
        found: String,
    },
    /// The tensor is not there.
    #[error("tensor {name:?} is missing: the weights belong to another architecture")]
    Missing {
        /// Which tensor.
        name: String,
    },
    /// The tensor has another shape.
    #[error("tensor {name:?} has shape {found:?}, expected {expected:?}: the weights belong to another architecture")]
    Shape {
        /// Which tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that the architecture asks for.
        expected: Vec<usize>,
    },
    /// A value is infinite or not a number.
    #[error("tensor {name:?} holds {value} at {index}: the training diverged, or the file is damaged")]
    NotFinite {
        /// Which tensor.
        name: String,
        /// The first such place, counted row by row.
        index: usize,
        /// What is there.
        value: String,
    },
}

/// Reads every tensor of a safetensors file. Values are not judged here.
///
/// # Errors
/// [`WeightsError::Format`] or [`WeightsError::Kind`].
pub fn read(bytes: &[u8]) -> Result<Tensors, WeightsError> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| WeightsError::Format { why: error.to_string() })?;
    file.iter()
        .map(|(name, view)| {
            if view.dtype() != Dtype::F32 {
                return Err(WeightsError::Kind { name: name.to_owned(), found: format!("{:?}", view.dtype()) });
            }
            let (numbers, _) = view.data().as_chunks::<4>();
            let values = numbers.iter().map(|number| f32::from_le_bytes(*number)).collect();
            Ok((name.to_owned(), NamedTensor { shape: view.shape().to_vec(), values }))
        })
        .collect()
}

/// The bytes of a safetensors file.
///
/// # Errors
/// [`WeightsError::Format`] if a tensor's values do not fill its shape.
pub fn write(tensors: &Tensors) -> Result<Vec<u8>, WeightsError> {
    let format = |error: safetensors::SafeTensorError| WeightsError::Format { why: error.to_string() };
    let bytes: Vec<(&String, &NamedTensor, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| (name, tensor, tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect()))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, tensor, bytes)| {
            TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).map(|view| (name.as_str(), view)).map_err(format)
        })
        .collect::<Result<Vec<_>, _>>()?;
    safetensors::serialize(views, None::<HashMap<String, String>>).map_err(format)
}

/// A tensor of that name and shape, all of whose values are finite.
///
/// # Errors
/// [`WeightsError::Missing`], [`WeightsError::Shape`] or [`WeightsError::NotFinite`], naming the tensor.
pub fn take<'tensors>(
    tensors: &'tensors Tensors,
    name: &str,
    shape: &[usize],
) -> Result<&'tensors [f32], WeightsError> {
    let tensor = tensors.get(name).ok_or_else(|| WeightsError::Missing { name: name.to_owned() })?;
    if tensor.shape != shape || tensor.values.len() != shape.iter().product::<usize>() {
        return Err(WeightsError::Shape {
            name: name.to_owned(),
            found: tensor.shape.clone(),
            expected: shape.to_vec(),
        });
    }
    match tensor.values.iter().position(|value| !value.is_finite()) {
        Some(index) => {
            Err(WeightsError::NotFinite { name: name.to_owned(), index, value: tensor.values[index].to_string() })
        }
        None => Ok(&tensor.values),
    }
}
