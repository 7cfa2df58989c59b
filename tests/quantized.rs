//! Weights that stay in blocks on the device: training and evaluation are bit-identical to those of the decoded model,
//! and matrices are decoded one at a time. Needs `cargo build --release` first.

use half::f16;
use serde_json::json;
use sparta_core::method::{Adaptation, TrainMode, options};
use sparta_core::model::{Arrangement, Precision};
use sparta_core::model::{Decoder, HeadKind, Quantize, Storage, TensorView, WeightSource, check_weights};
use sparta_core::train::layout::plan_memory;
use sparta_core::train::objective::{Classification, NextToken};
use sparta_core::train::{Encoded, MemoryKind, Objective, Session, SessionLimits, Setup, Target};
use sparta_graph::{Blocks, DType};
use sparta_suites::{Random, Subject};
use sparta_tests::command::{ran, refused};
use sparta_tests::setup;
use sparta_tests::subjects::{self, methods};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const LAYERS: usize = 2;

/// Weights of a Llama whose rows are whole blocks of all formats.
struct Model {
    decoder: Decoder,
    tensors: BTreeMap<String, (Storage, Vec<usize>, Vec<u8>)>,
    /// What floats are rounded to when they are read.
    quantize: Option<Quantize>,
    decoded: DType,
}

impl WeightSource for Model {
    fn origin(&self) -> String {
        "memory".into()
    }

    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let (stored, shape, bytes) = self.tensors.get(name)?;
        let view = TensorView::stored(*stored, shape, bytes, Arrangement::None);
        let rounded = self.quantize.and_then(|quantize| quantize.of(name, shape));
        Some(rounded.map_or(view, |blocks| view.rounded_to(blocks)).decoded_as(self.decoded))
    }
}

fn decoder(tied: bool) -> Decoder {
    let config = json!({
        "model_type": "llama", "vocab_size": 70, "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": tied, "hidden_act": "silu",
        "num_labels": 3,
    });
    Decoder::parse(Path::new("config.json"), config.as_object().unwrap()).unwrap()
}

/// Random values, with matrices in each of the formats in turn, or in bf16 if there are none.
fn model(tied: bool, head: HeadKind, formats: &[Blocks]) -> Model {
    let decoder = decoder(tied);
    let mut turn = formats.iter().cycle();
    let tensor = |p: sparta_plugin::method::Parameter| {
        let mut random = Random::named(&p.name);
        let n = p.numel() as usize;
        let (stored, bytes) = match (p.shape.len(), turn.next()) {
            (1, _) => (Storage::Plain(DType::F32), floats(DType::F32, (0..n).map(|_| 1.0 + 0.1 * random.normal()))),
            (_, Some(&blocks)) => (Storage::Blocks(blocks), random_blocks(blocks, n, &mut random)),
            (_, None) => (Storage::Plain(DType::BF16), floats(DType::BF16, (0..n).map(|_| 0.06 * random.normal()))),
        };
        (p.name, (stored, p.shape, bytes))
    };
    let parameters = decoder.parameters(head).into_iter().filter(|p| p.name != "score.weight");
    let tensors = parameters.map(tensor).collect();
    Model { decoder, tensors, quantize: None, decoded: DType::F32 }
}

fn floats(dtype: DType, values: impl Iterator<Item = f64>) -> Vec<u8> {
    sparta_core::model::from_f32(dtype, &values.map(|x| x as f32).collect::<Vec<_>>()).unwrap()
}

