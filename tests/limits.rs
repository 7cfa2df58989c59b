//! What plans say about memory and a device's limits, and what devices then use. Needs `cargo build --release` first.

use serde_json::json;
use sparta_core::assumed;
use sparta_core::job::{PrecisionChoice, RunConfig};
use sparta_core::model::Quantize;
use sparta_core::plugin::{DiscoverOptions, PluginSet};
use sparta_core::run::memory::{self, MemoryPlan, MemoryRequest};
use sparta_core::run::{Prepared, prepare};
use sparta_core::train::objective::Classification;
use sparta_core::train::{MemoryKind, Optimization, Recompute, Session};
use sparta_graph::{Backend, DeviceInfo};
use sparta_tests::command::{binary, command};
use sparta_tests::subjects::methods;
use sparta_wgpu::{DeviceFeatures, Options, WgpuBackend};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// Hidden size, layers, heads, key heads, head size, MLP, vocabulary; all of it in bf16.
struct Shape(&'static str, [usize; 7]);

const GEMMA_2B: Shape = Shape("gemma", [2048, 18, 8, 1, 256, 16384, 256_000]);
const LLAMA_110M: Shape = Shape("llama", [768, 12, 12, 12, 64, 2048, 32_000]);

impl Shape {
    /// The plan of SpaRTA with 5 % on batches of this many examples, each of this many tokens.
    fn plan(&self, precision: PrecisionChoice, batch: [usize; 2], device: &DeviceInfo) -> MemoryPlan {
        self.plan_of(0.05, None, precision, batch, device)
    }

    fn plan_of(
        &self,
        density: f64,
        quantize: Option<Quantize>,
        precision: PrecisionChoice,
        [examples, tokens]: [usize; 2],
        device: &DeviceInfo,
    ) -> MemoryPlan {
        let Shape(family, [hidden, layers, heads, kv_heads, head_dim, mlp, vocabulary]) = self;
        let config = json!({
            "model_type": family, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": mlp, "vocab_size": vocabulary,
            "hidden_act": if *family == "gemma" { "gelu_pytorch_tanh" } else { "silu" },
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
            "tie_word_embeddings": true, "pad_token_id": 0,
        });
        let home = tempfile::tempdir().unwrap();
        let model = home.path().join("config.json");
        fs::write(&model, config.to_string()).unwrap();
        let request = MemoryRequest {
            model,
            method: "sparta".into(),
            method_options: [("density".to_owned(), json!(density))].into(),
            objective: Arc::new(Classification { classes: 2 }),
            batch_size: examples,
            micro_batch_tokens: None,
            max_length: Some(tokens),
            dropout: 0.0,
            recompute: Recompute::Auto,
            precision,
            residual: false,
            quantize,
            optimization: Optimization { max_grad_norm: Some(1.0), ..Optimization::default() },
        };
        memory::plan(&request, &methods(), device).unwrap()
    }
}

fn total(plan: &MemoryPlan) -> u64 {
    plan.memory.values().sum()
}

#[test]
fn gemma_2b_at_5_percent_takes_13_gib_in_bf16() {
    let device = assumed::device("memory=80GiB,max-buffer=2GiB,max-binding=2GiB").unwrap();
    let plan = GEMMA_2B.plan(PrecisionChoice::Auto, [16, 256], &device);
    plan.check_fit().unwrap();
    assert_eq!((plan.precision.to_string().split(':').next(), plan.recompute, plan.rows), (Some("bf16"), false, 4096));
    assert!(total(&plan) <= 13 << 30, "{plan}");
}

#[test]
fn gemma_2b_in_4_bits_trains_half_a_percent_in_4_gib() {
    let device = assumed::device("memory=4GiB,max-buffer=2GiB,max-binding=2GiB").unwrap();
    let plan = GEMMA_2B.plan_of(0.005, Some(Quantize::Q4K), PrecisionChoice::Bf16, [4, 256], &device);
    plan.check_fit().unwrap();
    assert_eq!((plan.rows, plan.micro_batches, plan.recompute), (1024, false, false), "{plan}");
    // 4.5 bits a weight, 8.5 of the embedding.
    let embedding = 256_000 * 2048;
    let weights = (plan.parameters - embedding) * 9 / 16 + embedding * 17 / 16;
    assert!((weights..weights + (1 << 20)).contains(&plan.memory[&MemoryKind::Weights]), "{plan}");
    assert!(total(&plan) < 4 << 30 && plan.quantized.is_some(), "{plan}");
}

#[test]
fn activations_in_bf16_take_at_most_three_fifths_of_those_in_f32() {
    let device = assumed::device("memory=80GiB").unwrap();
    let [narrow, wide] = [PrecisionChoice::Bf16, PrecisionChoice::F32]
        .map(|precision| LLAMA_110M.plan(precision, [4, 128], &device).memory[&MemoryKind::Activations]);
    assert!(10 * narrow <= 6 * wide, "{narrow} of {wide} bytes, {:.3}", narrow as f64 / wide as f64);
}

/// The attention kernel binds all queries: here 32 MiB for 4,096 tokens in f32.
#[test]
fn what_a_kernel_cannot_bind_is_avoided_or_refused_by_the_plan() {
    let plan = |binding: &str| {
        let device = assumed::device(&format!("memory=80GiB,max-binding={binding}")).unwrap();
        (GEMMA_2B.plan(PrecisionChoice::F32, [16, 256], &device), device)
    };
    let (whole, _) = plan("128MiB");
    assert_eq!((whole.rows, whole.needs.to_string()), (4096, String::new()));
    let (fewer, _) = plan("16MiB");
    fewer.check_fit().unwrap();
    let note = fewer.needs.to_string();
    assert!(fewer.rows == 2048 && note.contains("2,048 tokens per micro-batch, chosen"), "{note}");
    assert!(
        note.contains("q of shape [4096, 2048] takes 33554432 bytes, but this device binds at most 16777216"),
        "{note}"
    );
    let (none, device) = plan("64KiB");
    let refusal = none.check_fit().unwrap_err().to_string();
    assert!(refusal.starts_with(&device.name) && refusal.contains("65536"), "{refusal}");
    assert_eq!(refusal.split("To make it fit: ").nth(1).unwrap().split("; ").count(), 3, "{refusal}");

    // The same limit on a real device.
    let Some(here) = wgpu(Options { max_binding: Some(64 << 10), ..Options::default() }) else { return };
    let (info, assumed) = (here.info(), device);
    assert_eq!(info.max_binding, assumed.max_binding);
    let real = GEMMA_2B.plan(PrecisionChoice::F32, [16, 256], &DeviceInfo { memory: None, ..info });
    assert_eq!(real.needs.unbound, none.needs.unbound);

    // Without a plan, the device reports it before anything is allocated.
    let home = tempfile::tempdir().unwrap();
    let low = wgpu(Options { max_binding: Some(4 << 10), ..Options::default() }).unwrap();
    let run = prepared(&embedded(home.path()), &low.info());
    let refusal = run.plan.check_fit().unwrap_err().to_string();
    let unbound = run.plan.needs.unbound.unwrap();
    assert!(refusal.contains(&unbound), "{refusal}");
    let open = Session::open(Box::new(low), &run.weights, run.setup, &run.arena).map(drop);
    let open = open.unwrap_err().to_string();
    assert!(open.contains(&unbound), "{open}, expected {unbound}");
}

#[test]
fn notes_name_what_was_chosen() {
    let why = ", chosen for the device's memory: with the fastest settings the run needs ";
    for (memory, chosen) in [
        ("80GiB", None),
        ("12GiB", Some("1,024 tokens per micro-batch")),
        ("9GiB", Some("activation checkpointing")),
        ("8GiB", Some("1,024 tokens per micro-batch and activation checkpointing")),
    ] {
        let device = assumed::device(&format!("memory={memory},types=f32")).unwrap();
        let note = GEMMA_2B.plan(PrecisionChoice::Auto, [16, 256], &device).needs.to_string();
        match chosen {
            Some(chosen) => assert!(note.starts_with(&format!("  note     {chosen}{why}")), "{memory}: {note}"),
            None => assert_eq!(note, ""),
        }
    }
}

/// The first adapter. Where there is none, says so; in CI that is a failure.
fn wgpu(options: Options) -> Option<WgpuBackend> {
    if sparta_wgpu::devices().is_empty() {
        sparta_tests::skipped_unless_in_ci("no wgpu adapter");
        return None;
    }
    Some(WgpuBackend::open_with(0, options).unwrap())
}

/// The embedded model and data, as the command resolves them.
fn embedded(home: &Path) -> RunConfig {
    let args = ["run", "--max-steps", "1", "--max-train", "64", "--max-dev", "8", "--max-test", "8", "--device", "cpu"];
    let out = home.join("run");
    let output = command(home, &[&args[..], &["--out", out.to_str().unwrap()]].concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    RunConfig::of_run(&out).unwrap()
}

fn prepared(config: &RunConfig, device: &DeviceInfo) -> Prepared {
    let beside = binary().parent().unwrap().to_owned();
    let plugins = PluginSet::discover(&DiscoverOptions { beside: vec![beside], ..DiscoverOptions::default() });
    prepare(config, &plugins, device).unwrap()
}

/// Some steps and an evaluation, on batches of different lengths.
fn train(run: &Prepared, device: Box<dyn Backend>) -> Session {
    let mut session = Session::open(device, &run.weights, run.setup.clone(), &run.arena).unwrap();
    let objective = &run.setup.objective;
    for examples in run.train.chunks(run.config.batch_size).take(3) {
        let limits = &run.setup.limits;
        let micro_batches: Vec<_> = match limits.micro_batches || limits.head_features {
            true => examples.chunks(2).map(|examples| objective.pack(examples).unwrap()).collect(),
            false => vec![objective.pack(examples).unwrap()],
        };
        if limits.head_features {
            let features = session.pool(&micro_batches[0]).unwrap();
            let step = session.submit_head_step(&features, &micro_batches[0], 1e-3).unwrap();
            session.settle(step).unwrap();
        } else {
            session.step(&micro_batches, 1e-3).unwrap();
        }
    }
    session.evaluate(&objective.pack(&run.dev[..1]).unwrap()).unwrap();
    session
}

/// The plan counts all that a backend has allocated at its peak, except what the backend's prepared plans take.
#[test]
fn plans_are_what_devices_use() {
    let home = tempfile::tempdir().unwrap();
    let config = embedded(home.path());
    let cpu = || Box::new(sparta_backend_cpu::Cpu::new(Some(2)).unwrap()) as Box<dyn Backend>;
    let wgpu = || wgpu(Options::default()).map(|backend| Box::new(backend) as Box<dyn Backend>);
    let methods = ["sparta", "lora", "full", "head"].map(|method| (method, None));
    let quantized = ["sparta", "lora", "head"].map(|method| (method, Some(Quantize::Q4K)));
    for (method, quantize) in methods.into_iter().chain(quantized) {
        for precision in [PrecisionChoice::F32, PrecisionChoice::Bf16] {
            for micro_batch_tokens in [None, Some(64)] {
                let gpu = if micro_batch_tokens.is_none() { wgpu() } else { None };
                for device in [Some(cpu()), gpu].into_iter().flatten() {
                    let method_options = BTreeMap::new();
                    let method = method.to_owned();
                    let config =
                        RunConfig { method, method_options, precision, micro_batch_tokens, quantize, ..config.clone() };
                    let what = format!(
                        "{} {quantize:?} {precision:?} {micro_batch_tokens:?} {}",
                        config.method,
                        device.info().id
                    );
                    let run = prepared(&config, &device.info());
                    let session = &mut train(&run, device);
                    let used = session.tensors().memory_use().unwrap();
                    let tensors = session.tensors().memory();
                    assert!(tensors.iter().all(|(kind, bytes)| run.plan.memory[kind] == *bytes), "{what}: {tensors:?}");
                    assert_eq!(
                        used.peak - used.plans,
                        run.plan.total_memory(),
                        "{what}: {used:?}, {:?}",
                        run.plan.memory
                    );
                }
            }
        }
    }
}

/// Missing features cost time and change no result, except for matrix units, which round differently.
#[test]
fn masked_features_and_the_limits_of_webgpu_train_to_the_same_numbers() {
    let home = tempfile::tempdir().unwrap();
    let config = embedded(home.path());
    let units = DeviceFeatures::EXPERIMENTAL_COOPERATIVE_MATRIX | DeviceFeatures::SHADER_F16 | DeviceFeatures::SUBGROUP;
    let all = units | DeviceFeatures::TIMESTAMP_QUERY;
    // Workgroup memory stays: with less, attention has other tiles, whose sums round differently (see `golden`).
    let webgpu =
        Options { max_binding: Some(128 << 20), max_buffer: Some(256 << 20), without: all, ..Options::default() };
    let masked = all.iter().map(|feature| Options { without: feature, ..Options::default() });
    let masked: Vec<Options> = masked.chain([webgpu]).collect();
    for precision in [PrecisionChoice::F32, PrecisionChoice::Bf16] {
        let config = RunConfig { precision, ..config.clone() };
        let run = |options: Options| {
            let device = wgpu(options)?;
            let on_units = device.info().multiplier.is_some_and(|multiplier| multiplier.starts_with("matrix units"));
            assert!(!on_units || !options.without.intersects(units), "{options:?}");
            let run = prepared(&config, &device.info());
            let values = train(&run, Box::new(device)).trained_values().unwrap();
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
            let bits = values.into_iter().map(|(name, x)| (name, bits(x))).collect::<BTreeMap<_, _>>();
            Some((on_units && precision == PrecisionChoice::Bf16, bits))
        };
        let mut seen = BTreeMap::new();
        for options in [Options::default()].iter().chain(&masked) {
            let Some((on_units, bits)) = run(*options) else { return };
            // Matrix units round elsewhere than f32 does: `golden` compares either with the reference.
            let expected = seen.entry(on_units).or_insert_with(|| bits.clone());
            assert!(*expected == bits, "{precision:?}: different bits with {options:?}");
        }
    }
}

/// Where a tensor lies does not change it.
#[test]
fn several_segments_give_the_bits_of_one() {
    let home = tempfile::tempdir().unwrap();
    let config = embedded(home.path());
    for (method, precision) in
        [("sparta", PrecisionChoice::F32), ("sparta", PrecisionChoice::Bf16), ("lora", PrecisionChoice::F32)]
    {
        let (method, method_options, micro_batch_tokens) = (method.to_owned(), BTreeMap::new(), Some(256));
        let config = RunConfig { method, method_options, precision, micro_batch_tokens, ..config.clone() };
        let run = |max_buffer| {
            let device = wgpu(Options { max_buffer, ..Options::default() })?;
            let run = prepared(&config, &device.info());
            let values = train(&run, Box::new(device)).trained_values().unwrap();
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
            Some((run.arena.len(), values.into_iter().map(|(name, x)| (name, bits(x))).collect::<BTreeMap<_, _>>()))
        };
        let (Some((one, bits)), Some((several, others))) = (run(None), run(Some(256 << 10))) else { return };
        assert!(one == 1 && several > 3, "{one} and {several} segments");
        assert!(bits == others, "{} {precision:?}: different bits in {several} segments", config.method);
    }
}
