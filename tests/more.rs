//! The methods of `plugins/more`: compares training runs with PEFT's, and merged weights with the forward pass.
//! `golden/more/make.py` makes the numbers. Methods in this file cover what else a method can declare. Needs `cargo
//! build --release` first.

use sparta_core::decoder;
use sparta_core::method::{Adaptation, options};
use sparta_core::model::check_weights;
use sparta_core::plugin::{DiscoverOptions, PluginSet};

use sparta_core::train::objective::{Classification, NextToken};
use sparta_core::train::score;
use sparta_core::train::{Batch, Encoded, Objective, Session, Setup, Target};
use sparta_core::weights::{TensorFile, Weights};
use sparta_plugin::Error;
use sparta_plugin::graph::Value;
use sparta_plugin::graph::ops::{Add, ColumnSum, Layout as Product, Linear, Mul, Scale, ScaleBy};
use sparta_plugin::method::*;
use sparta_suites::Subject;
use sparta_suites::golden::{Layout, Source, model_directory};
use sparta_tests::command::{command, json, ran, refused};
use sparta_tests::more::{self, LOSS, LR, VALUES, batches, merges, part};
use sparta_tests::{setup, subjects};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, LazyLock};

const METHODS: [&str; 10] =
    ["bitfit", "delta-dropout", "dora", "gradient-mask", "ia3", "lr-qat", "lt-sft", "magnitude", "sora", "vera"];

static LIBRARIES: LazyLock<PathBuf> = LazyLock::new(more::build);

fn library(method: &str) -> PathBuf {
    more::library(&LIBRARIES, method)
}

fn methods() -> PluginSet {
    let explicit = METHODS.into_iter().chain(["lora"]).map(library).collect();
    PluginSet::discover(&DiscoverOptions { explicit, ..DiscoverOptions::default() })
}

fn golden() -> TensorFile {
    more::golden("runs.safetensors")
}

/// A method on the classifier of a family.
fn setup(family: &str, plugin: Arc<dyn Method>, given: &[(&str, &str)]) -> (Setup, Weights) {
    setup_of(family, false, plugin, given)
}

/// A method on the classifier or the language model of a family.
fn setup_of(family: &str, lm: bool, plugin: Arc<dyn Method>, given: &[(&str, &str)]) -> (Setup, Weights) {
    let layout = Layout { lm, f32: true, version_4: false };
    let model = model_directory(&Source::compact(), family, layout);
    let weights = Weights::open(model.path()).unwrap();
    let decoder = decoder::open(model.path()).unwrap();
    let classes = decoder.labels.len();
    let objective: Arc<dyn Objective> = if lm { Arc::new(NextToken {}) } else { Arc::new(Classification { classes }) };
    let parameters = check_weights(&decoder, &weights, objective.head()).unwrap();
    let given: BTreeMap<_, _> =
        given.iter().map(|(name, value)| (name.to_string(), options::Given::Text(value.to_string()))).collect();
    let options = options::check("method", &plugin.describe().options, &given).unwrap();
    let adaptation = Adaptation::new(plugin, parameters, options, 7, &weights).unwrap();
    (setup::setup(decoder, adaptation, objective), weights)
}

/// Opens a session on the CPU.
fn open(setup: &Setup, weights: &Weights) -> Session {
    open_on(&mut subjects::cpu(None), setup, weights)
}

fn open_on(subject: &mut Subject, setup: &Setup, weights: &Weights) -> Session {
    setup::open(subject.open().unwrap(), weights, setup.clone())
}

fn session(family: &str, method: &str, given: &[(&str, &str)]) -> (Session, Weights) {
    let (setup, weights) = setup(family, methods().method(method).unwrap(), given);
    (open(&setup, &weights), weights)
}

/// Ten steps from the reference's start give its losses and values; the merged weights then give the same logits.
fn follows(family: &str, method: &str, options: &[(&str, &str)], own_start: &[&str]) {
    let (session, weights) = session(family, method, options);
    follows_from(session, &weights, method, own_start);
}

