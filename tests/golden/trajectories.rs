//! Twenty optimizer steps of each method, with the methods' own plugins.

use crate::data::{Golden, Layout, Source, difference, model_directory};
use crate::devices::On;
use serde_json::Value as Json;
use sparta_core::decoder;
use sparta_core::method::{Adaptation, IndexSet, options};
use sparta_core::model::{HeadKind, check_weights};
use sparta_core::plugin::{DiscoverOptions, PluginSet};
use sparta_core::train::graphs::names;
use sparta_core::train::layout::{self, size_of};
use sparta_core::train::{Batch, Encoded, HeadInit, Limits, Optimizer, Session, Setup};
use sparta_core::weights::{TensorFile, Weights};
use std::collections::BTreeMap;
use std::path::Path;

// The tolerances of the oracle's README.
const LOSS: f64 = 1e-4;
const PARAMETERS: f64 = 1e-5;
const GRADIENT_MAX: f64 = 2e-5;
const GRADIENT_L2: f64 = 5e-5;
/// Not in the table: relative, for norms of the size 1 to 20; the clip factor is made of the norm.
const NORM: f64 = 1e-4;
/// Not in the table: logits of the static batch after training, which depend on all parameters.
const LOGITS_AFTER: f64 = 1e-3;

/// Name in the golden data, method plugin, its options.
type Method = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const METHODS: [Method; 5] = [
    ("full", "full", &[]),
    ("lora", "lora", &[("lora-r", "8"), ("lora-alpha", "16"), ("lora-targets", "q,v")]),
    ("head", "head", &[]),
    ("sparta_adam", "sparta", &[("density", "0.05"), ("targets", "all")]),
    ("sparta_adamw", "sparta", &[("density", "0.05"), ("targets", "all")]),
];

/// How the four examples of a step are run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Steps {
    Whole,
    /// Two micro-batches of two examples, with the activations computed again in the backward pass.
    Split,
}

pub fn check(on: On, source: Source, steps: Steps) {
    if !on.is_present() {
        return;
    }
    let plugins = plugins();
    let mut failures = vec![];
    for family in ["gemma", "mistral"] {
        let layout = Layout { lm: false, f32: true, version_4: false };
        let model = model_directory(source, family, layout);
        for method in METHODS {
            let run = Run { on, source, family, steps, method: method.0 };
            let found = run.check(&plugins, model.path(), method);
            failures.extend(found.into_iter().map(|failure| format!("{family} {}: {failure}", method.0)));
        }
    }
    assert!(failures.is_empty(), "on {}, {} data:\n{}", on.name(), source.name(), failures.join("\n"));
}

/// The method plugins that `cargo build` has put beside the tests.
fn plugins() -> PluginSet {
    let exe = std::env::current_exe().expect("the path of this test");
    let beside = exe.ancestors().nth(2).expect("the build directory").to_owned();
    PluginSet::discover(&DiscoverOptions { beside: vec![beside], ..DiscoverOptions::default() })
}

struct Run<'a> {
    on: On,
    source: Source,
    family: &'a str,
    steps: Steps,
    method: &'a str,
}

