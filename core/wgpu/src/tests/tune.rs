use super::{ONE_AT_A_TIME, bench, exactly, f32s, floats, open, run, u32s};
use crate::cache::Cache;
use crate::{DeviceFeatures, Options, WgpuBackend};
use sparta_graph::ops::{Layout, Linear, SampledGrad, Sampling};
use sparta_graph::{Backend, Choice, DType, Graph, Op, Plan, Tuned};
use sparta_kernels::{Bounds, Choosing, Question, lower};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::PoisonError;

const LAYOUTS: [Layout; 3] = [Layout::Nt, Layout::Nn, Layout::Tn];

fn shapes(layout: Layout, [m, n, k]: [usize; 3]) -> [[usize; 2]; 2] {
    match layout {
        Layout::Nt => [[m, k], [n, k]],
        Layout::Nn => [[m, k], [k, n]],
        Layout::Tn => [[k, m], [k, n]],
    }
}

/// What a device asks about a product.
fn questions(backend: &WgpuBackend, op: &Linear, dtype: DType, sizes: [usize; 3]) -> Vec<Question> {
    let mut graph = Graph::new();
    let operands = shapes(op.layout, sizes).map(|shape| graph.external(format!("{shape:?}"), dtype, shape));
    let y = graph.one(op.clone(), &operands).unwrap();
    let out = graph.external("out", graph.ty(y).unwrap().dtype, [sizes[0], sizes[1]]);
    graph.apply(sparta_graph::ops::Store {}.into(), &[out, y]).unwrap();
    let plan = Plan::build(&graph, false);
    let call = plan.calls.iter().find(|call| matches!(call.op, Op::Linear(_))).unwrap();
    let none = BTreeMap::new();
    // As a GPU, which unrolls, would ask.
    let bounds = Bounds { choosing: Choosing::Measured(&none), rounds: usize::MAX, ..backend.bounds };
    lower(call, bounds).unwrap().questions
}

/// Every candidate computes the product, on matrix units where the device has them.
#[test]
fn every_candidate_is_right() {
    let Some(mut bench) = bench() else { return };
    bench.backends.truncate(1);
    (bench.backends[0].tunes_software, bench.backends[0].cache) = (true, Cache::at(None));
    let dtypes = [Some(DType::F32), bench.backends[0].bounds.units.map(|_| DType::BF16)];
    let sizes = [130, 72, 600];
    for (layout, dtype) in LAYOUTS.into_iter().flat_map(|layout| dtypes.into_iter().flatten().map(move |t| (layout, t)))
    {
        let op = Linear { output: Some(DType::F32), ..Linear::plain(layout) };
        let asked = questions(&bench.backends[0], &op, dtype, sizes);
        let [question] = &asked[..] else { panic!("{asked:?}") };
        assert!(question.trials.len() >= 4, "{question:?}");
        let inputs = shapes(layout, sizes).map(|shape| f32s(&shape, shape[0] as u64));
        for trial in &question.trials {
            let choices = BTreeMap::from([(question.name.clone(), trial.choice.clone())]);
            let known = Tuned { device: bench.backends[0].described(), choices };
            assert_eq!(bench.backends[0].autotune(Some(&known)), None);
            match dtype {
                DType::F32 => bench.check(op.clone(), &inputs),
                _ => bench.check_bf16(2e-6, op.clone(), &inputs, &[0, 1]),
            }
            assert_eq!(bench.backends[0].tuned(), Some(known), "nothing else was asked or measured");
        }
    }
}

/// A gradient is taken by the measured cost, and is right either way.
#[test]
fn the_cost_of_sampled_gradients_is_measured() {
    let Some(mut bench) = bench() else { return };
    bench.backends.truncate(1);
    (bench.backends[0].tunes_software, bench.backends[0].cache) = (true, Cache::at(None));
    assert_eq!(bench.backends[0].autotune(None), None);
    for chosen in [&(0..70 * 90).step_by(50).collect::<Vec<u32>>(), &(0..70 * 90).collect()] {
        let row_ptr: Vec<u32> = (0..=70).map(|row| chosen.partition_point(|&i| i < row * 90) as u32).collect();
        let sets = [u32s(&[chosen.len()], chosen), u32s(&[71], &row_ptr)];
        let op = SampledGrad { scale: 0.5, sampling: Sampling::Auto };
        bench.check(op, &[&[f32s(&[40, 70], 1), f32s(&[40, 90], 2)][..], &sets[..]].concat());
    }
    let tuned = bench.backends[0].tuned().unwrap();
    assert!(tuned.choices["sampled_grad f32 f32*f32"]["cost"].is_power_of_two(), "{tuned:?}");
}