/// `run` is the name of the reference's run.
fn follows_from(mut session: Session, weights: &Weights, run: &str, own_start: &[&str]) {
    let golden = golden();
    let start = part(&golden, run, "init");
    let drawn = session.trained_values().unwrap();
    assert_eq!(drawn.keys().collect::<Vec<_>>(), start.keys().collect::<Vec<_>>(), "{run} trains the same tensors");
    // Initial values that are not random agree.
    for (name, values) in start.iter().filter(|(name, _)| own_start.iter().any(|own| name.ends_with(own))) {
        let off = values.iter().zip(&drawn[name]).map(|(a, b)| (a - b).abs() / a.abs().max(1.0)).fold(0.0, f32::max);
        assert!(off < 1e-6, "{run}: {name} begins {off} off");
    }
    session.set_trained_values(&start).unwrap();
    for (name, values) in part(&golden, run, "constant") {
        session.tensors().write_f32(&name, &values).unwrap();
    }
    let expected = golden.floats(&format!("{run}.losses")).unwrap().1;
    let batches = batches(&golden);
    for (step, (examples, expected)) in batches.iter().zip(expected).enumerate() {
        let batch = session.setup().objective.pack(examples).unwrap();
        let loss = session.step(&[batch], LR).unwrap().loss;
        assert!((loss - f64::from(expected)).abs() < LOSS, "{run}, step {step}: {loss}, the reference has {expected}");
    }
    let values = session.trained_values().unwrap();
    // All keys share their bias, and softmax hardly sees what all keys share: the gradients are so small that Adam
    // amplifies rounding. PyTorch's own runs in f32 and f64 end 1e-3 apart there, and 3e-7 elsewhere.
    for (name, expected) in part(&golden, run, "final").into_iter().filter(|(name, _)| !name.ends_with("k_proj.bias")) {
        let off = values[&name].iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < VALUES, "{run}: {name} ends {off} off");
    }
    merges(&mut session, weights, &batches[0]);
}

/// The elements with the highest scores, and their training, agree with the reference.
fn follows_by_score(subject: &mut Subject, method: &str, run: &str, options: &[(&str, &str)]) {
    let golden = golden();
    let share = golden.floats(&format!("{run}.share")).unwrap().1[0].to_string();
    let options = [options, &[("share", &share)]].concat();
    let (mut setup, weights) = setup("llama", methods().method(method).unwrap(), &options);
    assert!(Session::open(subjects::cpu(None).open().unwrap(), &weights, setup.clone(), &[1 << 24]).is_err());
    let score = setup.adaptation.scored().values().next().unwrap().score;
    let mut scoring = open_on(subject, &score::setup(&setup, score), &weights);
    for examples in batches(&golden).iter().take(score.count() as usize) {
        let batch = scoring.setup().objective.pack(examples).unwrap();
        scoring.step(&[batch], LR).unwrap();
    }
    setup.adaptation.choose(score, |p| score::scores(&mut scoring, &weights, score, p)).unwrap();
    let sets = setup.adaptation.index_sets();
    let expected = |name: &str| golden.integers(&format!("{run}.index.{name}")).unwrap().1;
    for (name, set) in &sets {
        let indices: Vec<i64> = set.indices.iter().map(|&i| i.into()).collect();
        assert_eq!(indices, expected(name), "{run}: {name}");
    }
    assert!(sets.values().map(|set| set.indices.len()).sum::<usize>() > 500);
    drop(scoring);
    follows_from(open_on(subject, &setup, &weights), &weights, run, &["score.weight"]);
}

#[test]
fn ia3_follows_peft() {
    follows("llama", "ia3", &[], &[".ia3"]);
}

/// Biases of keys and values are scaled, too.
#[test]
fn ia3_follows_peft_in_a_model_with_biases() {
    let (session, weights) = session("qwen2", "ia3", &[]);
    follows_from(session, &weights, "ia3-bias", &[".ia3"]);
}

/// LoRA+ together with rank stabilization.
#[test]
fn lora_s_options_follow_peft() {
    let options = [("lora-r", "4"), ("lora-alpha", "8"), ("lora-plus-ratio", "16"), ("lora-rs", "true")];
    follows("llama", "lora", &options, &[".lora_B"]);
}

/// Strong enough to close gates of SoRA within ten steps.
const CLOSING: [(&str, &str); 1] = [("sora-lambda", "10")];

#[test]
fn sora_follows_pytorch() {
    follows("llama", "sora", &CLOSING, &[".sora_B"]);
    let gates = part(&golden(), "sora", "final").into_iter().filter(|(name, _)| name.ends_with("gate"));
    let zeros = gates.flat_map(|(_, gate)| gate).filter(|&gate| gate == 0.0).count();
    assert!(zeros > 0, "no gate is closed");
}