impl Run<'_> {
    fn check(&self, plugins: &PluginSet, model: &Path, method: Method) -> Vec<String> {
        let golden = self.source.trajectories(self.family);
        let log = self.log();
        let weights = Weights::open(model).unwrap_or_else(|e| panic!("{e}"));
        let adaptation = adapt(plugins, model, &weights, &golden, method);
        let mut session = self.open(model, &weights, adaptation, &log);
        if self.method == "lora" {
            let mut start = session.trained_values().expect("values");
            for expected in golden.expectations("lora.init.") {
                start.insert(expected.name, expected.values);
            }
            session.set_trained_values(&start).expect("the start");
        }
        let mut failures = self.train(&mut session, &golden, &log);
        failures.extend(self.check_result(&mut session, &golden, &log));
        failures
    }

    fn log(&self) -> Json {
        let root = self.source.root().join(self.family);
        let read = |path: &Path| -> Json {
            let text = std::fs::read_to_string(path).expect("the log");
            serde_json::from_str(&text).expect("JSON")
        };
        if self.source == Source::Compact {
            return read(&root.join("train.json"))[self.method].clone();
        }
        let full = read(&root.join("train").join(self.method).join("log.json"));
        let mut log = full["optimizer"].clone();
        log["eval_logits_after"] = full["eval_logits_after"].clone();
        for key in ["loss", "grad_norm", "clip_coef"] {
            let steps = full["steps"].as_array().expect("steps");
            log[key] = steps.iter().map(|step| step[key].clone()).collect();
        }
        log
    }

    fn open(&self, model: &Path, weights: &Weights, adaptation: Adaptation, log: &Json) -> Session {
        let decoder = decoder::open(model).unwrap_or_else(|e| panic!("{e}"));
        let head = HeadKind::Classification { classes: decoder.labels.len() };
        let number = |key: &str| log[key].as_f64().expect("a number") as f32;
        let optimizer = Optimizer {
            weight_decay: number("weight_decay"),
            max_grad_norm: Some(number("max_grad_norm")),
            ..Optimizer::default()
        };
        let limits = Limits {
            train: Some(size_of(48, 4)),
            micro_batches: self.steps == Steps::Split,
            evaluate: size_of(48, 4),
            positions: 16,
            head_features: false,
            batch: 4,
        };
        let recompute = self.steps == Steps::Split;
        let setup = Setup {
            decoder,
            adaptation,
            head,
            optimizer,
            dropout: 0.0,
            seed: 0,
            head_init: HeadInit::Normal { std: 0.02 },
            limits,
            recompute,
        };
        let device = self.on.open();
        let arena = layout::plan_memory(&setup, device.info().in_place).expect("the plan").1;
        Session::open(device, weights, setup, arena).unwrap_or_else(|e| panic!("{e}"))
    }

    fn train(&self, session: &mut Session, golden: &Golden, log: &Json) -> Vec<String> {
        let mut failures = vec![];
        let lr = log["lr"].as_f64().expect("a number");
        let mut worst = [0f64; 3];
        for (step, examples) in stream(golden).chunks(4).enumerate() {
            let batches: Vec<Batch> = match self.steps {
                Steps::Whole => vec![Batch::pack(examples)],
                Steps::Split => examples.chunks(2).map(Batch::pack).collect(),
            };
            let output = session.step(&batches, lr).unwrap_or_else(|e| panic!("{e}"));
            let relative = |got: f64, key: &str| (got / log[key][step].as_f64().expect("a number") - 1.0).abs();
            let off = [
                (output.loss - log["loss"][step].as_f64().expect("a number")).abs(),
                relative(output.grad_norm, "grad_norm"),
                relative(output.clip_coef, "clip_coef"),
            ];
            for (i, (what, tolerance)) in
                [("loss", LOSS), ("gradient norm", NORM), ("clip factor", NORM)].iter().enumerate()
            {
                worst[i] = worst[i].max(off[i]);
                if off[i].is_nan() || off[i] > *tolerance {
                    failures.push(format!("{what} of step {}: off by {:.1e}", step + 1, off[i]));
                }
            }
            if step == 0 && self.steps == Steps::Split && self.method != "full" && self.method != "head" {
                for expected in golden.expectations(&format!("{}.grad.", self.method)) {
                    let name = names::grad_sum(&expected.name);
                    let elements = trained_len(session, &expected.name);
                    let got = session.tensors().read_f32(&name, elements).unwrap_or_else(|e| panic!("{e}"));
                    failures.extend(expected.check(&got, GRADIENT_MAX, GRADIENT_L2).err());
                }
            }
        }
        println!(
            "{} {} {}: loss, norm, clip {:.1e} {:.1e} {:.1e}",
            self.on.name(),
            self.family,
            self.method,
            worst[0],
            worst[1],
            worst[2]
        );
        failures
    }

    fn check_result(&self, session: &mut Session, golden: &Golden, log: &Json) -> Vec<String> {
        let mut failures = vec![];
        let values = session.trained_values().expect("values");
        let finals = golden.expectations(&format!("{}.final.", self.method));
        assert_eq!(values.len(), finals.len(), "trained tensors of {}", self.method);
        let mut off: Vec<f64> = vec![];
        for expected in finals {
            let got = values.get(&expected.name).unwrap_or_else(|| panic!("{} is not trained", expected.name));
            off.extend(expected.pairs(got).map(|(a, b)| difference(a, b)));
        }
        off.sort_by(f64::total_cmp);
        let (most, largest) = (off[(off.len() * 999).div_ceil(1000) - 1], off[off.len() - 1]);
        let lr = log["lr"].as_f64().expect("a number");
        if most.is_nan() || largest.is_nan() || most > PARAMETERS || largest > lr {
            failures.push(format!("parameters: 99.9 % within {most:.1e}, all within {largest:.1e}"));
        }
        let batch =
            TensorFile::open(self.source.root().join(self.family).join("batch.safetensors")).expect("the batch");
        let ids = batch.integers("input_ids").expect("ids").1;
        let lengths = batch.integers("lengths").expect("lengths").1;
        let (logits, _) =
            session.evaluate(&Batch::pack(&examples(&ids, &lengths, &[0; 3]))).unwrap_or_else(|e| panic!("{e}"));
        let expected =
            log["eval_logits_after"].as_array().expect("logits").iter().flat_map(|row| row.as_array().expect("a row"));
        let after = logits.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b.as_f64().expect("a number")).abs());
        let after = after.fold(0.0, crate::data::nan_max);
        if after.is_nan() || after > LOGITS_AFTER {
            failures.push(format!("logits after training: off by {after:.1e}"));
        }
        println!("  parameters: 99.9 % within {most:.1e}, all within {largest:.1e}; logits {after:.1e}");
        failures
    }
}

