//! Methods that act between steps: those of `plugins/more` against PEFT and PyTorch (`golden/more/acting.py` makes the
//! numbers), exact resuming, and a method of this file. Needs `cargo build --release` first.

use serde_json::Value as Json;
use sparta_core::decoder;
use sparta_core::method::{Adaptation, IndexSet, options};
use sparta_core::model::{HeadKind, check_weights};
use sparta_core::plugin::{DiscoverOptions, PluginSet};
use sparta_core::train::objective::Classification;
use sparta_core::train::{Encoded, Session, StepPoint};
use sparta_core::weights::{TensorFile, Weights};
use sparta_plugin::Error;
use sparta_plugin::graph::ops::{Linear, Mul, Transpose};
use sparta_plugin::graph::{self, Value};
use sparta_plugin::method::*;
use sparta_suites::golden::{Layout, Source, model_directory};
use sparta_tests::command::{command, json, ran};
use sparta_tests::more::{self, LOSS, LR, VALUES, batches, golden, merges, names, part};
use sparta_tests::{setup, subjects};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

const METHODS: [&str; 2] = ["adalora", "spiel"];

static LIBRARIES: LazyLock<PathBuf> = LazyLock::new(more::build);

fn library(method: &str) -> PathBuf {
    more::library(&LIBRARIES, method)
}

fn methods() -> PluginSet {
    let explicit = METHODS.map(library).to_vec();
    PluginSet::discover(&DiscoverOptions { explicit, ..DiscoverOptions::default() })
}

fn runs() -> TensorFile {
    golden("runs.safetensors")
}

/// A method on the classifier of a family, on the CPU.
fn session(family: &str, method: &str, given: &[(&str, &str)]) -> (Session, Weights) {
    session_from(family, method, given, None)
}

/// [`session`] with index sets from elsewhere.
fn session_from(
    family: &str,
    method: &str,
    given: &[(&str, &str)],
    first: Option<&BTreeMap<String, Vec<u32>>>,
) -> (Session, Weights) {
    open(family, |parameters, weights| {
        let plugin = methods().method(method).unwrap();
        let given: BTreeMap<_, _> =
            given.iter().map(|(name, value)| (name.to_string(), options::Given::Text(value.to_string()))).collect();
        let options = options::check(method, &plugin.info().options, &given).unwrap();
        let adaptation = match first {
            None => Adaptation::new(plugin, parameters, options, 7, weights),
            Some(first) => Adaptation::with_indices(plugin, parameters, options, |p| {
                Ok(IndexSet { tensor: p.name.clone(), numel: p.numel(), indices: first[&p.name].clone() })
            }),
        };
        adaptation.unwrap()
    })
}

fn open(family: &str, adapt: impl Fn(Vec<Parameter>, &Weights) -> Adaptation) -> (Session, Weights) {
    let layout = Layout { lm: false, f32: true, version_4: false };
    let model = model_directory(&Source::compact(), family, layout);
    let weights = Weights::open(model.path()).unwrap();
    let decoder = decoder::open(model.path()).unwrap();
    let classes = decoder.labels.len();
    let parameters = check_weights(&decoder, &weights, HeadKind::Classification { classes }).unwrap();
    let adaptation = adapt(parameters, &weights);
    let mut setup = setup::setup(decoder, adaptation, Arc::new(Classification { classes }));
    setup.limits.micro_batches = false;
    (setup::open(subjects::cpu(None).open().unwrap(), &weights, setup), weights)
}

/// The index sets of a part, by parameter.
fn sets(golden: &TensorFile, method: &str, part: &str) -> BTreeMap<String, Vec<u32>> {
    let indices = |name: &str| golden.integers(name).unwrap().1.iter().map(|&i| i as u32).collect();
    names(golden, method, part).map(|(name, own)| (own, indices(name))).collect()
}