/// Blocks of numbers of about 0.1.
fn random_blocks(blocks: Blocks, elements: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..blocks.bytes_of(elements).unwrap()).map(|_| random.bits() as u8).collect();
    for block in bytes.chunks_exact_mut(blocks.bytes()) {
        let (at, d, m) = match blocks {
            Blocks::Q4_0 => (0, 0.03, None),
            Blocks::Q4_1 => (0, 0.02, Some(-0.15)),
            Blocks::Q5_0 => (0, 0.015, None),
            Blocks::Q5_1 => (0, 0.01, Some(-0.15)),
            Blocks::Q8_0 => (0, 0.002, None),
            Blocks::Q4K => (0, 0.0004, Some(0.003)),
            Blocks::Q5K => (0, 0.0002, Some(0.003)),
            Blocks::Q6K => (208, 0.0001, None),
        };
        let scale = |x: f64| f16::from_f64(x).to_le_bytes();
        block[at..at + 2].copy_from_slice(&scale(d * (0.5 + random.uniform())));
        if let Some(m) = m {
            block[2..4].copy_from_slice(&scale(m));
        }
    }
    bytes
}

struct Run<'a> {
    method: &'a str,
    options: &'a [(&'a str, &'a str)],
    precision: Precision,
    residual: bool,
    lm: bool,
}

/// The run of a method, with the blocks kept or all decoded beforehand.
fn setup_of(run: &Run, model: &Model, kept: bool) -> Setup {
    let objective: Arc<dyn Objective> =
        if run.lm { Arc::new(NextToken {}) } else { Arc::new(Classification { classes: 3 }) };
    let parameters = check_weights(&model.decoder, model, objective.head()).unwrap();
    let method = methods().method(run.method).unwrap();
    let given: BTreeMap<_, _> =
        run.options.iter().map(|(name, value)| (name.to_string(), options::Given::Text(value.to_string()))).collect();
    let options = options::check("method", &method.info().options, &given).unwrap();
    let mut adaptation = Adaptation::new(method, parameters, options, 7, model).unwrap();
    adaptation.precision = run.precision;
    if run.residual {
        adaptation.add_residual().unwrap();
    }
    if kept {
        adaptation.keep_blocks(|parameter| model.get(&parameter.name)?.blocks());
    }
    setup::setup(model.decoder.clone(), adaptation, objective)
}

fn open(subject: &mut Subject, model: &Model, setup: Setup) -> Session {
    setup::open(subject.open().unwrap(), model, setup)
}

fn examples(lm: bool) -> Vec<Encoded> {
    let mut random = Random::named("texts");
    let text = |(n, class): (usize, u32)| Encoded {
        tokens: (0..n).map(|_| random.below(70) as u32).collect(),
        target: if lm { Target::Tokens(None) } else { Target::Class(class) },
    };
    [(16, 0), (3, 1), (9, 2), (12, 0)].map(text).into()
}

/// Bits of gradients, of the losses of three steps, of outputs after them, and of what is trained then.
fn course(mut session: Session, lm: bool) -> Vec<(String, Vec<u32>)> {
    let batch = session.setup().objective.pack(&examples(lm)).unwrap();
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    let mut course: Vec<(String, Vec<u32>)> =
        session.gradients(&batch).unwrap().iter().map(|(name, g)| (format!("gradient of {name}"), bits(g))).collect();
    assert!(course.iter().any(|(_, gradient)| gradient.iter().any(|&bits| bits << 1 != 0)), "all gradients are zero");
    for _ in 0..3 {
        let loss = session.step(std::slice::from_ref(&batch), 1e-2).unwrap().loss;
        course.push(("loss".into(), bits(&[loss as f32])));
    }
    let (outputs, loss) = session.evaluate(&batch).unwrap();
    course.push(("outputs".into(), bits(&outputs)));
    course.push(("evaluated loss".into(), bits(&[loss as f32])));
    course.extend(session.trained_values().unwrap().iter().map(|(name, values)| (name.clone(), bits(values))));
    course
}

fn same(subject: &mut Subject, run: &Run, model: &Model) {
    let what = format!("{}: {} {}, residual {}, lm {}", subject.name, run.method, run.precision, run.residual, run.lm);
    let (kept, decoded) = (setup_of(run, model, true), setup_of(run, model, false));
    let held = (0..kept.adaptation.modes.len()).filter(|&i| kept.adaptation.blocks_of(i).is_some()).count();
    assert!(held >= 7 * LAYERS, "{what}: {held} weights in blocks");
    let mut session = open(subject, model, kept);
    let used = session.tensors().memory();
    let (ours, theirs) = (course(session, run.lm), course(open(subject, model, decoded), run.lm));
    assert_eq!(ours.len(), theirs.len());
    for ((name, ours), (also, theirs)) in ours.iter().zip(&theirs) {
        let different = ours.iter().zip(theirs).filter(|(a, b)| a != b).count();
        assert!(name == also && different == 0, "{what}: {different} of {} differ in {name}", ours.len());
    }
    assert!(used[&MemoryKind::Weights] > 0);
}

