//! Training with operations that a method defines, with and without kernels, compared with the same method built from
//! the host's operations alone. Needs `cargo build --release` first.

use sparta_core::decoder;
use sparta_core::method::{Adaptation, options};
use sparta_core::model::check_weights;
use sparta_core::plugin::{DiscoverOptions, PluginSet};
use sparta_core::train::objective::Classification;
use sparta_core::train::{Encoded, Session};
use sparta_core::weights::Weights;
use sparta_graph::ops::OwnKernel;
use sparta_plugin::Error;
use sparta_plugin::graph::Value;
use sparta_plugin::graph::ops::{
    Add, Broadcast, Detach, Div, Fill, Function, Layout as Product, Linear, Map, Mul, Scale, Transpose,
};
use sparta_plugin::method::*;
use sparta_plugin::testing::own_operations;
use sparta_suites::Subject;
use sparta_suites::golden::{Layout, Source, model_directory};
use sparta_tests::command::{binary, command, json, ran};
use sparta_tests::more::{self, LR, batches, golden, merges};
use sparta_tests::{setup, subjects};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

static LIBRARIES: LazyLock<PathBuf> = LazyLock::new(more::build);

const R: usize = 4;
const ALPHA: f64 = 8.0;
const LIMIT: f32 = 7.0;
const CLIP: f64 = 2.7;

fn library() -> PathBuf {
    more::library(&LIBRARIES, "lr-qat")
}

fn lr_qat() -> Arc<dyn Method> {
    let methods = PluginSet::discover(&DiscoverOptions { explicit: vec![library()], ..DiscoverOptions::default() });
    methods.method("lr-qat").unwrap()
}

/// LR-QAT from the host's operations: values are clipped, then rounded, and the rounding has no gradient.
struct Detached(Arc<dyn Method>);

impl Method for Detached {
    fn describe(&self) -> MethodInfo {
        self.0.describe()
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        self.0.select(parameters, options)
    }

    fn forward(
        &self,
        site: &Site,
        g: &mut dyn GraphBuilder,
        x: Value,
        w: Value,
        extra: &[Value],
    ) -> Result<Value, Error> {
        let (q, steps) = rounded(site, g, w, extra)?;
        let columns = column(g, steps)?;
        let w = g.one(Mul {}, &[q, columns])?;
        g.one(Linear::plain(Product::Nt), &[x, w])
    }

