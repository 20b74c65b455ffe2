//! Training of the network by gradient descent: everything random, and everything that remembers between steps.
//!
//! Many-to-many: chunks of rows from random places, a loss at every row. The head begins with zeros, so that the network begins as its
//! linear twin, and the weights that do best on the held-out end of the training rows are kept: training can only improve on the twin
//! there. What never enters: files but the checkpoint, test rows.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use indicatif::ProgressBar;
use ndarray::{ArrayView2, ArrayViewMut2, linalg::general_mat_mul};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use stormglass::predict::Samples;
use stormglass::predict::fit::{Scales, scale_row};
use stormglass::predict::forecaster::Network;
use stormglass::predict::lstm::{Lstm, LstmGradients, LstmShape, Tape};
use stormglass::predict::weights::{self, NamedTensor, Tensors};

/// How the network is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Layers of the LSTM.
    pub layers: usize,
    /// Units of each layer.
    pub units: usize,
    /// Time constant of the running mean, in rows.
    pub baseline_rows: u32,
    /// Rows ahead.
    pub horizons: Vec<usize>,
    /// Seed of everything random.
    pub seed: u64,
    /// Steps of the optimiser.
    pub steps: u32,
    /// Chunks a step.
    pub chunks: usize,
    /// Rows of a chunk.
    pub chunk_rows: usize,
    /// Highest learning rate.
    pub rate: f64,
}

impl Settings {
    /// The shipped settings.
    pub fn shipped(seed: u64) -> Self {
        Self {
            layers: 1,
            units: 64,
            baseline_rows: 60,
            horizons: vec![1, 10],
            seed,
            steps: 250,
            chunks: 32,
            chunk_rows: 96,
            rate: 3e-3,
        }
    }
}

/// Share of the rows of each node, at its end, on which the best weights are chosen.
const HELD_OUT: f64 = 0.1;
/// The held-out rows are tried every so many steps.
const TRY_EVERY: u32 = 25;
/// Training ends after so many tries without improvement.
const PATIENCE: u32 = 4;
/// Chunks of the held-out rows that are tried.
const HELD_OUT_CHUNKS: usize = 24;
/// Rows of all nodes together that are kept in memory; of longer histories the newest.
const ROWS_MAX: usize = 500_000;
/// Huber's loss is a square up to here, in spreads.
const HUBER: f32 = 1.0;
/// Decay of weights in each step, relative to the learning rate.
const WEIGHT_DECAY: f64 = 0.01;
/// Longest gradient.
const GRADIENT_MAX: f64 = 1.0;

/// One node's scaled rows and their running means.
struct Series {
    rows: usize,
    /// [rows, features]; what is missing holds the running mean before it.
    values: Vec<f32>,
    baselines: Vec<f32>,
    present: Vec<bool>,
}

impl Series {
    fn of(
        samples: &Samples,
        scales: &[stormglass::predict::scaler::FeatureScale],
        baseline_rows: u32,
        rows_max: usize,
    ) -> Self {
        let features = samples.features();
        let first = samples.rows().saturating_sub(rows_max);
        let mut series = Self { rows: 0, values: Vec::new(), baselines: Vec::new(), present: Vec::new() };
        let (mut row, mut scaled) = (Vec::new(), Vec::new());
        let mut baseline = vec![0.0_f32; features];
        for index in first..samples.rows() {
            samples.read(index, &mut row);
            scale_row(scales, &row, &mut scaled);
            let rate = (1.0 / baseline_rows as f32).max(1.0 / (series.rows + 1) as f32);
            for (baseline, scaled) in baseline.iter_mut().zip(&scaled) {
                if series.rows == 0 {
                    *baseline = scaled.unwrap_or(0.0);
                }
                let value = scaled.unwrap_or(*baseline);
                series.values.push(value);
                series.present.push(scaled.is_some());
                *baseline += rate * (value - *baseline);
            }
            series.baselines.extend_from_slice(&baseline);
            series.rows += 1;
        }
        series
    }
}

