//! The cases of the benchmark: the same weights and the same input for everyone.
//!
//! What never enters: timing, and Python.

use std::collections::BTreeMap;

use anyhow::Context as _;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::rnn::{LSTMConfig, LSTMState, RNN as _, lstm};
use candle_nn::{AdamW, Linear, Module as _, Optimizer as _, ParamsAdamW, VarBuilder};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use stormglass::predict::document::TrainingSpan;
use stormglass::predict::fit::{Outline, Scales, finish};
use stormglass::predict::forecaster::Network;
use stormglass::predict::lstm::operator::TrainableLstm;
use stormglass::predict::lstm::{Lstm, LstmShape, LstmState};
use stormglass::predict::weights::{NamedTensor, Tensors};
use stormglass::predict::{Architecture, Model, NetworkKind, NodeScorer, Samples};

const FEATURES: usize = 38;
const UNITS: usize = 64;
const STEPS: usize = 60;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Hidden states of a whole window.
    Window,
    /// Forward, backward and AdamW, the loss on a linear head of the last step.
    Training,
    /// One more row for one sequence.
    Step,
}

type Call = Box<dyn FnMut() -> anyhow::Result<()>>;

/// One case.
pub struct Case {
    pub name: String,
    pub kind: Kind,
    pub layers: usize,
    pub batch: usize,
    pub steps: usize,
    /// Weights, input and expected hidden states, for the reference in Python.
    pub tensors: Tensors,
    pub ours: Call,
    pub candle: Call,
}

fn random(seed: u64) -> impl FnMut() -> f32 {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    move || (random.next_u32() >> 8) as f32 / (1 << 24) as f32
}

/// Every case: one and two layers, windows alone and in batches, training steps, and a streaming step.
pub fn all() -> anyhow::Result<Vec<Case>> {
    let mut cases = Vec::new();
    for layers in [1, 2] {
        for (kind, batch) in
            [(Kind::Window, 1), (Kind::Window, 256), (Kind::Training, 32), (Kind::Training, 256), (Kind::Step, 1)]
        {
            cases.push(case(kind, layers, batch).with_context(|| format!("{kind:?}, {layers} layers"))?);
        }
    }
    Ok(cases)
}

fn case(kind: Kind, layers: usize, batch: usize) -> anyhow::Result<Case> {
    let shape = LstmShape { features: FEATURES, units: UNITS, layers };
    let model = Lstm::from_random(shape, random(1))?;
    let steps = if kind == Kind::Step { 1 } else { STEPS };
    let mut uniform = random(2);
    let input: Vec<f32> = (0..batch * steps * FEATURES).map(|_| 2.0 * uniform() - 1.0).collect();
    let hidden = model.forward((batch, steps), &input)?;

    let mut tensors = Tensors::new();
    model.add_tensors(&mut tensors, "");
    let candle_model = CandleLstm::new(shape, &tensors)?;
    let window = Tensor::from_slice(&input, (batch, steps, FEATURES), &Device::Cpu)?;
    let theirs: Vec<f32> = candle_model.forward(&window)?.flatten_all()?.to_vec1()?;
    let difference = hidden.iter().zip(&theirs).fold(0.0_f32, |most, (ours, theirs)| most.max((ours - theirs).abs()));
    anyhow::ensure!(difference <= 1e-5, "candle's hidden states differ by {difference}");
    tensors.insert("input".to_owned(), NamedTensor { shape: vec![batch, steps, FEATURES], values: input.clone() });
    tensors.insert("hidden".to_owned(), NamedTensor { shape: vec![batch, steps, UNITS], values: hidden });

    let what = match kind {
        Kind::Window => format!("window {STEPS} × {FEATURES}, batch {batch}"),
        Kind::Training => format!("training step, batch {batch}"),
        Kind::Step => "streaming step".to_owned(),
    };
    let (ours, candle): (Call, Call) = match kind {
        Kind::Window => (
            Box::new(move || {
                std::hint::black_box(model.forward((batch, steps), &input)?);
                Ok(())
            }),
            Box::new(move || {
                std::hint::black_box(candle_model.forward(&window)?);
                Ok(())
            }),
        ),
        Kind::Training => {
            let trainable = TrainableLstm::new(&model, &Device::Cpu)?;
            let variables = trainable.variables();
            let candle_variables = candle_model.variables.values().cloned().collect();
            (
                training(window.clone(), variables, move |window| Ok(trainable.forward(window)?))?,
                training(window, candle_variables, move |window| candle_model.forward(window))?,
            )
        }
        Kind::Step => {
            let mut state = LstmState::new(&model);
            let row = window.squeeze(1)?;
            let mut states = candle_model.states()?;
            (
                Box::new(move || {
                    std::hint::black_box(model.step(&mut state, &input)?);
                    Ok(())
                }),
                Box::new(move || {
                    let mut below = row.clone();
                    for (layer, state) in candle_model.layers.iter().zip(&mut states) {
                        let next = layer.step(&below, state)?;
                        // A state that remembers how it came about grows with every step, and takes the stack when it is dropped.
                        *state = LSTMState::new(next.h().detach(), next.c().detach());
                        below = state.h().clone();
                    }
                    std::hint::black_box(below);
                    Ok(())
                }),
            )
        }
    };
    Ok(Case { name: format!("{layers} × {UNITS}, {what}"), kind, layers, batch, steps, tensors, ours, candle })
}

