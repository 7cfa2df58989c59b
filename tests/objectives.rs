//! Every objective trains, evaluates, saves and resumes through the same code. Pre-training is a run like any other,
//! with any method, and its results are read and merged like those of classification.

use serde_json::json;
use sparta_core::adapter::{self, AppliedAdapter, ExportFormat, MergeDtype, MergeRequest, export, merge};
use sparta_core::checkpoint::{Checkpoint, Checkpoints, Position};
use sparta_core::decoder;
use sparta_core::job::{EvalReport, Observer, OptimizerOptions, PrecisionChoice, RunPlan, StepReport, Stopped};
use sparta_core::method::Adaptation;
use sparta_core::model::{HEAD, HeadKind, Precision, check_weights};
use sparta_core::run::{self, AdaptedModel, EvalRequest, PretrainConfig, Start, pretrain};
use sparta_core::train::evaluate::evaluate;
use sparta_core::train::graphs::Purpose;
use sparta_core::train::layout::{self, size_of};
use sparta_core::train::objective::{Classification, MultiLabel, NextToken, Regression};
use sparta_core::train::{
    Batch, Encoded, HeadInit, Metrics, Objective, Optimization, Session, SessionLimits, Setup, Target,
};
use sparta_core::weights::{Dtype, OutTensor, Weights, safetensors_dtype, save};
use sparta_graph::{Backend, DType};
use sparta_suites::Random;
use sparta_tests::subjects;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Optimizer steps on one batch.
const STEPS: usize = 12;

fn cpu() -> Box<dyn Backend> {
    Box::new(sparta_backend_cpu::Cpu::new(None).unwrap())
}

/// A small causal model with its tokenizer.
fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/model")
}

fn session(objective: Arc<dyn Objective>) -> Session {
    let decoder = decoder::open(&model()).unwrap();
    let weights = Weights::open(model()).unwrap();
    let parameters = check_weights(&decoder, &weights, objective.head()).unwrap();
    let setup = Setup {
        adaptation: Adaptation::whole(parameters),
        decoder,
        objective,
        optimization: Optimization { max_grad_norm: Some(1.0), ..Optimization::default() },
        dropout: 0.0,
        recompute: false,
        seed: 0,
        head_init: HeadInit::Normal { std: 0.01 },
        limits: SessionLimits {
            train: Some(size_of(96, 8)),
            micro_batches: true,
            shared: false,
            evaluate: size_of(96, 8),
            positions: 16,
            head_features: false,
            batch: 8,
            cache: None,
        },
    };
    let device = cpu();
    let arena = layout::plan_memory(&setup, &device.info()).unwrap().arena;
    Session::open(device, &weights, setup, &arena).unwrap()
}

/// Eight texts, whose targets depend on whether a token occurs.
fn examples(target: fn(bool, usize) -> Target) -> Vec<Encoded> {
    let mut random = Random::named("objectives");
    let example = |i: usize| {
        let mut tokens: Vec<u32> = (0..4 + i).map(|_| 10 + random.below(200) as u32).collect();
        tokens[i % 3] = if i.is_multiple_of(2) { 5 } else { 6 };
        let length = tokens.len();
        Encoded { tokens, target: target(i.is_multiple_of(2), length) }
    };
    (0..8).map(example).collect()
}

fn step(session: &mut Session, examples: &[Encoded]) -> f64 {
    let objective = session.setup().objective.clone();
    let batches: Vec<_> = examples.chunks(4).map(|part| objective.pack(part).unwrap()).collect();
    session.step(&batches, 1e-3).unwrap().loss
}

fn found(session: &mut Session, examples: &[Encoded]) -> Metrics {
    let objective = session.setup().objective.clone();
    let found = evaluate(session, examples, 48, None, |_, _| true).unwrap();
    objective.score(&[], examples, &found).unwrap()
}

/// The bits of all trained tensors and of the optimizer's state.
fn state(session: &mut Session) -> BTreeMap<String, Vec<u32>> {
    let tensors = session.state();
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    tensors.iter().map(|tensor| (tensor.name.clone(), bits(session.read_state(tensor).unwrap()))).collect()
}

