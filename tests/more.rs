//! The methods of `plugins/more`: training runs against PEFT's, and merged weights against the forward pass. `golden/more/make.py`
//! makes the numbers. Needs `cargo build --release` before.

use sparta_core::adapter::{MergeDtype, check_examples, check_merged, merged_tensor};
use sparta_core::decoder;
use sparta_core::method::{Adaptation, options};
use sparta_core::model::{HeadKind, check_weights};
use sparta_core::plugin::{DiscoverOptions, PluginSet};
use sparta_core::train::layout::{self, size_of};
use sparta_core::train::objective::Classification;
use sparta_core::train::{Encoded, HeadInit, Limits, Optimization, Session, Setup};
use sparta_core::weights::{TensorFile, Weights};
use sparta_suites::golden::{Layout, Source, model_directory};
use sparta_tests::command::{binary, json, ran};
use sparta_tests::subjects;
use std::collections::BTreeMap;
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};

const LR: f64 = 5e-3;
/// Of losses between 0.4 and 3; PyTorch and this program each add up in f32, ten steps of Adam apart.
const LOSS: f64 = 1e-4;
/// Of values that moved by up to ten times the rate.
const VALUES: f32 = 2e-4;

const METHODS: [&str; 5] = ["bitfit", "dora", "ia3", "magnitude", "vera"];

/// Where the libraries are, which the build leaves out unless they are asked for.
static LIBRARIES: LazyLock<PathBuf> = LazyLock::new(|| {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--locked", "--quiet"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    for method in METHODS {
        build.args(["-p", &format!("sparta-method-{method}")]);
    }
    assert!(build.status().unwrap().success());
    binary().parent().unwrap().to_owned()
});

fn library(method: &str) -> PathBuf {
    LIBRARIES.join(format!("{DLL_PREFIX}sparta_method_{method}{DLL_SUFFIX}"))
}

fn methods() -> PluginSet {
    let explicit = METHODS.map(library).to_vec();
    PluginSet::discover(&DiscoverOptions { explicit, ..DiscoverOptions::default() })
}

fn golden() -> TensorFile {
    TensorFile::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/more/runs.safetensors")).unwrap()
}

/// A method on the classifier of a family, on the CPU.
fn session(family: &str, method: &str, given: &[(&str, &str)]) -> (Session, Weights) {
    let layout = Layout { lm: false, f32: true, version_4: false };
    let model = model_directory(&Source::compact(), family, layout);
    let weights = Weights::open(model.path()).unwrap();
    let decoder = decoder::open(model.path()).unwrap();
    let classes = decoder.labels.len();
    let parameters = check_weights(&decoder, &weights, HeadKind::Classification { classes }).unwrap();
    let plugin = methods().method(method).unwrap();
    let given: BTreeMap<_, _> =
        given.iter().map(|(name, value)| (name.to_string(), options::Given::Text(value.to_string()))).collect();
    let options = options::check(method, &plugin.info().options, &given).unwrap();
    let adaptation = Adaptation::new(plugin, parameters, options, 7, &weights).unwrap();
    let limits = Limits {
        train: Some(size_of(64, 4)),
        micro_batches: false,
        evaluate: size_of(64, 4),
        positions: 16,
        head_features: false,
        batch: 4,
        cache: None,
    };
    let setup = Setup {
        decoder,
        adaptation,
        objective: Arc::new(Classification { classes }),
        optimization: Optimization { max_grad_norm: Some(1.0), ..Optimization::default() },
        dropout: 0.0,
        seed: 7,
        head_init: HeadInit::Normal { std: 0.02 },
        limits,
        recompute: false,
    };
    let device = subjects::cpu(None).open().unwrap();
    let arena = layout::plan_memory(&setup, &device.info()).unwrap().arena;
    (Session::open(device, &weights, setup, &arena).unwrap(), weights)
}