    fn merge(&self, site: &Site, g: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<Value, Error> {
        let (q, steps) = rounded(site, g, w, extra)?;
        let columns = column(g, steps)?;
        g.one(Mul {}, &[q, columns])
    }
}

fn column(g: &mut dyn GraphBuilder, row: Value) -> Result<Value, Error> {
    let n = g.shape(row)?[0];
    let row = g.one(Broadcast { shape: [1, n] }, &[row])?;
    g.one(Transpose {}, &[row])
}

/// The rounded numbers `[out, in]`, and the step of each row.
fn rounded(site: &Site, g: &mut dyn GraphBuilder, w: Value, extra: &[Value]) -> Result<(Value, Value), Error> {
    let input = site.parameter.shape[1];
    let step = CLIP / (f64::from(LIMIT) * (input as f64).sqrt());
    let steps = g.one(Scale { factor: step as f32 }, &[extra[2]])?;
    let columns = column(g, steps)?;
    let scale = (ALPHA / R as f64) as f32;
    let change = g.one(Linear { scale, ..Linear::plain(Product::Nn) }, &[extra[1], extra[0]])?;
    let change = g.one(Mul {}, &[change, columns])?;
    let changed = g.one(Add {}, &[change, w])?;
    let v = g.one(Div {}, &[changed, columns])?;
    let whole = g.one(Map { function: Function::Round }, &[v])?;
    let whole = cut(g, whole, LIMIT)?;
    // Half a step beyond the last whole number is rounded to it, with a gradient.
    let within = cut(g, v, LIMIT + 0.5)?;
    let back = g.one(Scale { factor: -1.0 }, &[within])?;
    let off = g.one(Add {}, &[whole, back])?;
    let off = g.one(Detach {}, &[off])?;
    Ok((g.one(Add {}, &[within, off])?, steps))
}

/// Within -limit and limit.
fn cut(g: &mut dyn GraphBuilder, v: Value, limit: f32) -> Result<Value, Error> {
    let width = g.shape(v)?[1];
    let high = g.one(Fill { value: limit, shape: vec![width] }, &[])?;
    let low = g.one(Fill { value: -limit, shape: vec![width] }, &[])?;
    let [above, beyond] = [high, low].map(|edge| {
        let sum = g.one(Add {}, &[v, edge])?;
        g.one(Map { function: Function::Relu }, &[sum])
    });
    let beyond = g.one(Scale { factor: -1.0 }, &[beyond?])?;
    let cut = g.one(Add {}, &[above?, beyond])?;
    g.one(Add {}, &[cut, low])
}

fn open(subject: &mut Subject, plugin: Arc<dyn Method>) -> (Session, Weights) {
    let model = model_directory(&Source::compact(), "llama", Layout { lm: false, f32: true, version_4: false });
    let weights = Weights::open(model.path()).unwrap();
    let decoder = decoder::open(model.path()).unwrap();
    let objective = Arc::new(Classification { classes: decoder.labels.len() });
    let parameters = check_weights(&decoder, &weights, sparta_core::train::Objective::head(&*objective)).unwrap();
    let (r, alpha) = (R.to_string(), ALPHA.to_string());
    let given = [("qat-r", r), ("qat-alpha", alpha)].map(|(name, value)| (name.into(), options::Given::Text(value)));
    let options = options::check("method", &plugin.describe().options, &BTreeMap::from(given)).unwrap();
    let adaptation = Adaptation::new(plugin, parameters, options, 7, &weights).unwrap();
    let setup = setup::setup(decoder, adaptation, objective);
    (setup::open(subject.open().unwrap(), &weights, setup), weights)
}

/// Losses and final values of ten steps.
fn trained(session: &mut Session) -> (Vec<f64>, BTreeMap<String, Vec<f32>>) {
    let all = batches(&golden("runs.safetensors"));
    let step = |examples: &Vec<Encoded>| {
        let batch = session.setup().objective.pack(examples).unwrap();
        session.step(&[batch], LR).unwrap().loss
    };
    let losses = all.iter().map(step).collect();
    (losses, session.trained_values().unwrap())
}

fn agree(what: &str, a: &(Vec<f64>, BTreeMap<String, Vec<f32>>), b: &(Vec<f64>, BTreeMap<String, Vec<f32>>)) {
    for (step, (a, b)) in a.0.iter().zip(&b.0).enumerate() {
        assert!((a - b).abs() < more::LOSS, "{what}, step {step}: {a} and {b}");
    }
    for (name, values) in &a.1 {
        let off = values.iter().zip(&b.1[name]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < more::VALUES, "{what}: {name} ends {off} apart");
    }
}

/// By its function on the CPU, by its WGSL on a GPU, and by the host's operations alone; the merged weight has few
/// values.
#[test]
fn lr_qat_trains_to_the_same_values_with_and_without_kernels() {
    let method = lr_qat();
    let (mut by_host, _) = open(&mut subjects::cpu(None), Arc::new(Detached(method.clone())));
    let expected = trained(&mut by_host);
    let moved = |(name, values): (&String, &Vec<f32>)| name.ends_with("qat_B") && values.iter().any(|x| *x != 0.0);
    assert!(expected.1.iter().any(moved), "gradients reach what is rounded");
    let (mut session, weights) = open(&mut subjects::cpu(None), method.clone());
    agree("the CPU's function", &trained(&mut session), &expected);
    let examples = &batches(&golden("runs.safetensors"))[0];
    merges(&mut session, &weights, examples);
    if let Some(mut wgpu) = subjects::wgpu() {
        let (mut session, _) = open(&mut wgpu, method);
        agree("WGSL", &trained(&mut session), &expected);
    }
}

#[test]
fn its_kernels_are_compared_with_the_subgraph_on_every_device() {
    let method = lr_qat();
    let options = options::check("method", &method.describe().options, &BTreeMap::new()).unwrap();
    let mut cpu = subjects::cpu(None).open().unwrap();
    let cases = own_operations(&*method, &options, &mut *cpu).unwrap();
    // The shapes of layers' weights.
    assert_eq!(cases.len(), 5);
    for case in &cases {
        assert_eq!(case.check_kernels(&mut *cpu).unwrap(), [OwnKernel::Function]);
    }
    if let Some(mut wgpu) = subjects::wgpu() {
        let mut wgpu = wgpu.open().unwrap();
        assert!(cases.iter().all(|case| case.check_kernels(&mut *wgpu).unwrap() == [OwnKernel::Wgsl]));
    }
}

/// Training, resuming, merging and evaluating by the real binary, where the CPU backend is a separate library.
#[test]
fn lr_qat_passes_the_check() {
    let home = tempfile::tempdir().unwrap();
    let output = command(home.path(), &["plugin", "check", "--json"]).arg(library()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let result: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let of = |what: &str| {
        let all = result["results"].as_array().unwrap().iter();
        all.clone().find(|result| result["name"] == format!("method lr-qat: {what}")).unwrap().clone()
    };
    assert!(output.status.success(), "{text}");
    let own = of("own operations");
    assert!(own["skipped"] == false && own["details"].as_str().unwrap().contains("quantize: "), "{own}");
    // Straight through, so finite differences do not apply.
    assert_eq!(of("gradients")["skipped"], true);
    let backend = binary().with_file_name(format!(
        "{}sparta_backend_cpu{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    ));
    assert!(backend.exists(), "the CPU backend is not a library here");
}

/// 4 bits: at most 15 whole multiples of a row's step.
#[test]
fn merged_weights_are_few_numbers() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let plugin = library().display().to_string();
    ran(
        home,
        &format!(
            "run --plugin {plugin} --method lr-qat --max-train 64 --max-dev 16 --max-test 16 --device cpu --precision f32 --max-steps 4 \
             --out run"
        ),
    );
    assert_eq!(json(home.join("run/result.json"))["merge_check"]["other_class"], 0);
    ran(home, &format!("--plugin {plugin} adapter merge run --out merged --device cpu --dtype f32"));
    let merged = Weights::open(home.join("merged")).unwrap();
    let view = merged.get("model.layers.0.mlp.up_proj.weight").unwrap();
    let (values, width) = (view.to_f32().unwrap(), view.shape[1]);
    for row in values.chunks(width) {
        let mut sizes: Vec<u32> = row.iter().map(|x| x.abs().to_bits()).collect();
        sizes.sort_unstable();
        sizes.dedup();
        assert!(sizes.len() <= 8, "{} sizes in a row", sizes.len());
    }
}