/// An example with weight n counts like n copies.
#[test]
fn weights_of_micro_batches_are_those_of_their_losses() {
    let objective = Arc::new(Classification { classes: 2 });
    let examples = examples(|first, _| Target::Class(u32::from(first)));
    let pack = |part: &[Encoded], weight| Batch { weight, ..(&*objective as &dyn Objective).pack(part).unwrap() };
    let (a, b) = (&examples[..2], &examples[2..4]);
    let step = |batches: &[Batch]| session(objective.clone()).step(batches, 1e-3).unwrap();
    let weighted = step(&[pack(a, 1.0), pack(b, 2.0)]);
    let copied = step(&[pack(a, 1.0), pack(&[b, b].concat(), 1.0)]);
    // Four targets against six.
    for (weighted, copied) in [(weighted.loss, copied.loss), (weighted.grad_norm, copied.grad_norm)] {
        assert!((weighted - 1.5 * copied).abs() < 1e-5 * weighted, "{weighted} {copied}");
    }
    let (alone, half) = (step(&[pack(a, 1.0)]), step(&[pack(a, 0.5)]));
    assert!((half.loss - 0.5 * alone.loss).abs() < 1e-6, "{} {}", half.loss, alone.loss);
}

/// Trains with micro-batches: the loss of an evaluation is that of the step, and falls; a run resumed from a
/// checkpoint ends in the same bits.
fn learns(objective: impl Objective + 'static, target: fn(bool, usize) -> Target) -> Metrics {
    let (objective, examples): (Arc<dyn Objective>, _) = (Arc::new(objective), examples(target));
    let mut whole = session(objective.clone());
    let before = found(&mut whole, &examples);
    let directory = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(directory.path(), 1, BTreeMap::new());
    for at in 0..STEPS {
        if at == STEPS / 2 {
            let position = Position { step: at, ..Position::default() };
            let checkpoint = Checkpoint { position, updates: whole.optimizer_steps(), ..Checkpoint::default() };
            checkpoints.save(&checkpoint, &whole.state(), |tensor| whole.read_state(tensor)).unwrap();
        }
        let loss = step(&mut whole, &examples);
        assert!(at > 0 || (loss - before.loss).abs() < 1e-5 * before.loss, "{loss}, evaluated as {}", before.loss);
    }
    let mut resumed = session(objective);
    let (loaded, _) = checkpoints.load_newest(|_| Ok(())).unwrap().unwrap();
    resumed.set_state(loaded.checkpoint.updates, |tensor| loaded.values(tensor)).unwrap();
    for _ in STEPS / 2..STEPS {
        step(&mut resumed, &examples);
    }
    assert!(state(&mut whole) == state(&mut resumed));
    let after = found(&mut whole, &examples);
    assert!(after.loss < 0.5 * before.loss, "{} after {}", after.loss, before.loss);
    assert_eq!(after, found(&mut resumed, &examples));
    after
}

#[test]
fn one_of_several_classes() {
    let metrics = learns(Classification { classes: 3 }, |even, _| Target::Class(if even { 2 } else { 0 }));
    assert_eq!(metrics.scores["accuracy"], 1.0);
    assert_eq!(metrics.confusion.iter().flatten().sum::<u64>(), 8);
}

#[test]
fn any_number_of_labels_of_which_some_are_unknown() {
    let target = |even, length: usize| {
        let even = if even { 1.0 } else { 0.0 };
        Target::Numbers(vec![even, 1.0 - even, if length.is_multiple_of(3) { f32::NAN } else { 1.0 }])
    };
    let metrics = learns(MultiLabel { labels: 3 }, target);
    assert_eq!(metrics.scores.keys().collect::<Vec<_>>(), ["accuracy", "exact", "f1", "precision", "recall"]);
    assert_eq!(metrics.scores["accuracy"], 1.0);
}

#[test]
fn a_number() {
    let metrics = learns(Regression {}, |even, _| Target::Numbers(vec![if even { 1.5 } else { -0.5 }]));
    assert!(metrics.scores["pearson"] > 0.9, "{metrics:?}");
}

#[test]
fn the_next_token_of_answers_alone() {
    let metrics = learns(NextToken {}, |_, length| Target::Tokens(Some((0..length).map(|i| i >= 2).collect())));
    assert!((metrics.scores["perplexity"] - metrics.loss.exp()).abs() < 1e-9);
}

#[test]
fn a_target_of_a_different_kind_is_refused() {
    let objectives: [Arc<dyn Objective>; 3] =
        [Arc::new(Classification { classes: 2 }), Arc::new(MultiLabel { labels: 2 }), Arc::new(Regression {})];
    for objective in objectives {
        let text = Encoded { tokens: vec![1, 2], target: Target::Tokens(None) };
        let error = objective.pack([&text]).unwrap_err().to_string();
        assert!(error.contains(objective.name()), "{error}");
    }
    let error = Classification { classes: 2 }.batch(&[&Encoded::class(vec![1], 2)]).unwrap_err().to_string();
    assert!(error.contains("class 2, but there are 2"), "{error}");
}