/// A training step on a linear head of the last step, with candle's loss and optimiser for everyone.
fn training(
    window: Tensor,
    mut variables: Vec<Var>,
    forward: impl Fn(&Tensor) -> anyhow::Result<Tensor> + 'static,
) -> anyhow::Result<Call> {
    let weight = Var::rand(-0.1_f32, 0.1, (FEATURES, UNITS), &Device::Cpu)?;
    let bias = Var::zeros(FEATURES, DType::F32, &Device::Cpu)?;
    variables.extend([weight.clone(), bias.clone()]);
    let head = Linear::new(weight.as_tensor().clone(), Some(bias.as_tensor().clone()));
    let (batch, steps, _) = window.dims3()?;
    let wanted = Tensor::rand(-1.0_f32, 1.0, (batch, FEATURES), &Device::Cpu)?;
    let mut optimiser = AdamW::new(variables, ParamsAdamW::default())?;
    Ok(Box::new(move || {
        let last = forward(&window)?.narrow(1, steps - 1, 1)?.squeeze(1)?;
        let loss = candle_nn::loss::mse(&head.forward(&last)?, &wanted)?;
        optimiser.backward_step(&loss)?;
        Ok(())
    }))
}

/// candle_nn's own LSTM, a layer at a time.
struct CandleLstm {
    layers: Vec<candle_nn::rnn::LSTM>,
    variables: BTreeMap<String, Var>,
}

impl CandleLstm {
    fn new(shape: LstmShape, tensors: &Tensors) -> anyhow::Result<Self> {
        let mut variables = BTreeMap::new();
        for (name, tensor) in tensors {
            let variable = Var::from_slice(&tensor.values, tensor.shape.as_slice(), &Device::Cpu)?;
            variables.insert(name.clone(), variable);
        }
        let map = variables.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().clone())).collect();
        let builder = VarBuilder::from_tensors(map, DType::F32, &Device::Cpu);
        let layers = (0..shape.layers)
            .map(|layer| {
                let config = LSTMConfig { layer_idx: layer, ..LSTMConfig::default() };
                lstm(shape.layer_features(layer), shape.units, config, builder.clone())
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { layers, variables })
    }

    fn forward(&self, window: &Tensor) -> anyhow::Result<Tensor> {
        let mut hidden = window.clone();
        for layer in &self.layers {
            hidden = layer.states_to_tensor(&layer.seq(&hidden)?)?;
        }
        Ok(hidden)
    }

    fn states(&self) -> anyhow::Result<Vec<LSTMState>> {
        Ok(self.layers.iter().map(|layer| layer.zero_state(1)).collect::<Result<_, _>>()?)
    }
}