#[test]
fn delta_dropout_follows_pytorch() {
    follows("llama", "delta-dropout", &[("delta-r", "4"), ("delta-alpha", "8")], &[".delta_B"]);
}

#[test]
fn lt_sft_follows_pytorch() {
    follows_by_score(&mut subjects::cpu(None), "lt-sft", "lt-sft", &[("first-steps", "5")]);
}

#[test]
fn masks_by_gradients_follow_pytorch() {
    for score in ["fisher", "snip"] {
        follows_by_score(&mut subjects::cpu(None), "gradient-mask", score, &[("score", score), ("score-batches", "3")]);
    }
}

/// A method's update and sums of scores are graph nodes that any backend can run.
#[test]
fn updates_and_scores_are_those_of_the_cpu_on_wgpu() {
    let Some(mut wgpu) = subjects::wgpu() else { return };
    let (setup, weights) = setup("llama", methods().method("sora").unwrap(), &CLOSING);
    follows_from(open_on(&mut wgpu, &setup, &weights), &weights, "sora", &[".sora_B"]);
    follows_by_score(&mut wgpu, "gradient-mask", "fisher", &[("score", "fisher"), ("score-batches", "3")]);
}

#[test]
fn dora_follows_peft() {
    follows("llama", "dora", &[("dora-r", "4"), ("dora-alpha", "8")], &[".dora_B", ".dora_magnitude"]);
}

#[test]
fn vera_follows_peft() {
    follows("llama", "vera", &[("vera-r", "8")], &[".vera_d", ".vera_b"]);
}

#[test]
fn bitfit_follows_pytorch() {
    follows("qwen2", "bitfit", &[], &[".bias", "score.weight"]);
}

#[test]
fn the_largest_weights_are_trained_alone() {
    let (session, weights) = session("llama", "magnitude", &[("share", "0.1"), ("whole-model", "true")]);
    let adaptation = &session.setup().adaptation;
    let (mut chosen, mut left) = (f32::INFINITY, 0.0f32);
    let (mut count, mut all) = (0, 0);
    for set in adaptation.index_sets().into_values() {
        let view = weights.get(&set.tensor).unwrap();
        let values = view.to_f32().unwrap();
        for (i, value) in values.iter().enumerate() {
            match set.indices.binary_search(&(i as u32)) {
                Ok(_) => chosen = chosen.min(value.abs()),
                Err(_) => left = left.max(value.abs()),
            }
        }
        count += set.indices.len();
        all += values.len();
    }
    assert_eq!(count, (all as f64 * 0.1).round() as usize);
    assert!(chosen >= left, "{chosen} is trained, {left} is not");
}

/// `plugin check` interrupts a run once its elements are chosen: one that is stopped before has nothing to resume.
#[test]
fn a_method_that_scores_passes_the_check_of_cancelling() {
    let home = tempfile::tempdir().unwrap();
    let check = format!("plugin check {} --test cancelling", library("gradient-mask").display());
    let (said, _) = ran(home.path(), &check);
    assert!(said.contains("1 tests"), "{said}");
}

/// Tensors that adapters do not store are the same in another process and after resuming.
#[test]
fn shared_and_frozen_tensors_follow_from_the_seed() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let plugin = library("vera").display().to_string();
    let options =
        "--max-train 64 --max-dev 8 --max-test 32 --device cpu --schedule constant --warmup 0 --seed 5 --lr 0.05";
    for (out, steps) in [("whole", 6), ("parts", 3)] {
        ran(
            home,
            &format!("run {options} --plugin {plugin} --method vera --vera-r 16 --max-steps {steps} --out {out}"),
        );
    }
    ran(home, "run --resume parts --max-steps 6");
    let adapter = |run: &str| fs::read(home.join(run).join("adapter/adapter.safetensors")).unwrap();
    assert!(adapter("whole") == adapter("parts"));
    let result = json(home.join("whole/result.json"));
    assert_eq!(result["merge_check"]["other_class"], 0);
    let (report, _) = ran(home, "eval whole --device cpu --json");
    let report: serde_json::Value = serde_json::from_str(report.lines().last().unwrap()).unwrap();
    assert_eq!(report["metrics"], result["test"]);
    ran(home, "adapter merge whole --out merged --device cpu");
}