/// Ten steps from the reference's start give its losses and values; the merged weights then give the same logits.
fn follows(session: &mut Session, weights: &Weights, golden: &TensorFile, method: &str, own_start: &[&str]) {
    let start = part(golden, method, "init");
    let drawn = session.trained_values().unwrap();
    assert_eq!(drawn.keys().collect::<Vec<_>>(), start.keys().collect::<Vec<_>>(), "{method} trains the same tensors");
    // What does not come from a random generator is the same from the beginning.
    for (name, values) in start.iter().filter(|(name, _)| own_start.iter().any(|own| name.ends_with(own))) {
        let off = values.iter().zip(&drawn[name]).map(|(a, b)| (a - b).abs() / a.abs().max(1.0)).fold(0.0, f32::max);
        assert!(off < 1e-6, "{method}: {name} begins {off} off");
    }
    session.set_trained_values(&start).unwrap();
    let expected = golden.floats(&format!("{method}.losses")).unwrap().1;
    let (batches, mut state) = (batches(&runs()), Json::Null);
    for (step, (examples, expected)) in batches.iter().zip(expected).enumerate() {
        let batch = session.setup().objective.pack(examples).unwrap();
        let output = session.step(std::slice::from_ref(&batch), LR).unwrap();
        let loss = output.loss;
        assert!((loss - f64::from(expected)).abs() < LOSS, "{method}, step {step}: {loss}, PEFT has {expected}");
        let step = step as u64 + 1;
        if session.setup().adaptation.steps.is_some_and(|steps| step.is_multiple_of(steps.every)) {
            let (total_steps, clip_coef, micro_batches) = (batches.len() as u64, output.clip_coef, &[batch][..]);
            let point = StepPoint { step, total_steps, clip_coef, micro_batches, state: &state, weights };
            state = session.on_step(&point).unwrap();
        }
    }
    for (name, indices) in sets(golden, method, "last") {
        let set = &session.setup().adaptation.index_sets()[&*name].indices;
        assert!(*set == indices, "{method}: different elements of {name} are trained at the end");
    }
    let values = session.trained_values().unwrap();
    for (name, expected) in part(golden, method, "final") {
        let off = values[&name].iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < VALUES, "{method}: {name} ends {off} off");
    }
    merges(session, weights, &batches[0]);
}

/// Importance, allocations and masks: a different choice of ranks would give values far off.
#[test]
fn adalora_follows_peft() {
    let options = [
        ("init-r", "6"),
        ("target-r", "3"),
        ("adalora-alpha", "8"),
        ("tinit", "2"),
        ("tfinal", "2"),
        ("delta-t", "2"),
        ("ipt-beta2", "0.8"),
        ("orth-weight", "0.0625"),
    ];
    let (mut session, weights) = session("llama", "adalora", &options);
    follows(&mut session, &weights, &golden("acting.safetensors"), "adalora", &["lora_E"]);
}

/// Three exchanges of elements, with the state of those that stay.
#[test]
fn spiel_follows_its_definition() {
    let golden = golden("acting.safetensors");
    let options = [("every", "3"), ("rate", "0.3"), ("density", "0.05")];
    let (mut session, weights) = session_from("llama", "spiel", &options, Some(&sets(&golden, "spiel", "first")));
    follows(&mut session, &weights, &golden, "spiel", &[]);
}

/// Trains elements of v, and gates the rows of q with values that it sets itself.
struct Gate;

impl Method for Gate {
    fn describe(&self) -> MethodInfo {
        let (name, version, summary) = ("gate".into(), "1".into(), String::new());
        MethodInfo { name, version, summary, options: vec![], default_lr: 0.1 }
    }

    fn select(&self, parameters: &[Parameter], _: &Options) -> Result<Vec<Selection>, Error> {
        let gate = |out| ExtraTensor::new("gate", [out], Init::Constant { value: 1.0 }).frozen();
        let choose = |p: &Parameter| match p.role {
            Role::Head => Selection::Dense,
            Role::VProj => Selection::Sparse { probability: 0.1 },
            Role::QProj => Selection::Reparam { tensors: vec![gate(p.shape[0])] },
            _ => Selection::Frozen,
        };
        Ok(parameters.iter().map(choose).collect())
    }