/// The method on the model, SpaRTA with the golden index sets.
fn adapt(
    plugins: &PluginSet,
    model: &Path,
    weights: &Weights,
    golden: &Golden,
    (_, name, given): Method,
) -> Adaptation {
    let method = plugins.method(name).unwrap_or_else(|e| panic!("{e}; `cargo build --release` makes the plugins"));
    let text = |(name, value): &(&str, &str)| (name.to_string(), options::Given::Text(value.to_string()));
    let given: BTreeMap<String, options::Given> = given.iter().map(text).collect();
    let options = options::check(method.info(), &given).unwrap_or_else(|e| panic!("{e}"));
    let decoder = decoder::open(model).unwrap_or_else(|e| panic!("{e}"));
    let head = HeadKind::Classification { classes: decoder.labels.len() };
    let parameters = check_weights(&decoder, weights, head).unwrap_or_else(|e| panic!("{e}"));
    let indices = |parameter: &sparta_plugin::method::Parameter, _: f64| {
        let chosen = golden.integers(&format!("indices.{}", parameter.name));
        let indices = chosen.into_iter().map(|i| i as u32).collect();
        Ok(IndexSet { tensor: parameter.name.clone(), numel: parameter.numel(), indices })
    };
    Adaptation::with_indices(method, parameters, options, indices).unwrap_or_else(|e| panic!("{e}"))
}

fn trained_len(session: &Session, name: &str) -> usize {
    let trained = session.setup().adaptation.trained();
    trained.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("{name} is not trained")).numel()
}

/// All examples of the stream, four per step.
fn stream(golden: &Golden) -> Vec<Encoded> {
    let integers = |name: &str| golden.integers(&format!("stream.{name}"));
    examples(&integers("input_ids"), &integers("lengths"), &integers("labels"))
}

/// Right-padded rows without their padding.
fn examples(ids: &[i64], lengths: &[i64], labels: &[i64]) -> Vec<Encoded> {
    let rows = ids.chunks(ids.len() / lengths.len());
    let example = |((row, &length), &label): ((&[i64], &i64), &i64)| Encoded {
        tokens: row[..length as usize].iter().map(|&id| id as u32).collect(),
        label: label as u32,
    };
    rows.zip(lengths).zip(labels).map(example).collect()
}