/// A run by scores, resumed with its stored sets, gives the same bits as an uninterrupted one; every command reads the
/// adapter.
#[test]
fn chosen_elements_are_stored_with_run_and_adapter() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let plugin = library("lt-sft").display().to_string();
    let options = "--max-train 64 --max-dev 8 --max-test 32 --device cpu --schedule constant --warmup 0 --seed 5 --lr 0.01 \
                   --share 0.02 --first-steps 3";
    let method = format!("--plugin {plugin} --method lt-sft");
    let (plan, _) = ran(home, &format!("plan {options} {method} --json"));
    let plan: serde_json::Value = serde_json::from_str(plan.lines().last().unwrap()).unwrap();
    let scoring = &plan["scoring"][0];
    assert_eq!(scoring["score"], serde_json::json!({"change": {"steps": 3}}));
    for (out, steps) in [("whole", 6), ("parts", 3)] {
        let (out, log) = ran(home, &format!("run {options} {method} --max-steps {steps} --out {out}"));
        assert!(format!("{out}{log}").contains("scoring |change| in 3 steps"), "{out}{log}");
    }
    let (out, log) = ran(home, "run --resume parts --max-steps 6");
    assert!(!format!("{out}{log}").contains("scoring |change|"), "the sets are there already: {out}{log}");
    let read = |path: &str| fs::read(home.join(path)).unwrap();
    assert!(read("whole/chosen.safetensors") == read("parts/chosen.safetensors"));
    assert!(read("whole/adapter/adapter.safetensors") == read("parts/adapter/adapter.safetensors"));
    let planned = json(home.join("whole/plan.json"));
    let (body, elements) = (&planned["trainable"]["body"], scoring["elements"].as_u64().unwrap());
    assert_eq!(body.as_u64().unwrap(), (elements as f64 * 0.02).round() as u64, "of all layers together");
    let result = json(home.join("whole/result.json"));
    assert_eq!(result["merge_check"]["other_class"], 0);
    let (report, _) = ran(home, "eval whole --device cpu --json");
    let report: serde_json::Value = serde_json::from_str(report.lines().last().unwrap()).unwrap();
    assert_eq!(report["metrics"], result["test"]);
    ran(home, "adapter merge whole --out merged --device cpu");
    // Training all of the scored tensors takes more memory than the run itself.
    let small = "--share 0.02 --assume memory=3MiB";
    refused(home, &format!("plan {method} {small}"), &["scores before training, |change| in 100 steps", "3.0 MiB"]);
    ran(home, &format!("plan --plugin {} --method magnitude {small}", library("magnitude").display()));
}

/// Scales the queries by trained numbers s, with c / 2 |s|^2 in the loss; after a step each s is reduced by the
/// learning rate times itself.
struct Penalised;

sparta_plugin::options! {
    struct Penalties {
        /// Factor of the loss term
        c: f64 = 0.0, 0.0..=1.0;
        /// Shrink the scales after each step
        shrink: bool = false;
    }
}

impl Method for Penalised {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "penalised".into(),
            version: "1".into(),
            summary: String::new(),
            options: Penalties::declared(),
            default_lr: 0.1,
        }
    }

    fn select(&self, parameters: &[Parameter], _: &Options) -> Result<Vec<Selection>, Error> {
        let scale = |p: &Parameter| match p.role {
            Role::QProj => {
                let init = Init::Constant { value: 2.0 };
                Selection::Reparam { tensors: vec![ExtraTensor::new("s", [1, p.shape[0]], init)] }
            }
            _ => Selection::Frozen,
        };
        Ok(parameters.iter().map(scale).collect())
    }

    fn forward(&self, _: &Site, g: &mut dyn GraphBuilder, x: Value, w: Value, extra: &[Value]) -> Result<Value, Error> {
        let y = g.one(Linear::plain(Product::Nt), &[x, w])?;
        let row = g.one(ColumnSum {}, &[extra[0]])?;
        g.one(Mul {}, &[y, row])
    }

    fn mergeable(&self) -> bool {
        false
    }

    fn penalty(
        &self,
        site: &Site,
        g: &mut dyn GraphBuilder,
        _: Value,
        extra: &[Value],
    ) -> Result<Option<Value>, Error> {
        let half = Penalties::read(&site.options)?.c as f32 / 2.0;
        // [1, n] [1, n]^T = [1, 1]
        let squares = g.one(Linear { scale: half, ..Linear::plain(Product::Nt) }, &[extra[0], extra[0]])?;
        Ok(Some(g.one(ColumnSum {}, &[squares])?))
    }

    fn update(&self, site: &Site, g: &mut dyn GraphBuilder, extra: &[Value], lr: Value) -> Result<Vec<Value>, Error> {
        if !Penalties::read(&site.options)?.shrink {
            return Ok(extra.to_vec());
        }
        let part = g.one(ScaleBy {}, &[extra[0], lr])?;
        let part = g.one(Scale { factor: -1.0 }, &[part])?;
        Ok(vec![g.one(Add {}, &[extra[0], part])?])
    }
}