fn everywhere(run: Run, tied: bool) {
    let head = if run.lm { HeadKind::CausalLm } else { HeadKind::Classification { classes: 3 } };
    let mut model = model(tied, head, &Blocks::ALL);
    model.decoded = run.precision.activations;
    for subject in [Some(subjects::cpu(None)), subjects::wgpu()].iter_mut().flatten() {
        same(subject, &run, &model);
    }
}

const SPARTA: Run =
    Run { method: "sparta", options: &[("density", "0.05")], precision: Precision::F32, residual: false, lm: false };

#[test]
fn chosen_elements_of_blocks_are_trained_as_those_of_their_values() {
    everywhere(SPARTA, true);
    everywhere(Run { precision: Precision::BF16, ..SPARTA }, true);
    everywhere(Run { precision: Precision::BF16, residual: true, ..SPARTA }, true);
}

#[test]
fn language_models_too() {
    for tied in [false, true] {
        everywhere(Run { lm: true, ..SPARTA }, tied);
        everywhere(
            Run { lm: true, precision: Precision::BF16, method: "lora", options: &[("lora-r", "4")], ..SPARTA },
            tied,
        );
    }
}

#[test]
fn additions_to_layers_are_trained_beside_blocks() {
    for precision in [Precision::F32, Precision::BF16] {
        everywhere(Run { method: "lora", options: &[("lora-r", "4")], precision, ..SPARTA }, true);
        everywhere(Run { method: "head", options: &[], precision, ..SPARTA }, true);
    }
}

#[test]
fn floats_are_rounded_to_blocks_when_they_are_loaded() {
    for quantize in [Quantize::Q8_0, Quantize::Q4K] {
        let mut model = model(true, HeadKind::Classification { classes: 3 }, &[]);
        model.quantize = Some(quantize);
        same(&mut subjects::cpu(None), &SPARTA, &model);
        // As a file of these blocks.
        let view = model.get("model.layers.0.mlp.up_proj.weight").unwrap();
        let bytes = view.in_blocks().unwrap();
        let stored = Storage::Blocks(view.blocks().unwrap());
        let of_file = TensorView::stored(stored, view.shape, &bytes, Arrangement::None);
        assert_eq!(of_file.to_f32().unwrap(), view.to_f32().unwrap());
        assert_eq!(of_file.pick(&[1, 255, 256, 70_000]).unwrap(), view.pick(&[1, 255, 256, 70_000]).unwrap());
    }
}

/// The arena has room for one matrix more than without blocks, not for one of each layer; with layers computed again, too.
#[test]
fn one_matrix_of_scratch_serves_all() {
    let model = model(true, HeadKind::Classification { classes: 3 }, &Blocks::ALL);
    let device = subjects::cpu(None).open().unwrap().info();
    for method in [SPARTA, Run { method: "lora", options: &[("lora-r", "4")], ..SPARTA }] {
        for recompute in [false, true] {
            let arena = |kept| {
                let setup = Setup { recompute, ..setup_of(&method, &model, kept) };
                plan_memory(&setup, &device).unwrap().memory
            };
            let (kept, decoded) = (arena(true), arena(false));
            let largest = 4 * 256 * 512;
            let more = kept[&MemoryKind::Activations].saturating_sub(decoded[&MemoryKind::Activations]);
            assert!((1..=largest + 4096).contains(&more), "{}: {more} of {largest}", method.method);
            let numbers = 256 * (2 * 256 + 2 * 128 + 3 * 512) * LAYERS as u64 + 70 * 256;
            assert!(kept[&MemoryKind::Weights] < numbers, "{kept:?}: less than 8 bits a weight");
            assert!(decoded[&MemoryKind::Weights] > 4 * numbers);
        }
    }
}