/// A batch of chunks: inputs and what should have been forecast.
#[derive(Default)]
struct Batch {
    chunks: usize,
    /// [chunks, rows, 2 × features]
    input: Vec<f32>,
    /// [chunks, rows, horizons × features]
    target: Vec<f32>,
    /// 1 where the target is known.
    known: Vec<f32>,
}

/// Everything that one training needs.
pub struct Trainer<'settings> {
    settings: &'settings Settings,
    features: usize,
    nodes: Vec<Series>,
    shape: LstmShape,
    held_out: Batch,
}

/// What gradient descent remembers, saved as it is so that a training can be resumed exactly.
struct Progress {
    step: u32,
    parameters: BTreeMap<String, NamedTensor>,
    first_moments: BTreeMap<String, Vec<f32>>,
    second_moments: BTreeMap<String, Vec<f32>>,
    best: BTreeMap<String, NamedTensor>,
    best_loss: f64,
    tries_since_best: u32,
}

/// A trained network and how it did on held-out rows of the training.
pub struct Trained {
    /// The best weights.
    pub network: Network,
    /// Held-out loss of the network over that of its linear twin: below 1 is better.
    pub loss_ratio: f64,
    /// Steps done.
    pub steps: u32,
}

impl<'settings> Trainer<'settings> {
    /// Prepares rows. `None` if no node has enough of them for two chunks: then there is only the linear twin.
    pub fn new(settings: &'settings Settings, nodes: &[Samples], scales: &Scales) -> Option<Self> {
        let features = nodes.first()?.features();
        let needed = 2 * (settings.chunk_rows + settings.horizons.iter().max()?);
        let rows_max = ROWS_MAX / nodes.len().max(1);
        let nodes: Vec<Series> = nodes
            .iter()
            .zip(&scales.own)
            .filter(|(samples, _)| samples.rows() >= needed)
            .map(|(samples, scales)| Series::of(samples, scales, settings.baseline_rows, rows_max.max(needed)))
            .collect();
        if nodes.is_empty() {
            return None;
        }
        let shape = LstmShape { features: 2 * features, units: settings.units, layers: settings.layers };
        let mut trainer = Self { settings, features, nodes, shape, held_out: Batch::default() };
        let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
        random.set_stream(u64::MAX);
        let mut batch = Batch::default();
        trainer.fill(&mut batch, HELD_OUT_CHUNKS, &mut random, true);
        trainer.held_out = batch;
        Some(trainer)
    }

    fn outputs(&self) -> usize {
        self.settings.horizons.len() * self.features
    }

    /// Draws chunks from the training rows, or from the held-out end.
    fn fill(&self, batch: &mut Batch, chunks: usize, random: &mut ChaCha8Rng, is_held_out: bool) {
        let Settings { chunk_rows, horizons, .. } = self.settings;
        let reach = chunk_rows + horizons.iter().max().copied().unwrap_or(0);
        *batch = Batch { chunks, ..Batch::default() };
        batch.input.reserve(chunks * chunk_rows * 2 * self.features);
        batch.target.reserve(chunks * chunk_rows * self.outputs());
        batch.known.reserve(chunks * chunk_rows * self.outputs());
        for _ in 0..chunks {
            let node = &self.nodes[below(random, self.nodes.len())];
            let split = ((node.rows as f64 * (1.0 - HELD_OUT)) as usize).min(node.rows - reach).max(reach);
            let start = if is_held_out {
                split + below(random, node.rows - reach - split + 1)
            } else {
                below(random, split - reach + 1)
            };
            for row in start..start + chunk_rows {
                let (from, to) = (row * self.features, (row + 1) * self.features);
                let (values, baselines) = (&node.values[from..to], &node.baselines[from..to]);
                batch.input.extend(values.iter().zip(baselines).map(|(value, baseline)| value - baseline));
                batch.input.extend_from_slice(baselines);
                for horizon in horizons {
                    let ahead = (row + horizon) * self.features;
                    batch
                        .target
                        .extend(node.values[ahead..].iter().zip(baselines).map(|(value, baseline)| value - baseline));
                    batch
                        .known
                        .extend(node.present[ahead..][..self.features].iter().map(|known| f32::from(u8::from(*known))));
                }
            }
        }
    }