fn penalised(given: &[(&str, &str)]) -> Session {
    let (setup, weights) = setup("llama", Arc::new(Penalised), given);
    open(&setup, &weights)
}

#[test]
fn a_penalty_counts_once_in_a_step_and_never_in_an_evaluation() {
    let examples = &batches(&golden())[0];
    let (mut without, mut with) = (penalised(&[]), penalised(&[("c", "0.25")]));
    let whole = with.setup().objective.pack(examples).unwrap();
    let (plain, added) = (without.gradients(&whole).unwrap(), with.gradients(&whole).unwrap());
    let mut numbers = 0;
    for (name, plain) in &plain {
        for (a, b) in plain.iter().zip(&added[name]) {
            // The derivative of c / 2 s^2 at s = 2.
            assert!((b - a - 0.5).abs() < 1e-6, "{name}: {a} and {b}");
            numbers += 1;
        }
    }
    let term = 0.25 / 2.0 * 4.0 * f64::from(numbers);
    let parts = examples.chunks(1).map(|one| with.setup().objective.pack(one).unwrap()).collect::<Vec<_>>();
    let mut split = penalised(&[("c", "0.25")]);
    assert_eq!(with.evaluate(&whole).unwrap(), without.evaluate(&whole).unwrap());
    let plain = without.step(std::slice::from_ref(&whole), 0.01).unwrap();
    let [one, four] = [with.step(&[whole], 0.01).unwrap(), split.step(&parts, 0.01).unwrap()];
    for output in [one, four] {
        assert!((output.loss - plain.loss - term).abs() < 1e-4, "{output:?}, without {plain:?}, term {term}");
    }
    assert!((one.grad_norm - four.grad_norm).abs() < 1e-5, "{one:?} {four:?}");
    let (one, four) = (with.trained_values().unwrap(), split.trained_values().unwrap());
    for (name, values) in one {
        let off = values.iter().zip(&four[&name]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-5, "{name}: {off}");
    }
}

#[test]
fn a_method_s_update_follows_the_optimizer_s_and_is_left_out_with_it() {
    let examples = &batches(&golden())[0];
    let (mut plain, mut shrunk) = (penalised(&[]), penalised(&[("shrink", "true")]));
    let batch = plain.setup().objective.pack(examples).unwrap();
    let halves = examples.chunks(2).map(|half| plain.setup().objective.pack(half).unwrap()).collect::<Vec<_>>();
    let bad = Batch { weight: f32::INFINITY, ..batch.clone() };
    let before = shrunk.trained_values().unwrap();
    for bad in [vec![bad.clone()], vec![bad.clone(), bad]] {
        assert!(shrunk.step(&bad, 0.5).unwrap().clip_coef < 0.0);
        assert_eq!(shrunk.trained_values().unwrap(), before);
    }
    for batches in [vec![batch], halves] {
        plain.step(&batches, 0.5).unwrap();
        let expected: BTreeMap<_, Vec<f32>> = plain.trained_values().unwrap();
        let expected = expected.into_iter().map(|(name, s)| (name, s.iter().map(|s| s - s * 0.5).collect()));
        let expected: BTreeMap<String, Vec<f32>> = expected.collect();
        shrunk.step(&batches, 0.5).unwrap();
        assert_eq!(shrunk.trained_values().unwrap(), expected);
        plain.set_trained_values(&expected).unwrap();
    }
}

