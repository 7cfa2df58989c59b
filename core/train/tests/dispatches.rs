//! How many launches a training step takes on a GPU, counted from the plans of a large model without its weights.

use sparta_graph::{DType, DeviceKind, Plan};
use sparta_kernels::{Bounds, Choosing, Memory, Step, View, lower};
use sparta_model::Decoder;
use sparta_model::method::Adaptation;
use sparta_plugin::Error;
use sparta_plugin::method::{Method, MethodInfo, Options, Parameter, Role, Selection};
use sparta_train::graphs::Purpose;
use sparta_train::objective::Classification;
use sparta_train::{HeadInit, Objective, Optimization, SessionLimits, Setup, Size};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

/// The configuration of google/gemma-2b.
const GEMMA_2B: &str = r#"{"model_type": "gemma", "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 2048,
    "intermediate_size": 16384, "max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 18,
    "num_key_value_heads": 1, "pad_token_id": 0, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
    "vocab_size": 256000}"#;

/// A random 5 % of every tensor except the embeddings, and the head.
struct Sparse;

impl Method for Sparse {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "sparse".into(),
            version: "1".into(),
            summary: "a random subset".into(),
            options: vec![],
            default_lr: 1e-5,
        }
    }

    fn select(&self, parameters: &[Parameter], _: &Options) -> Result<Vec<Selection>, Error> {
        let chosen = |p: &Parameter| match p.role {
            Role::Head => Selection::Dense,
            Role::Embedding | Role::LmHead => Selection::Frozen,
            _ => Selection::Sparse { probability: 0.0632 },
        };
        Ok(parameters.iter().map(chosen).collect())
    }
}

/// The setup of a step on 16 examples of 256 tokens.
fn setup() -> Setup {
    let config = serde_json::from_str(GEMMA_2B).expect("an object");
    let decoder = Decoder::parse(Path::new("config.json"), &config).expect("a configuration");
    let objective = Arc::new(Classification { classes: 2 });
    let mut parameters = decoder.parameters(objective.head());
    parameters.iter_mut().filter(|p| p.role == Role::Head).for_each(|p| p.dtype = DType::F32);
    let adaptation = Adaptation::expected(Arc::new(Sparse), parameters, Options::default()).expect("an adaptation");
    let size = Size { rows: 16 * 256, examples: 16 };
    Setup {
        head_init: HeadInit::Normal { std: 0.01 },
        decoder,
        adaptation,
        objective,
        optimization: Optimization::default(),
        dropout: 0.0,
        recompute: false,
        seed: 0,
        limits: SessionLimits {
            train: Some(size),
            micro_batches: false,
            shared: false,
            evaluate: size,
            positions: 256,
            head_features: false,
            batch: 16,
            cache: None,
        },
    }
}

/// Whether two bindings have bytes in common, which a browser refuses: all of them may be written to.
fn meet(a: &View, b: &View) -> bool {
    a.memory == b.memory && a.memory != Memory::Unused && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes
}

#[test]
fn a_sparse_step_of_gemma_2b() {
    let setup = setup();
    let size = setup.limits.train.expect("a size");
    let graph = setup.graphs().build(Purpose::Step(size)).expect("a graph");
    // The lowest limits among drivers for discrete GPUs.
    let limit = (1 << 31) - 256;
    let plan = Plan::in_segments(&graph, false, limit);
    let bounds = Bounds::new(DeviceKind::DiscreteGpu, limit);
    let mut steps: BTreeMap<&str, usize> = BTreeMap::new();
    for call in &plan.calls {
        let lowered = lower(call, bounds).unwrap_or_else(|e| panic!("{}: {e}", call.label));
        *steps.entry(call.op.name()).or_default() += lowered.steps.len();
        for step in &lowered.steps {
            let Step::Dispatch(dispatch) = step else { continue };
            let views = &dispatch.bindings;
            let meeting = views.iter().enumerate().find(|(i, view)| views[..*i].iter().any(|other| meet(view, other)));
            assert!(
                meeting.is_none(),
                "{} ({}): a binding overlaps another one: {views:?}",
                call.op.name(),
                call.label
            );
        }
    }
    let total: usize = steps.values().sum();
    println!("{total} steps in {} calls: {steps:?}", plan.calls.len());
    assert!(plan.arena_buffers().iter().all(|&bytes| bytes <= limit), "{:?}", plan.segments);
    assert!(total <= 1050, "{total} steps: {steps:?}");
}

/// What a first run measures: few products and few kernels, as compiling them takes most of the time, and little arithmetic.
#[test]
fn few_kernels_are_measured_for_gemma_2b() {
    let setup = setup();
    let size = setup.limits.train.expect("a size");
    let graph = setup.graphs().build(Purpose::Step(size)).expect("a graph");
    let limit = (1 << 31) - 256;
    let plan = Plan::in_segments(&graph, false, limit);
    let known = BTreeMap::new();
    let bounds = Bounds { unroll: 16, ..Bounds::new(DeviceKind::DiscreteGpu, limit) };
    let (mut questions, mut kernels, mut trials, mut flops) = (BTreeSet::new(), HashSet::new(), 0, 0);
    for call in &plan.calls {
        let lowered = lower(call, Bounds { choosing: Choosing::Measured(&known), ..bounds }).expect("a lowering");
        for question in lowered.questions.into_iter().filter(|question| questions.insert(question.name.clone())) {
            for trial in &question.trials {
                let lowered = lower(&trial.call, Bounds { choosing: Choosing::Only(&trial.choice), ..bounds });
                let steps = lowered.expect("a lowering").steps.into_iter();
                kernels.extend(steps.filter_map(|step| match step {
                    Step::Dispatch(dispatch) => Some(dispatch.kernel),
                    Step::Copy { .. } => None,
                }));
                trials += 1;
                flops += trial.call.flops();
            }
        }
    }
    println!(
        "{} questions, {trials} trials, {} kernels, {:.2} TFLOP: {questions:#?}",
        questions.len(),
        kernels.len(),
        flops as f64 * 1e-12
    );
    assert!((10..=30).contains(&questions.len()) && kernels.len() <= 40, "{questions:?}, {} kernels", kernels.len());
    assert!(flops <= 1_000_000_000_000, "{flops} operations in each round");
}