// ---- pre-training

/// Stops the run after a number of steps, and keeps the evaluations.
struct Until {
    steps: usize,
    done: usize,
    losses: Vec<f64>,
    evaluated: Vec<EvalReport>,
}

impl Until {
    fn new(steps: usize) -> Until {
        Until { steps, done: 0, losses: vec![], evaluated: vec![] }
    }
}

impl Observer for Until {
    fn plan(&mut self, plan: &RunPlan) {
        assert!(plan.to_string().contains("up to 128 tokens"), "{plan}");
    }
    fn step(&mut self, report: &StepReport) {
        self.done += 1;
        self.losses.push(report.loss);
    }
    fn eval(&mut self, report: &EvalReport) {
        self.evaluated.push(report.clone());
    }
    fn eval_progress(&mut self, _: &str, _: usize, _: usize) {}
    fn message(&mut self, _: &str) {}
    fn stop_requested(&self) -> bool {
        self.done >= self.steps
    }
}

/// The configuration to pre-train a model of two narrow layers on sentences, in `home`.
fn pretraining(home: &Path) -> PretrainConfig {
    let directory = home.join("model");
    fs::create_dir_all(&directory).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(model().join(name), directory.join(name)).unwrap();
    }
    let text = fs::read_to_string(model().join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (key, value) in [("hidden_size", 32), ("intermediate_size", 48), ("num_hidden_layers", 2), ("head_dim", 16)] {
        config[key] = json!(value);
    }
    config["num_attention_heads"] = json!(2);
    config["num_key_value_heads"] = json!(2);
    fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let sentences = |from: usize, to: usize| -> String {
        let words = ["food", "film", "room", "staff", "story", "view"];
        (from..to).map(|i| format!("the {} was good and the {} was not .\n", words[i % 6], words[i * i % 5])).collect()
    };
    fs::create_dir_all(home.join("text")).unwrap();
    fs::write(home.join("text/train.txt"), sentences(0, 60)).unwrap();
    fs::write(home.join("text/dev.txt"), sentences(60, 75)).unwrap();
    PretrainConfig {
        model: directory,
        data: home.join("text"),
        method: "full".into(),
        method_options: BTreeMap::new(),
        epochs: 2,
        max_steps: None,
        batch_tokens: 128,
        micro_batch_tokens: None,
        lr: 3e-3,
        warmup: 0.1,
        weight_decay: 0.0,
        optimizer: OptimizerOptions::default(),
        max_length: 64,
        eval_interval: None,
        checkpoint_interval: 100,
        seed: 3,
        no_autotune: false,
        precision: PrecisionChoice::F32,
        dtype: DType::F32,
        out: home.join("whole"),
    }
}

const MODEL: &str = "model/model.safetensors";
const ADAPTER: &str = "adapter/adapter.safetensors";

fn bytes(config: &PretrainConfig, file: &str) -> Vec<u8> {
    fs::read(config.out.join(file)).unwrap()
}

#[test]
fn pretraining_is_evaluated_interrupted_and_resumed_exactly() {
    let home = tempfile::tempdir().unwrap();
    let plugins = subjects::methods();
    let open = || Ok(cpu());
    let base = pretraining(home.path());
    let mut observer = Until::new(usize::MAX);
    let result = pretrain(&base, &plugins, &open, Start::New, &mut observer).unwrap();
    assert_eq!((result.stopped, result.documents), (Stopped::Completed, 60));
    assert_eq!(observer.evaluated.len(), 2, "one per epoch");
    let perplexity = |report: &EvalReport| report.metrics.scores["perplexity"];
    assert!(perplexity(&observer.evaluated[1]) < perplexity(&observer.evaluated[0]));
    assert!(result.loss < observer.losses[0]);
    assert!(base.out.join("report.html").is_file());

    let split = PretrainConfig { out: home.path().join("split"), ..base.clone() };
    let stopped = pretrain(&split, &plugins, &open, Start::New, &mut Until::new(5)).unwrap();
    // The results of a step may be read after the next one has begun.
    assert!(stopped.stopped == Stopped::Interrupted && (5..=6).contains(&stopped.steps), "{stopped:?}");
    let again = pretrain(&split, &plugins, &open, Start::Resume, &mut Until::new(usize::MAX)).unwrap();
    assert_eq!((again.steps, again.loss), (result.steps, result.loss));
    assert!(bytes(&base, MODEL) == bytes(&split, MODEL), "the resumed model differs");
    let error = pretrain(&base, &plugins, &open, Start::New, &mut Until::new(1)).unwrap_err().to_string();
    assert!(error.contains("already holds a run"), "{error}");

    // Micro-batches add the same gradients in a different order.
    let micro = PretrainConfig { out: home.path().join("micro"), micro_batch_tokens: Some(40), ..base.clone() };
    let mut small = Until::new(usize::MAX);
    pretrain(&micro, &plugins, &open, Start::New, &mut small).unwrap();
    let far = |(a, b): (&f64, &f64)| (a - b).abs() > 1e-3 * b;
    assert!(!small.losses.iter().zip(&observer.losses).any(far), "{:?} {:?}", small.losses, observer.losses);
}