    fn start(&self) -> anyhow::Result<Progress> {
        let mut random = ChaCha8Rng::seed_from_u64(self.settings.seed);
        let lstm = Lstm::from_random(self.shape, || (random.next_u32() >> 8) as f32 / (1 << 24) as f32)?;
        let mut parameters = Tensors::new();
        lstm.add_tensors(&mut parameters, "lstm.");
        let (outputs, units) = (self.outputs(), self.settings.units);
        let zeros = |shape: Vec<usize>| NamedTensor { values: vec![0.0; shape.iter().product()], shape };
        parameters.insert("head.weight".to_owned(), zeros(vec![outputs, units]));
        parameters.insert("head.bias".to_owned(), zeros(vec![outputs]));
        let moments: BTreeMap<String, Vec<f32>> =
            parameters.iter().map(|(name, tensor)| (name.clone(), vec![0.0; tensor.values.len()])).collect();
        Ok(Progress {
            step: 0,
            best: parameters.clone(),
            parameters,
            first_moments: moments.clone(),
            second_moments: moments,
            best_loss: f64::INFINITY,
            tries_since_best: 0,
        })
    }

    /// Trains, from a checkpoint if there is one of the same training, and keeps one while it runs.
    pub fn train(&self, checkpoint: Option<&Path>, bar: &ProgressBar) -> anyhow::Result<Trained> {
        let mut progress = self.start()?;
        if let Some(path) = checkpoint.filter(|path| path.exists()) {
            self.resume(&mut progress, path)
                .with_context(|| format!("resume from {}: remove the file to begin again", path.display()))?;
        }
        let (mut tape, mut gradients, mut batch) = (Tape::default(), LstmGradients::default(), Batch::default());
        let twin_loss = self.loss_of_twin();
        if progress.step == 0 {
            progress.best_loss = twin_loss;
        }
        while progress.step < self.settings.steps && progress.tries_since_best < PATIENCE {
            let mut random = ChaCha8Rng::seed_from_u64(self.settings.seed);
            random.set_stream(u64::from(progress.step) + 1);
            self.fill(&mut batch, self.settings.chunks, &mut random, false);
            self.descend(&mut progress, &batch, &mut tape, &mut gradients)?;
            progress.step += 1;
            bar.inc(1);
            if progress.step % TRY_EVERY == 0 || progress.step == self.settings.steps {
                let loss = self.loss(&progress.parameters, &self.held_out)?;
                ensure!(loss.is_finite(), "the training diverged at step {}: lower the learning rate", progress.step);
                progress.tries_since_best += 1;
                if loss < progress.best_loss {
                    progress.best_loss = loss;
                    progress.best.clone_from(&progress.parameters);
                    progress.tries_since_best = 0;
                }
                bar.set_message(format!("held-out loss {:.3} of the linear twin's", loss / twin_loss));
                if let Some(path) = checkpoint {
                    self.save(&progress, path)?;
                }
                #[cfg(test)]
                ensure!(!interruption::is_due(progress.step), "interrupted");
            }
        }
        Ok(Trained {
            network: self.network(&progress.best)?,
            loss_ratio: if twin_loss > 0.0 { progress.best_loss / twin_loss } else { 1.0 },
            steps: progress.step,
        })
    }

    fn network(&self, parameters: &Tensors) -> anyhow::Result<Network> {
        let (outputs, units) = (self.outputs(), self.settings.units);
        Ok(Network {
            lstm: Lstm::from_tensors(self.shape, parameters, "lstm.")?,
            head_weight: weights::take(parameters, "head.weight", &[outputs, units])?.to_vec(),
            head_bias: weights::take(parameters, "head.bias", &[outputs])?.to_vec(),
        })
    }

    fn loss_of_twin(&self) -> f64 {
        let batch = &self.held_out;
        let sum: f64 =
            batch.target.iter().zip(&batch.known).map(|(target, known)| f64::from(huber(*target) * known)).sum();
        sum / batch.known.iter().map(|known| f64::from(*known)).sum::<f64>().max(1.0)
    }