    fn forward(
        &self,
        _: &Site,
        graph: &mut dyn GraphBuilder,
        x: Value,
        w: Value,
        extra: &[Value],
    ) -> Result<Value, Error> {
        let y = graph.one(Linear::plain(graph::ops::Layout::Nt), &[x, w])?;
        graph.one(Mul {}, &[y, extra[0]])
    }

    fn merge(&self, _: &Site, graph: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        let columns = graph.one(Transpose {}, &[w])?;
        let gated = graph.one(Mul {}, &[columns, extra[0]])?;
        graph.one(Transpose {}, &[gated])
    }

    fn steps(&self, _: &Options) -> Result<Option<Steps>, Error> {
        Ok(Some(Steps { every: 1, gradients: true, whole_gradients: true }))
    }

    /// After a step that changed nothing, the gradient of its elements is that of the whole weight there.
    fn on_step(&self, step: &StepInfo, tensors: &mut dyn StepTensors) -> Result<Json, Error> {
        let mut off = 0f32;
        for tensor in &step.tensors {
            match tensor.form {
                OwnForm::Sparse => {
                    let (gradient, indices) = (tensors.gradient(&tensor.name)?, tensors.indices(&tensor.name)?);
                    let whole = tensors.whole_gradient(&tensor.name)?;
                    assert_eq!((whole.len() as u64, gradient.len()), (tensor.parameter.numel(), indices.len()));
                    let size = whole.iter().fold(0f32, |a, b| a.max(b.abs()));
                    assert!(size > 0.0);
                    let pairs = indices.iter().zip(&gradient).map(|(&i, g)| (whole[i as usize] - g).abs() / size);
                    off = pairs.fold(off, f32::max);
                    // The next elements, if they are free, with changes that it sets itself.
                    let moved: BTreeSet<u32> = indices.iter().map(|&i| (i + 1).min(whole.len() as u32 - 1)).collect();
                    if moved.len() == indices.len() {
                        tensors.replace(&tensor.name, &moved.into_iter().collect::<Vec<_>>())?;
                        tensors.set(&tensor.name, &vec![0.25; indices.len()])?;
                    }
                }
                OwnForm::Frozen => {
                    let last = tensors.values(&tensor.name)?;
                    tensors.set(&tensor.name, &vec![last[0] / 2.0; last.len()])?;
                    assert!(tensors.whole_gradient(&tensor.parameter.name)?.iter().any(|g| *g != 0.0));
                }
                _ => assert!(tensors.whole_gradient(&tensor.name).is_err(), "all of the head is trained"),
            }
        }
        Ok(off.into())
    }
}