#[test]
fn what_needs_the_whole_weight_is_refused_or_decoded() {
    let model = model(true, HeadKind::CausalLm, &[Blocks::Q5K]);
    let full = setup_of(&Run { method: "full", options: &[], lm: true, ..SPARTA }, &model, true).adaptation;
    let refusal = full.check_trainable().unwrap_err().to_string();
    for part in ["method `full` trains all of model.embed_tokens.weight", "(Q5_K)", "sparta, lora", "adapter merge"] {
        assert!(refusal.contains(part), "{refusal}");
    }
    let mut embeddings = setup_of(&Run { lm: true, ..SPARTA }, &model, true).adaptation;
    let table = embeddings.position("model.embed_tokens.weight").unwrap();
    assert!(embeddings.blocks_of(table).is_some());
    embeddings.check_trainable().unwrap();
    embeddings.modes[table] = TrainMode::Dense;
    assert!(embeddings.blocks_of(table).is_none());
}

/// A method that acts between steps reads the weight that products read.
#[test]
fn methods_read_the_values_of_blocks() {
    let model = model(true, HeadKind::Classification { classes: 3 }, &Blocks::ALL);
    let name = "model.layers.1.self_attn.v_proj.weight";
    let read = |kept| {
        let mut session = open(&mut subjects::cpu(None), &model, setup_of(&SPARTA, &model, kept));
        let batch = session.setup().objective.pack(&examples(false)).unwrap();
        session.step(std::slice::from_ref(&batch), 1e-2).unwrap();
        let position = session.setup().adaptation.position(name).unwrap();
        session.read_weight(position).unwrap()
    };
    assert_eq!(read(true), read(false));
}

/// Token by token, with cached keys and values.
#[test]
fn texts_are_written_from_blocks() {
    for tied in [true, false] {
        let model = model(tied, HeadKind::CausalLm, &Blocks::ALL);
        let written = |subject: &mut Subject, kept| {
            let run = Run { lm: true, method: "lora", options: &[("lora-r", "4")], ..SPARTA };
            let setup = Setup { limits: SessionLimits::generation(16), ..setup_of(&run, &model, kept) };
            let mut session = open(subject, &model, setup);
            let first = session.decode(&[3, 1, 4, 1, 5], 0).unwrap();
            let second = session.decode(&[9], 5).unwrap();
            [first, second].concat().into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        };
        for subject in [Some(subjects::cpu(None)), subjects::wgpu()].iter_mut().flatten() {
            let [kept, decoded] = [true, false].map(|kept| written(subject, kept));
            assert!(kept == decoded && kept.iter().any(|bits| bits << 1 != 0), "{}", subject.name);
        }
    }
}

#[test]
fn the_command_quantizes_trains_and_merges() {
    let home = tempfile::tempdir().unwrap();
    let run = "run --max-steps 3 --max-train 64 --max-dev 16 --max-test 16 --device cpu";
    for (i, options) in
        ["--method sparta --quantize q4_k", "--method lora --quantize q8_0 --precision bf16"].into_iter().enumerate()
    {
        let (out, err) = ran(home.path(), &format!("{run} {options} --out run{i}"));
        assert!((out + &err).contains("quantized weights stay quantized on the device: "), "{options}");
        // The adapter is compared with the merged model, whose weights are those that the blocks stand for.
        ran(home.path(), &format!("adapter merge run{i} --out merged{i} --dtype f32 --device cpu"));
        ran(home.path(), &format!("eval run{i} --split dev --device cpu"));
    }
    let parts =
        ["method `full` trains all of model.embed_tokens.weight, which is quantized (Q8_0)", "adapter merge MODEL"];
    refused(home.path(), &format!("{run} --method full --quantize q4_k --out full"), &parts);
}