fn batches(golden: &TensorFile) -> Vec<Vec<Encoded>> {
    let integers = |name: &str| golden.integers(name).unwrap().1;
    let (tokens, lengths, labels) = (integers("tokens"), integers("lengths"), integers("labels"));
    let example = |(i, tokens): (usize, &[i64])| {
        let tokens = tokens[..lengths[i] as usize].iter().map(|&token| token as u32).collect();
        Encoded::class(tokens, labels[i] as u32)
    };
    let all: Vec<Encoded> = tokens.chunks(16).enumerate().map(example).collect();
    all.chunks(4).map(<[Encoded]>::to_vec).collect()
}

/// The tensors of a part of a method's run, by our names.
fn part(golden: &TensorFile, method: &str, part: &str) -> BTreeMap<String, Vec<f32>> {
    let prefix = format!("{method}.{part}.");
    let names = golden.names().filter_map(|name| Some((name, name.strip_prefix(&prefix)?.to_owned())));
    names.map(|(name, own)| (own, golden.floats(name).unwrap().1)).collect()
}

/// Ten steps from the reference's start give its losses and values; the merged weights then give the same logits.
fn follows(family: &str, method: &str, options: &[(&str, &str)], own_start: &[&str]) {
    let golden = golden();
    let (mut session, weights) = session(family, method, options);
    let start = part(&golden, method, "init");
    let drawn = session.trained_values().unwrap();
    assert_eq!(drawn.keys().collect::<Vec<_>>(), start.keys().collect::<Vec<_>>(), "{method} trains the same tensors");
    // What does not come from a random generator is the same from the beginning.
    for (name, values) in start.iter().filter(|(name, _)| own_start.iter().any(|own| name.ends_with(own))) {
        let off = values.iter().zip(&drawn[name]).map(|(a, b)| (a - b).abs() / a.abs().max(1.0)).fold(0.0, f32::max);
        assert!(off < 1e-6, "{method}: {name} begins {off} off");
    }
    session.set_trained_values(&start).unwrap();
    for (name, values) in part(&golden, method, "constant") {
        session.tensors().write_f32(&name, &values).unwrap();
    }
    let expected = golden.floats(&format!("{method}.losses")).unwrap().1;
    let batches = batches(&golden);
    for (step, (examples, expected)) in batches.iter().zip(expected).enumerate() {
        let batch = session.setup().objective.pack(examples).unwrap();
        let loss = session.step(&[batch], LR).unwrap().loss;
        assert!((loss - f64::from(expected)).abs() < LOSS, "{method}, step {step}: {loss}, PEFT has {expected}");
    }
    let values = session.trained_values().unwrap();
    // All keys share their bias, and softmax hardly sees what all keys share: the gradients are so small that Adam amplifies
    // rounding. PyTorch's own runs in f32 and f64 end 1e-3 apart there, and 3e-7 elsewhere.
    for (name, expected) in
        part(&golden, method, "final").into_iter().filter(|(name, _)| !name.ends_with("k_proj.bias"))
    {
        let off = values[&name].iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < VALUES, "{method}: {name} ends {off} off");
    }
    merges(&mut session, &weights, &batches[0]);
}

fn merges(session: &mut Session, weights: &Weights, dev: &[Encoded]) {
    let values = session.trained_values().unwrap();
    let examples = check_examples(session.setup(), dev);
    let merged = |session: &mut Session, position: usize| {
        let dtype = MergeDtype::Keep.of(&session.setup().adaptation.parameters, position);
        let bytes = merged_tensor(session, weights, &values, position, dtype)?.into_owned();
        Ok((dtype, bytes.into()))
    };
    let check = check_merged(session, [&examples; 2], 64, merged).unwrap();
    assert!(check.agrees() && check.largest_difference < 1e-4, "{check}");
}

#[test]
fn ia3_follows_peft() {
    follows("llama", "ia3", &[], &[".ia3"]);
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

/// Tensors that no adapter stores are the same in another process, and after a resume.
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