fn tuned_in(directory: &Path, options: Options) -> Option<WgpuBackend> {
    open(None)?;
    let mut backend = WgpuBackend::open_with(0, options).unwrap().tuning_in(Some(directory.to_owned()));
    assert_eq!(backend.autotune(None), None);
    Some(backend)
}

/// A product that has a choice to make, and what was chosen.
fn product(backend: &mut WgpuBackend) -> (Vec<u8>, BTreeMap<String, Choice>) {
    let inputs = [f32s(&[70, 600], 1), floats(DType::F32, &[130, 600], 2)];
    let (_, bytes) = run(backend, &Linear::plain(Layout::Nt).into(), &inputs).remove(0);
    (bytes, backend.tuned().unwrap().choices)
}

fn in_pieces(pieces: u32, choices: &BTreeMap<String, Choice>) -> BTreeMap<String, Choice> {
    let mut choices = choices.clone();
    for choice in choices.values_mut() {
        choice.insert("pieces".into(), pieces);
    }
    choices
}

#[test]
fn what_is_stored_is_used_again_and_what_a_run_knows_comes_first() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let home = tempfile::tempdir().unwrap();
    let Some(mut first) = tuned_in(home.path(), Options::default()) else { return };
    let (bytes, chosen) = product(&mut first);
    assert_eq!(chosen.keys().collect::<Vec<_>>(), ["product f32 nt f32*f32 128x256x1024"]);
    let again = |known: Option<&Tuned>| {
        let mut backend =
            WgpuBackend::open_with(0, Options::default()).unwrap().tuning_in(Some(home.path().to_owned()));
        let warning = backend.autotune(known);
        let (bytes, chosen) = product(&mut backend);
        (warning, bytes, chosen)
    };
    assert!(again(None) == (None, bytes.clone(), chosen.clone()));

    // Not what it would measure, so it was read.
    let file = fs::read_dir(home.path()).unwrap().next().unwrap().unwrap().path();
    let (cache, device) = (Cache::at(Some(home.path().to_owned())), first.described());
    fs::remove_file(&file).unwrap();
    cache.add(&device, in_pieces(19, &chosen)).unwrap();
    let (_, stored, found) = again(None);
    assert!(found == in_pieces(19, &chosen) && stored != bytes);

    let mut known = Tuned { device, choices: in_pieces(17, &chosen) };
    assert_eq!(again(Some(&known)).2, known.choices);
    known.device = "another card".into();
    assert!(again(Some(&known)) == (None, stored, found));

    fs::write(&file, "{").unwrap();
    let (warning, _, measured) = again(None);
    assert!(warning.is_some_and(|warning| warning.contains(file.to_str().unwrap())));
    assert_eq!(cache.load(&first.described()), Ok(measured));
}

#[test]
fn a_device_without_timestamps_measures_by_the_clock() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let home = tempfile::tempdir().unwrap();
    let options = Options { without: DeviceFeatures::TIMESTAMP_QUERY, ..Options::default() };
    let Some(mut backend) = tuned_in(home.path(), options) else { return };
    assert_eq!(product(&mut backend).1.len(), 1);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
}

/// A software driver is slow to measure, and its times are those of a busy CPU.
#[test]
fn a_software_driver_is_not_measured_unless_a_test_wants_it() {
    let Some(mut backend) = open(None) else { return };
    if backend.info().kind != sparta_graph::DeviceKind::SoftwareGpu {
        return;
    }
    assert_eq!((backend.autotune(None), backend.tuned()), (None, None));
    let one = exactly(&[1, 1], &[2.0]);
    run(&mut backend, &Linear::plain(Layout::Nt).into(), &[one.clone(), one]);
    assert_eq!(backend.tuned(), None);
}