    fn loss(&self, parameters: &Tensors, batch: &Batch) -> anyhow::Result<f64> {
        let network = self.network(parameters)?;
        let hidden = network.lstm.forward((batch.chunks, self.settings.chunk_rows), &batch.input)?;
        let output = self.head(&network, &hidden);
        let terms = output.iter().zip(&batch.target).zip(&batch.known);
        let sum: f64 = terms.map(|((output, target), known)| f64::from(huber(target - output) * known)).sum();
        Ok(sum / batch.known.iter().map(|known| f64::from(*known)).sum::<f64>().max(1.0))
    }

    /// [rows, units] → [rows, outputs]
    fn head(&self, network: &Network, hidden: &[f32]) -> Vec<f32> {
        let (outputs, units) = (self.outputs(), self.settings.units);
        let rows = hidden.len() / units;
        let mut output = network.head_bias.repeat(rows);
        multiply(
            &mut output,
            (rows, outputs),
            (hidden, (rows, units), false),
            (&network.head_weight, (outputs, units), true),
            1.0,
        );
        output
    }

    fn descend(
        &self,
        progress: &mut Progress,
        batch: &Batch,
        tape: &mut Tape,
        gradients: &mut LstmGradients,
    ) -> anyhow::Result<()> {
        let (outputs, units) = (self.outputs(), self.settings.units);
        let rows = batch.chunks * self.settings.chunk_rows;
        let network = self.network(&progress.parameters)?;
        let hidden =
            network.lstm.forward_training((batch.chunks, self.settings.chunk_rows), &batch.input, tape)?.to_vec();
        let mut error = self.head(&network, &hidden);
        let share = 1.0 / batch.known.iter().sum::<f32>().max(1.0);
        for ((error, target), known) in error.iter_mut().zip(&batch.target).zip(&batch.known) {
            *error = (*error - target).clamp(-HUBER, HUBER) * known * share * outputs as f32;
        }
        let mut head_weight = vec![0.0; outputs * units];
        multiply(
            &mut head_weight,
            (outputs, units),
            (&error, (rows, outputs), true),
            (&hidden, (rows, units), false),
            0.0,
        );
        let mut head_bias = vec![0.0; outputs];
        for row in error.chunks_exact(outputs) {
            head_bias.iter_mut().zip(row).for_each(|(sum, error)| *sum += error);
        }
        let mut hidden_gradient = vec![0.0; rows * units];
        multiply(
            &mut hidden_gradient,
            (rows, units),
            (&error, (rows, outputs), false),
            (&network.head_weight, (outputs, units), false),
            0.0,
        );
        network.lstm.backward(&batch.input, &hidden_gradient, tape, gradients)?;
        let mut all: BTreeMap<String, &[f32]> =
            gradients.tensors().map(|(name, values)| (format!("lstm.{name}"), values)).collect();
        all.insert("head.weight".to_owned(), &head_weight);
        all.insert("head.bias".to_owned(), &head_bias);
        update(progress, &all, self.settings);
        Ok(())
    }

    fn save(&self, progress: &Progress, path: &Path) -> anyhow::Result<()> {
        let mut tensors = Tensors::new();
        let flat = |values: &Vec<f32>| NamedTensor { shape: vec![values.len()], values: values.clone() };
        for (name, tensor) in &progress.parameters {
            tensors.insert(format!("now.{name}"), tensor.clone());
            tensors.insert(format!("best.{name}"), progress.best[name].clone());
            tensors.insert(format!("first.{name}"), flat(&progress.first_moments[name]));
            tensors.insert(format!("second.{name}"), flat(&progress.second_moments[name]));
        }
        let state = vec![progress.step as f32, progress.best_loss as f32, progress.tries_since_best as f32];
        tensors.insert("state".to_owned(), flat(&state));
        super::publish::write_whole(path, &weights::write(&tensors)?)
    }