// ---- every method on text

/// The loss on held-out text of a run, an adapter or a model.
fn held_out(path: &Path, base: Option<&Path>, config: &PretrainConfig) -> f64 {
    let plugins = subjects::methods();
    let adapted = AdaptedModel::open(path, base, &plugins).unwrap();
    let (task, data) = (Some("text".to_owned()), Some(config.data.clone()));
    let request =
        EvalRequest { split: "dev".into(), head: None, task, data, task_options: BTreeMap::new(), max_examples: None };
    run::evaluate(&adapted, &request, &plugins, cpu(), |_, _| {}).unwrap().loss
}

#[test]
fn every_method_learns_text_and_its_adapter_is_resumed_evaluated_exported_and_merged() {
    let home = tempfile::tempdir().unwrap();
    let plugins = subjects::methods();
    let open = || Ok(cpu());
    let base = PretrainConfig { lr: 1e-2, ..pretraining(home.path()) };
    let file = base.model.join("config.json");
    let tied = fs::read_to_string(&file).unwrap();
    for (method, format) in [
        ("full", None),
        ("sparta", Some(ExportFormat::SparseDeltas)),
        ("lora", Some(ExportFormat::Peft)),
        ("head", None),
    ] {
        let config = PretrainConfig { method: method.into(), out: home.path().join(method), ..base.clone() };
        if method == "head" {
            let refused = pretrain(&config, &plugins, &open, Start::New, &mut Until::new(1)).unwrap_err().to_string();
            assert!(refused.contains("tie_word_embeddings"), "{refused}");
            fs::write(&file, tied.replace("\"tie_word_embeddings\":true", "\"tie_word_embeddings\":false")).unwrap();
        }
        let mut observer = Until::new(usize::MAX);
        let result = pretrain(&config, &plugins, &open, Start::New, &mut observer).unwrap();
        let losses: Vec<f64> = observer.evaluated.iter().map(|report| report.metrics.loss).collect();
        assert!(losses[1] < losses[0], "{method}: {losses:?}");

        let split = PretrainConfig { out: home.path().join(format!("{method}-split")), ..config.clone() };
        pretrain(&split, &plugins, &open, Start::New, &mut Until::new(3)).unwrap();
        pretrain(&split, &plugins, &open, Start::Resume, &mut Until::new(usize::MAX)).unwrap();
        for file in [ADAPTER, MODEL] {
            assert!(bytes(&config, file) == bytes(&split, file), "{method}: {file} of the resumed run differs");
        }

        let loss = result.dev.unwrap().loss;
        assert_eq!(held_out(&config.out, None, &config), loss, "{method}");
        // Weights are f32 and batches differ from the run's: only the order of additions changes.
        let close = |other: f64| assert!((other - loss).abs() < 1e-5 * loss, "{method}: {other}, in the run {loss}");
        close(held_out(&result.model, None, &config));
        let described = fs::read_to_string(result.model.join("config.json")).unwrap();
        assert!(described.contains("LlamaForCausalLM") && !described.contains("id2label"), "{described}");
        if let Some(format) = format {
            let out = home.path().join(format!("{method}-exported"));
            export(&AppliedAdapter::open(&config.out, None, &plugins).unwrap(), format, &out).unwrap();
            close(held_out(&out, Some(&config.out.join("start")), &config));
        }
    }
    let adapted = AdaptedModel::open(&home.path().join("lora"), None, &plugins).unwrap();
    let refused = adapted.predict(|| Ok(cpu()), &[("the food".into(), None)]).unwrap_err().to_string();
    assert!(refused.contains("next-token prediction, which does not classify"), "{refused}");
}