/// What many nodes cost.
#[derive(Debug, Serialize, Deserialize)]
pub struct Nodes {
    pub nodes: usize,
    pub features: usize,
    pub layers: usize,
    pub units: usize,
    pub every_seconds: f64,
    /// Share of one core.
    pub core_ratio: f64,
    /// Of one sample of one node.
    pub sample_seconds: f64,
    /// By which the process grew when the scorers were made: pages that were free before are not in it.
    pub scorers_bytes: u64,
    /// Of the whole process, in which nothing else was measured: the program, the model and the scorers.
    pub resident_bytes: u64,
}

/// 1,000 nodes with 40 features, a sample each every 15 s: all that a sample costs, from its values to the risk and its reasons.
///
/// Memory is that of this process: it says what the scorers take only where nothing else was measured before.
pub fn nodes(layers: usize) -> anyhow::Result<Nodes> {
    let (nodes, features, every_seconds) = (1000, 40, 15.0);
    let model = random_model(features, layers)?;
    let mut uniform = random(4);
    let mut rows = |count: usize| {
        let mut samples = Samples::new(features);
        (0..count).for_each(|_| samples.push(&(0..features).map(|_| Some(uniform())).collect::<Vec<_>>()));
        samples
    };
    let history = rows(model.forecaster().settling_rows() as usize + 50);
    let before = resident_bytes()?;
    let mut scorers: Vec<NodeScorer> = (0..nodes).map(|_| NodeScorer::new(&model)).collect();
    scorers.iter_mut().for_each(|scorer| scorer.warm_up(&model, &history));
    let scorers_bytes = resident_bytes()?.saturating_sub(before);
    // The mean, not the least: what production pays includes cold caches.
    let rounds = 20;
    let news = rows(rounds);
    let mut row = Vec::new();
    let begin = super::processor_seconds();
    for round in 0..rounds {
        news.read(round, &mut row);
        for scorer in &mut scorers {
            let said = std::hint::black_box(scorer.push(&model, &row));
            anyhow::ensure!(said.risk.is_some(), "a scorer abstained: {:?}", said.abstains);
        }
    }
    let round_seconds = (super::processor_seconds() - begin) / rounds as f64;
    Ok(Nodes {
        nodes,
        features,
        layers,
        units: UNITS,
        every_seconds,
        core_ratio: round_seconds / every_seconds,
        sample_seconds: round_seconds / nodes as f64,
        scorers_bytes,
        resident_bytes: resident_bytes()?,
    })
}

/// A model of the shipped pipeline with random weights: what it says is of no use, what it costs is real.
fn random_model(features: usize, layers: usize) -> anyhow::Result<Model> {
    let names: Vec<String> = (0..features).map(|feature| format!("m{feature:02}")).collect();
    let horizons = vec![1, 10];
    let lstm = Lstm::from_random(LstmShape { features: 2 * features, units: UNITS, layers }, random(3))?;
    let outputs = horizons.len() * features;
    let mut uniform = random(5);
    let network = Network {
        lstm,
        head_weight: (0..outputs * UNITS).map(|_| 0.02 * (uniform() - 0.5)).collect(),
        head_bias: vec![0.0; outputs],
    };
    let mut samples = Samples::new(features);
    (0..400).for_each(|_| samples.push(&(0..features).map(|_| Some(uniform())).collect::<Vec<_>>()));
    let samples = [samples];
    let outline = Outline {
        name: "bench".to_owned(),
        version: "1".to_owned(),
        step_seconds: 15,
        horizon_seconds: 900,
        features: crate::pipeline::plain_features(&names),
        architecture: Architecture { network: NetworkKind::Lstm { layers, units: UNITS }, baseline_rows: 60, horizons },
        training: TrainingSpan::default(),
        data_sha256: String::new(),
    };
    let (document, weights) = finish(outline, &samples, &Scales::of(&samples), Some(network))?;
    Ok(Model::new(document, &weights)?)
}

fn resident_bytes() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in /proc/self/status")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").trim().parse().context("VmRSS is a number")?;
    Ok(kibibytes * 1024)
}