/// Gradients of elements and of whole weights agree, also over micro-batches; what a method has set and replaced is in
/// the model, and in another session that restores its state.
#[test]
fn changes_between_steps_are_in_the_model_and_its_state() {
    let adapt = |parameters, weights: &Weights| {
        Adaptation::new(Arc::new(Gate), parameters, Options::new(), 7, weights).unwrap()
    };
    let all = batches(&runs());
    for parts in [1, 2] {
        let (mut session, weights) = open("llama", adapt);
        let pack = |session: &Session, examples: &[Encoded]| session.setup().objective.pack(examples).unwrap();
        let micro_batches: Vec<_> = all[0].chunks(4 / parts).map(|examples| pack(&session, examples)).collect();
        let before = session.evaluate(&micro_batches[0]).unwrap();
        session.step(&micro_batches, 0.0).unwrap();
        let (state, micro_batches) = (Json::Null, &micro_batches[..]);
        // As if nothing had been clipped.
        let point =
            StepPoint { step: 1, total_steps: 2, clip_coef: 1.0, micro_batches, state: &state, weights: &weights };
        let off = session.on_step(&point).unwrap();
        assert!(off.as_f64().unwrap() < 1e-5, "{off}");

        let sets = session.setup().adaptation.changed_indices();
        for (name, set) in &sets {
            let view = weights.get(name).unwrap();
            let mut expected = view.to_f32().unwrap();
            let first = &open("llama", adapt).0.setup().adaptation.changed_indices()[name];
            assert!(first != set, "{name}");
            set.iter().for_each(|&i| expected[i as usize] += 0.25);
            assert_eq!(session.tensors().read_floats(name).unwrap(), expected, "{name}");
        }
        let snapshot = session.snapshot().unwrap();
        let gates = snapshot.values.iter().filter(|(name, _)| name.ends_with(".gate"));
        assert!(gates.clone().count() > 0 && gates.flat_map(|(_, gate)| gate).all(|&gate| gate == 0.5));
        let after = session.evaluate(&micro_batches[0]).unwrap();
        assert!(after != before);
        let (mut other, weights) = open("llama", adapt);
        other.restore(&weights, &snapshot).unwrap();
        assert_eq!(other.evaluate(&micro_batches[0]).unwrap(), after);
        let wrong = BTreeMap::from([("model.norm.weight".to_owned(), vec![1])]);
        let message = other.set_indices(&weights, &wrong).unwrap_err().to_string();
        assert!(message.contains("model.norm.weight, but none of its elements are trained"), "{message}");
    }
}

/// Index sets, masks and state of methods that act between steps are in checkpoints, and in adapters as they were at
/// the best step.
#[test]
fn what_methods_do_between_steps_survives_a_kill() {
    let common = "--max-train 64 --max-dev 16 --max-test 32 --device cpu --schedule constant --warmup 0 --seed 5 --lr 0.05 \
                  --max-steps 8 --eval-interval 3 --patience 9 --checkpoint-interval 1 --keep-checkpoints 1";
    let methods = [
        ("spiel", "--every 2 --rate 0.5 --density 0.05 --micro-batch-tokens 128"),
        ("spiel", "--every 3 --rate 0.5 --density 0.05 --optimizer adamw-bf16 --precision bf16"),
        ("adalora", "--init-r 4 --target-r 2 --delta-t 2 --tfinal 2"),
    ];
    for (method, options) in methods {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let plugin = library(method).display().to_string();
        let line = |out| format!("run {common} {options} --plugin {plugin} --method {method} --out {out}");
        ran(home, &line("alone"));
        let line = line("killed");
        let mut child = command(home, &line.split_whitespace().collect::<Vec<_>>())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let fifth = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with("step-00000005");
        while child.try_wait().unwrap().is_none() {
            let mut entries = fs::read_dir(home.join("killed/checkpoints")).into_iter().flatten().flatten();
            if entries.any(fifth) {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        ran(home, "run --resume killed");
        for file in ["metrics.jsonl", "adapter/adapter.safetensors", "adapter/adapter.json"] {
            let [a, b] = ["alone", "killed"].map(|run| fs::read(home.join(run).join(file)).unwrap());
            assert!(a == b, "{method} {options}: {file} of the killed run differs");
        }
        let result = json(home.join("alone/result.json"));
        assert_eq!(result["merge_check"]["other_class"], 0, "{method}");
        // Elements were exchanged after the state that was kept.
        assert!(!options.starts_with("--every 2") || result["best_step"].as_u64() < Some(6), "{}", result["best_step"]);
        let (report, _) = ran(home, "eval alone --device cpu --json");
        let report: Json = serde_json::from_str(report.lines().last().unwrap()).unwrap();
        assert_eq!(report["metrics"], result["test"], "{method} {options}");
        ran(home, "adapter merge alone --out merged --device cpu");
        ran(home, "adapter info alone");
    }
}
