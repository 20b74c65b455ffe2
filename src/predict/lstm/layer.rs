//! The weights of a layer, packed in the order in which the products read them.
//!
//! What never enters: gates and products.

use super::aligned::Aligned;
use super::dispatch;

/// Gates of a cell: input, forget, candidate, output.
pub(crate) const GATES: usize = 4;

/// The weights of one layer, packed for this machine's registers.
#[derive(Debug, Clone)]
pub struct Layer {
    pub(crate) features: usize,
    pub(crate) units: usize,
    /// Units, rounded up to whole registers; the weights of the added ones are zero, and so is all that they ever hold.
    pub(crate) padded_units: usize,
    /// Numbers in a register.
    pub(crate) lanes: usize,
    /// `[panel of lanes units][feature][gate][lane]`
    pub(crate) input: Aligned,
    /// `[panel][unit before][gate][lane]`
    pub(crate) recurrent: Aligned,
    /// `[panel][gate][lane]`
    pub(crate) bias: Aligned,
}

/// Rounds up to a multiple.
pub(crate) fn padded(count: usize, lanes: usize) -> usize {
    count.div_ceil(lanes) * lanes
}

impl Layer {
    /// Packs weights that are in PyTorch's shapes: `weight_ih` [4 · units, features], `weight_hh` [4 · units, units], biases [4 · units],
    /// gates in the order i, f, g, o, all row by row.
    ///
    /// # Panics
    /// If a slice has another length.
    #[must_use]
    pub fn new(
        features: usize,
        units: usize,
        weight_ih: &[f32],
        weight_hh: &[f32],
        bias_ih: &[f32],
        bias_hh: &[f32],
    ) -> Self {
        assert_eq!(weight_ih.len(), GATES * units * features, "weight_ih has 4 · units · features numbers");
        assert_eq!(weight_hh.len(), GATES * units * units, "weight_hh has 4 · units · units numbers");
        assert_eq!(bias_ih.len(), GATES * units, "bias_ih has 4 · units numbers");
        assert_eq!(bias_hh.len(), GATES * units, "bias_hh has 4 · units numbers");
        let lanes = dispatch::lanes();
        let padded_units = padded(units, lanes);
        let pack = |weights: &[f32], depth: usize| {
            let mut packed = Aligned::zeros(depth * GATES * padded_units);
            for gate in 0..GATES {
                for unit in 0..units {
                    let row = &weights[(gate * units + unit) * depth..][..depth];
                    let (panel, lane) = (unit / lanes, unit % lanes);
                    for (k, weight) in row.iter().enumerate() {
                        packed[((panel * depth + k) * GATES + gate) * lanes + lane] = *weight;
                    }
                }
            }
            packed
        };
        let bias: Vec<f32> = bias_ih.iter().zip(bias_hh).map(|(input, recurrent)| input + recurrent).collect();
        let (input, recurrent, bias) = (pack(weight_ih, features), pack(weight_hh, units), pack(&bias, 1));
        Self { features, units, padded_units, lanes, input, recurrent, bias }
    }
}