/// Replaces every parameter w by w + d with a trained d, or trains w itself.
struct Everything;

sparta_plugin::options! {
    struct Additions {
        /// Add to every parameter, which is itself frozen
        added: bool = false;
    }
}

impl Method for Everything {
    fn describe(&self) -> MethodInfo {
        MethodInfo {
            name: "everything".into(),
            version: "1".into(),
            summary: String::new(),
            options: Additions::declared(),
            default_lr: 0.1,
        }
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let Additions { added } = Additions::read(options)?;
        let choose = |p: &Parameter| match added {
            true => Selection::Reparam { tensors: vec![ExtraTensor::new("d", p.shape.clone(), Init::Zeros)] },
            false => Selection::Dense,
        };
        Ok(parameters.iter().map(choose).collect())
    }

    fn forward(&self, _: &Site, g: &mut dyn GraphBuilder, x: Value, w: Value, extra: &[Value]) -> Result<Value, Error> {
        let w = g.one(Add {}, &[w, extra[0]])?;
        g.one(Linear::plain(Product::Nt), &[x, w])
    }

    fn merge(&self, _: &Site, g: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        g.one(Add {}, &[w, extra[0]])
    }
}

/// A run killed during scoring scores again.
#[test]
fn a_kill_in_the_middle_of_scoring_is_survived() {
    let common = "--max-train 64 --max-dev 16 --max-test 16 --device cpu --seed 5 --lr 0.01 --max-steps 3";
    for (method, options) in
        [("gradient-mask", "--share 0.01 --score-batches 400"), ("lt-sft", "--share 0.01 --first-steps 400")]
    {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let plugin = library(method).display().to_string();
        let line = |out| format!("run {common} {options} --plugin {plugin} --method {method} --out {out}");
        ran(home, &line("alone"));
        let line = line("killed");
        let mut child = command(home, &line.split_whitespace().collect::<Vec<_>>())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The plan has a line of this name, too, which is padded.
        let scores = |line: &String| line.starts_with("scoring ") && !line.starts_with("scoring  ");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let scoring = lines.map_while(Result::ok).find(scores);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(scoring.is_some(), "{method} says when it scores");
        let at = |name: &str| home.join(name);
        assert!(at("killed/config.json").is_file(), "{method} was killed before it began");
        assert!(!at("killed/chosen.safetensors").exists(), "{method} had chosen before it was killed");
        ran(home, "run --resume killed");
        for file in ["chosen.safetensors", "metrics.jsonl", "adapter/adapter.safetensors", "adapter/adapter.json"] {
            let [a, b] = ["alone", "killed"].map(|run| fs::read(at(run).join(file)).unwrap());
            assert!(a == b, "{method}: {file} of the killed run differs");
        }
    }
}

/// For norms, biases, embeddings (tied or not) and heads, an addition has the parameter's gradient, and can be merged.
#[test]
fn every_parameter_is_a_site() {
    for (family, lm) in [("llama", true), ("qwen2", false), ("qwen2", true), ("gemma2", false), ("gemma2", true)] {
        let of = |added: &str| {
            let (setup, weights) = setup_of(family, lm, Arc::new(Everything), &[("added", added)]);
            (open(&setup, &weights), weights)
        };
        let ((mut whole, _), (mut added, weights)) = (of("false"), of("true"));
        let vocabulary = added.setup().decoder.vocab_size as u32;
        let tokens = |n: u32| (0..n).map(|i| (7 * i + n) % vocabulary).collect::<Vec<u32>>();
        let target = |n: u32| if lm { Target::Tokens(None) } else { Target::Class(n % 2) };
        let examples = [5, 9, 12].map(|n| Encoded { tokens: tokens(n), target: target(n) });
        let batch = added.setup().objective.pack(&examples).unwrap();
        let (expected, found) = (whole.gradients(&batch).unwrap(), added.gradients(&batch).unwrap());
        assert_eq!(expected.len(), found.len());
        for (name, expected) in &expected {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            let found = &found[&format!("{module}.d")];
            let size = expected.iter().fold(1e-3, |most: f32, x| most.max(x.abs()));
            let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-5 * size, "{family}, lm {lm}: the gradient of {name} is {off} off of {size}");
        }
        added.step(&[batch], 0.01).unwrap();
        merges(&mut added, &weights, &examples);
    }
}