    fn resume(&self, progress: &mut Progress, path: &Path) -> anyhow::Result<()> {
        let tensors = weights::read(&std::fs::read(path)?)?;
        let state = weights::take(&tensors, "state", &[3])?;
        let mut resumed = Progress { step: state[0] as u32, best_loss: f64::from(state[1]), ..self.start()? };
        resumed.tries_since_best = state[2] as u32;
        for (name, parameter) in &mut resumed.parameters {
            parameter.values = weights::take(&tensors, &format!("now.{name}"), &parameter.shape)?.to_vec();
            let best = weights::take(&tensors, &format!("best.{name}"), &parameter.shape)?.to_vec();
            resumed.best.insert(name.clone(), NamedTensor { shape: parameter.shape.clone(), values: best });
            let length = [parameter.values.len()];
            let first = weights::take(&tensors, &format!("first.{name}"), &length)?.to_vec();
            let second = weights::take(&tensors, &format!("second.{name}"), &length)?.to_vec();
            resumed.first_moments.insert(name.clone(), first);
            resumed.second_moments.insert(name.clone(), second);
        }
        *progress = resumed;
        Ok(())
    }
}

fn huber(error: f32) -> f32 {
    let size = error.abs();
    if size <= HUBER { 0.5 * size * size } else { HUBER * (size - 0.5 * HUBER) }
}

/// A number from 0 to `count` − 1.
fn below(random: &mut ChaCha8Rng, count: usize) -> usize {
    (random.next_u64() % count.max(1) as u64) as usize
}

type Factor<'values> = (&'values [f32], (usize, usize), bool);

/// `output = left · right + keep · output`; a factor may be used transposed.
fn multiply(output: &mut [f32], shape: (usize, usize), left: Factor<'_>, right: Factor<'_>, keep: f32) {
    let (left, right) = (view(left), view(right));
    let mut output = ArrayViewMut2::from_shape(shape, output).expect("the output was made for this shape");
    general_mat_mul(1.0, &left, &right, keep, &mut output);
}

fn view<'values>((values, shape, is_transposed): Factor<'values>) -> ArrayView2<'values, f32> {
    let view = ArrayView2::from_shape(shape, values).expect("the factor was made for this shape");
    if is_transposed { view.reversed_axes() } else { view }
}

/// AdamW with a one-cycle rate: up over the first third, then down along a cosine.
fn update(progress: &mut Progress, gradients: &BTreeMap<String, &[f32]>, settings: &Settings) {
    let done = f64::from(progress.step) / f64::from(settings.steps.max(1));
    let rate = settings.rate
        * if done < 0.3 {
            0.04 + 0.96 * done / 0.3
        } else {
            0.5 * (1.0 + (std::f64::consts::PI * (done - 0.3) / 0.7).cos())
        };
    let length =
        gradients.values().flat_map(|values| values.iter()).map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let shrink = if length > GRADIENT_MAX { GRADIENT_MAX / length } else { 1.0 } as f32;
    let (first_decay, second_decay) = (0.9_f32, 0.999_f32);
    let step = progress.step as i32 + 1;
    let (first_bias, second_bias) = (1.0 - first_decay.powi(step), 1.0 - second_decay.powi(step));
    let keep = (1.0 - rate * WEIGHT_DECAY) as f32;
    for (name, parameter) in &mut progress.parameters {
        let (Some(gradient), Some(first), Some(second)) =
            (gradients.get(name), progress.first_moments.get_mut(name), progress.second_moments.get_mut(name))
        else {
            continue;
        };
        let moments = first.iter_mut().zip(second);
        for ((value, gradient), (first, second)) in parameter.values.iter_mut().zip(gradient.iter()).zip(moments) {
            let gradient = gradient * shrink;
            *first += (1.0 - first_decay) * (gradient - *first);
            *second += (1.0 - second_decay) * (gradient * gradient - *second);
            *value = *value * keep - rate as f32 * (*first / first_bias) / ((*second / second_bias).sqrt() + 1e-8);
        }
    }
}

/// Runs `body`, in which every training of this thread fails after so many steps, as if it had been killed.
#[cfg(test)]
pub fn interrupt_after(steps: u32, body: impl FnOnce()) {
    interruption::set(Some(steps));
    body();
    interruption::set(None);
}

#[cfg(test)]
mod interruption {
    use std::cell::Cell;

    thread_local!(static STEPS: Cell<Option<u32>> = const { Cell::new(None) });

    pub fn set(steps: Option<u32>) {
        STEPS.set(steps);
    }

    pub fn is_due(step: u32) -> bool {
        STEPS.get().is_some_and(|steps| step >= steps)
    }
}