/// The embedded model with a head with this many outputs and this `problem_type`.
fn classifier(dir: &Path, outputs: usize, problem: Option<&str>) {
    fs::create_dir_all(dir).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(model().join(name), dir.join(name)).unwrap();
    }
    let text = fs::read_to_string(model().join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["id2label"] = (0..outputs).map(|i| (i.to_string(), json!(format!("label {i}")))).collect();
    config["problem_type"] = json!(problem);
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let weights = Weights::open(model()).unwrap();
    let parameters = decoder::open(&model()).unwrap().parameters(HeadKind::CausalLm);
    let mut tensors: Vec<OutTensor> = parameters
        .iter()
        .map(|p| {
            let view = weights.get(&p.name).unwrap();
            let (name, shape, bytes) = (p.name.clone(), p.shape.clone(), view.raw().into());
            OutTensor { name, dtype: safetensors_dtype(view.dtype), shape, bytes }
        })
        .collect();
    let head: Vec<u8> = (0..outputs * 96).flat_map(|i| (i as f32 * 1e-3).to_le_bytes()).collect();
    tensors.push(OutTensor { name: HEAD.into(), dtype: Dtype::F32, shape: vec![outputs, 96], bytes: head.into() });
    save(&dir.join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
}

#[test]
fn a_model_says_what_its_head_is_for_and_a_merged_one_says_so_again() {
    let home = tempfile::tempdir().unwrap();
    let plugins = subjects::methods();
    for (i, (outputs, problem, objective)) in [
        (3, None, "classification"),
        (3, Some("single_label_classification"), "classification"),
        (3, Some("multi_label_classification"), "multi-label classification"),
        (1, None, "regression"),
        (1, Some("regression"), "regression"),
    ]
    .into_iter()
    .enumerate()
    {
        let [from, out] = ["from", "out"].map(|name| home.path().join(format!("{name}{i}")));
        classifier(&from, outputs, problem);
        let head = &adapter::load(&from, None).unwrap().heads[0];
        assert_eq!((&*head.objective, head.labels.len()), (objective, outputs));
        let applied = AppliedAdapter::open(&from, None, &plugins).unwrap();
        let request = MergeRequest { out: out.clone(), dtype: MergeDtype::Keep, shard_bytes: 1 << 30 };
        merge(&applied, &request, cpu()).unwrap();
        assert_eq!(adapter::load(&out, None).unwrap().heads[0], *head);
    }
    let wrong = home.path().join("wrong");
    classifier(&wrong, 2, Some("ranking"));
    let error = adapter::load(&wrong, None).unwrap_err().to_string();
    assert!(error.contains("`problem_type` is \"ranking\", expected single_label_classification"), "{error}");
    assert_eq!(adapter::load(&model(), None).unwrap().heads[0].objective, "next-token prediction");
}

/// In bf16 the products of the vocabulary loss have operands of bf16: rounded hidden states, and the head's rounded
/// copy.
#[test]
fn the_vocabulary_loss_of_a_bf16_model_reads_bf16() {
    let decoder = decoder::open(&model()).unwrap();
    let parameters = check_weights(&decoder, &Weights::open(model()).unwrap(), HeadKind::CausalLm).unwrap();
    for trained in [true, false] {
        let parameters = parameters.clone();
        let mut adaptation = if trained { Adaptation::whole(parameters) } else { Adaptation::none(parameters) };
        adaptation.precision = Precision::BF16;
        let session = session(Arc::new(NextToken {}));
        let setup = Setup { adaptation, ..session.setup().clone() };
        let purpose = if trained { Purpose::Step(size_of(96, 8)) } else { Purpose::Evaluate(size_of(96, 8)) };
        let graph = setup.graphs().build(purpose).unwrap();
        let loss = graph.nodes().iter().find(|node| node.op.name() == "linear_cross_entropy").unwrap();
        let [hidden, weight] = [0, 1].map(|i| graph.ty(loss.inputs[i]).unwrap());
        assert_eq!((hidden.dtype, weight.dtype), (DType::BF16, DType::BF16));
        assert_eq!(loss.outputs.len() > 3, trained, "gradients come with the loss");
    }
}
