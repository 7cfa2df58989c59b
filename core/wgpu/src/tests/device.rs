use super::{ONE_AT_A_TIME, exactly, f32s, open, open_with, run};
use crate::{DeviceFeatures, Options, WgpuBackend};
use sparta_graph::ops::{Accumulate, Add, Attention, Fill, Layout, Linear, Scale, Store};
use sparta_graph::{Backend, BackendError, BufferId, DType, Graph, Op, Plan, PlanId, ReadId, Work};
use std::sync::PoisonError;

#[test]
fn adapters_report_what_we_use() {
    let Some(backend) = open(None) else { return };
    let adapter = backend.adapter();
    assert!(!adapter.info.name.is_empty() && !adapter.info.driver.is_empty());
    assert!(adapter.limits.max_storage_buffer_binding_size >= 128 << 20);
    assert!(adapter.limits.max_buffer_size >= adapter.limits.max_storage_buffer_binding_size);
    assert!(adapter.limits.subgroup_size.0 <= adapter.limits.subgroup_size.1);
}

/// An adapter that offers matrix units passes their test, or says that they are not in use.
#[test]
fn the_device_says_whether_matrix_units_are_in_use() {
    let Some(backend) = open(None) else { return };
    let info = backend.info();
    let multiplier = info.multiplier.clone().unwrap();
    println!("{}: {multiplier}", info.name);
    let for_all = multiplier.starts_with("matrix units") && !info.driver.contains("not in use");
    assert!(std::env::var_os("SPARTA_MATRIX_UNITS").is_none() || for_all, "{info:?}");
    let offered = !crate::adapters::matrix_units(&crate::adapters::adapters()[0]).is_empty();
    assert_eq!(multiplier.starts_with("matrix units"), !info.products.is_empty());
    assert_eq!(multiplier == "f32" && offered, info.driver.contains("not in use: "));
}

#[test]
fn wrong_selectors_name_the_adapters() {
    let Some(backend) = open(None) else { return };
    let error = WgpuBackend::open("no such card").err().unwrap().to_string();
    assert!(error.contains(&backend.info().name), "{error}");
    assert!(WgpuBackend::open_with(99, Default::default()).is_err());
}

/// More workgroups than one dimension holds.
#[test]
fn launches_fold() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut backend) = open(None) else { return };
    let n = 65_535 * 256 + 1000;
    let op = Fill { value: 2.0, shape: vec![n] };
    let (_, bytes) = run(&mut backend, &op.into(), &[]).remove(0);
    assert!(bytes.chunks_exact(4).all(|b| b == 2f32.to_le_bytes()));
}

#[test]
fn bytes_come_back_as_written() {
    let Some(mut backend) = open(None) else { return };
    let buffer = backend.alloc(DType::BF16, 7, "w").unwrap();
    let read = |backend: &mut WgpuBackend, offset: usize, n: usize| {
        let mut out = vec![0; 2 * n];
        backend.read(buffer, offset, &mut out).unwrap();
        out
    };
    assert_eq!(read(&mut backend, 0, 7), [0; 14]);
    backend.write(buffer, 0, &(1..15).collect::<Vec<u8>>()).unwrap();
    // One element in the middle: its neighbour in the same word stays.
    backend.write(buffer, 2, &[91, 92]).unwrap();
    assert_eq!(read(&mut backend, 0, 7), [1, 2, 3, 4, 91, 92, 7, 8, 9, 10, 11, 12, 13, 14]);
    assert_eq!(read(&mut backend, 4, 3), [9, 10, 11, 12, 13, 14]);
    assert!(backend.write(buffer, 6, &[0; 4]).is_err_and(|e| e.to_string().contains("w: 4 bytes")));
    assert!(backend.read(buffer, 1, &mut [0; 2]).is_err());
    assert!(backend.write(BufferId(99), 0, &[]).is_err());
    assert!(backend.run(PlanId(99)).is_err());
}

/// A plan is divided into submissions by the measured speed of the device, with the same results.
#[test]
fn much_work_is_several_submissions() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut backend) = open(None) else { return };
    let mut graph = Graph::new();
    let [x, y] = ["x", "y"].map(|name| graph.external(name, DType::F32, [1 << 20]));
    let mut sum = x;
    for _ in 0..8 {
        sum = graph.one(Add {}, &[sum, x]).unwrap();
    }
    graph.apply(Store {}.into(), &[y, sum]).unwrap();
    let plan = Plan::build(&graph, false);
    let buffers = ["x", "y"].map(|name| backend.alloc(DType::F32, 1 << 20, name).unwrap());
    backend.write(buffers[0], 0, &0.5f32.to_le_bytes().repeat(1 << 20)).unwrap();
    let arena = backend.alloc(DType::F32, plan.arena.div_ceil(4), "arena").unwrap();
    let id = backend.prepare(&plan, &[arena], &buffers).unwrap();
    let mut run = |rate: f64| {
        backend.pace.borrow_mut().set_rate(rate);
        let before = backend.submitted();
        backend.submit(&[Work::Run(id)]).unwrap();
        let submissions = backend.submitted() - before;
        let mut out = vec![0; 4 << 20];
        backend.read(buffers[1], 0, &mut out).unwrap();
        assert!(out.as_chunks::<4>().0.iter().all(|&x| f32::from_le_bytes(x) == 4.5));
        submissions
    };
    assert_eq!(run(1e15), 1);
    // One step each, until the first of them is done and its time known.
    assert!(run(1.0) >= 4);
}

/// Writes between runs take effect in order, and a read sees what was submitted before it, not after.
#[test]
fn submissions_are_in_order_and_reads_return_the_state_of_their_moment() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut backend) = open(None) else { return };
    let mut graph = Graph::new();
    let [x, sum] = ["x", "sum"].map(|name| graph.external(name, DType::F32, [2]));
    graph.apply(Accumulate {}.into(), &[sum, x]).unwrap();
    let plan = Plan::build(&graph, false);
    let arena = backend.alloc(DType::F32, 1, "arena").unwrap();
    // Both in one buffer.
    let buffer = backend.alloc(DType::F32, 66, "both").unwrap();
    let mut plan = plan;
    plan.externals[0].offset = 64;
    assert_eq!(plan.externals[0].name, "sum");
    let id = backend.prepare(&plan, &[arena], &[buffer, buffer]).unwrap();
    plan.externals[0].offset = 65;
    assert!(backend.prepare(&plan, &[arena], &[buffer, buffer]).is_err());
    let [one, two] = [[1f32, 10.0], [2.0, 20.0]].map(|x| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
    let write = |data| Work::Write { buffer, offset: 0, data };
    backend.submit(&[write(&one), Work::Run(id), write(&two), Work::Run(id), Work::Run(id)]).unwrap();
    let first = backend.request(buffer, 64, 8).unwrap();
    backend.submit(&[Work::Run(id)]).unwrap();
    let second = backend.request(buffer, 65, 4).unwrap();
    let fetch = |backend: &mut WgpuBackend, read, n| {
        let mut out = vec![0; n];
        backend.fetch(read, &mut out).unwrap();
        out.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect::<Vec<f32>>()
    };
    assert_eq!(fetch(&mut backend, second, 4), [70.0]);
    assert_eq!(fetch(&mut backend, first, 8), [5.0, 50.0]);
    let missing = backend.fetch(ReadId::Pending(12345), &mut []).unwrap_err().to_string();
    assert!(missing.contains("was not requested"), "{missing}");
    assert!(backend.submit(&[Work::Write { buffer, offset: 65, data: &one }]).is_err());
}

#[test]
fn what_does_not_fit_is_named() {
    let Some(mut backend) = open(Some(4096)) else { return };
    let error = backend.alloc(DType::F32, 1 << 50, "embed_tokens").unwrap_err();
    assert!(error.to_string().contains("embed_tokens"), "{error}");
    let mut graph = Graph::new();
    graph.set_label("layers.0.attention");
    let q = graph.external("q", DType::F32, [100, 16]);
    let spans = graph.external("spans", DType::U32, [100, 2]);
    let op = Attention {
        heads: 1,
        kv_heads: 1,
        head_dim: 16,
        scale: 1.0,
        window: None,
        soft_cap: None,
        dropout: 0.0,
        salt: 0,
    };
    let o = graph.one(op, &[q, q, q, spans]).unwrap();
    let out = graph.external("out", DType::F32, [100, 16]);
    graph.apply(Store {}.into(), &[out, o]).unwrap();
    let plan = Plan::build(&graph, false);
    let arena = backend.alloc(DType::F32, plan.arena / 4, "arena").unwrap();
    let buffers: Vec<BufferId> =
        plan.externals.iter().map(|e| backend.alloc(e.ty.dtype, e.ty.numel(), &e.name).unwrap()).collect();
    let error = backend.prepare(&plan, &[arena], &buffers).unwrap_err();
    let BackendError::Op { op, reason, .. } = &error else { panic!("{error}") };
    assert!(op.contains("attention (layers.0.attention)") && reason.contains("6400 bytes"), "{error}");
    assert!(backend.prepare(&plan, &[arena], &buffers[1..]).is_err());
}

/// An error that wgpu reports outside any scope is returned by the next call, and the device still works.
#[test]
fn uncaptured_errors_become_results() {
    let Some(mut backend) = open(None) else { return };
    let buffer = backend.alloc(DType::F32, 4, "x").unwrap();
    backend.provoke_an_error();
    assert!(matches!(backend.write(buffer, 0, &[0; 16]), Err(BackendError::Op { .. })));
    backend.write(buffer, 0, &[0; 16]).unwrap();
}

#[test]
fn a_lost_device_is_reported_by_every_call() {
    let Some(mut backend) = open(None) else { return };
    let buffer = backend.alloc(DType::F32, 4, "x").unwrap();
    backend.lose();
    let lost = |result: Result<(), BackendError>| {
        assert!(matches!(result, Err(BackendError::DeviceLost { .. })), "{result:?}");
    };
    for _ in 0..2 {
        lost(backend.write(buffer, 0, &[0; 16]));
        lost(backend.read(buffer, 0, &mut [0; 16]));
        lost(backend.alloc(DType::F32, 4, "y").map(drop));
    }
}

/// Several calls in one plan see each other's results, run after run.
#[test]
fn plans_run_again() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut backend) = open(None) else { return };
    let mut graph = Graph::new();
    let x = graph.external("x", DType::F32, [100]);
    let doubled = graph.one(Scale { factor: 2.0 }, &[x]).unwrap();
    let sum = graph.one(Add {}, &[doubled, doubled]).unwrap();
    graph.apply(Store {}.into(), &[x, sum]).unwrap();
    let plan = Plan::build(&graph, false);
    let arena = backend.alloc(DType::F32, plan.arena / 4, "arena").unwrap();
    let buffer = backend.alloc(DType::F32, 100, "x").unwrap();
    backend.write(buffer, 0, &exactly(&[100], &[1.0; 100]).bytes).unwrap();
    let id = backend.prepare(&plan, &[arena], &[buffer]).unwrap();
    for _ in 0..3 {
        backend.run(id).unwrap();
    }
    let mut out = f32s(&[100], 1).bytes;
    backend.read(buffer, 0, &mut out).unwrap();
    assert_eq!(out, exactly(&[100], &[64.0; 100]).bytes);
}

/// An arena of several buffers gives the same bits, and a wrong number of buffers is an error.
#[test]
fn an_arena_may_have_segments() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut backend) = open(None) else { return };
    let mut graph = Graph::new();
    let [x, w, out] = ["x", "w", "out"].map(|name| graph.external(name, DType::F32, [64, 64]));
    let mut sum = x;
    for _ in 0..3 {
        let y = graph.one(Linear::plain(Layout::Nt), &[sum, w]).unwrap();
        sum = graph.one(Add {}, &[y, sum]).unwrap();
    }
    graph.apply(Store {}.into(), &[out, sum]).unwrap();
    let mut results = Vec::new();
    for limit in [usize::MAX, 20_000] {
        let plan = Plan::in_segments(&graph, false, limit);
        let segments = plan.arena_buffers().iter();
        let arena: Vec<BufferId> =
            segments.map(|bytes| backend.alloc(DType::F32, bytes / 4, "arena").unwrap()).collect();
        assert_eq!(arena.len() > 1, limit < 1 << 20);
        let externals: Vec<BufferId> =
            plan.externals.iter().map(|e| backend.alloc(DType::F32, e.ty.numel(), &e.name).unwrap()).collect();
        for (seed, (external, &buffer)) in (1..).zip(plan.externals.iter().zip(&externals)) {
            if external.name != "out" {
                backend.write(buffer, 0, &f32s(&[64, 64], seed).bytes).unwrap();
            }
        }
        let id = backend.prepare(&plan, &arena, &externals).unwrap();
        backend.run(id).unwrap();
        let at = plan.externals.iter().position(|e| e.name == "out").unwrap();
        let mut bytes = vec![0; 64 * 64 * 4];
        backend.read(externals[at], 0, &mut bytes).unwrap();
        results.push(bytes);
        assert!(backend.prepare(&plan, &arena[1..], &externals).is_err());
    }
    assert!(results[0] == results[1] && results[0].iter().any(|&byte| byte != 0));
}

#[test]
fn a_profiled_run_times_each_call_and_computes_the_same_values() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // By timestamps, where the adapter has them, and by the clock.
    for without in [DeviceFeatures::empty(), DeviceFeatures::TIMESTAMP_QUERY] {
        let Some(backend) = open_with(Options { without, ..Options::default() }) else { return };
        check_profiled_run(backend);
    }
}

fn check_profiled_run(mut backend: WgpuBackend) {
    let mut graph = Graph::new();
    let [x, w, out] = ["x", "w", "out"].map(|name| graph.external(name, DType::F32, [256, 256]));
    let y = graph.one(Linear::plain(Layout::Nt), &[x, w]).unwrap();
    let sum = graph.one(Add {}, &[y, x]).unwrap();
    graph.apply(Store {}.into(), &[out, sum]).unwrap();
    let plan = Plan::build(&graph, true);
    let arena = backend.alloc(DType::F32, plan.arena / 4, "arena").unwrap();
    let externals: Vec<BufferId> =
        plan.externals.iter().map(|e| backend.alloc(DType::F32, 256 * 256, &e.name).unwrap()).collect();
    for (seed, &buffer) in (1..).zip(&externals[..2]) {
        backend.write(buffer, 0, &f32s(&[256, 256], seed).bytes).unwrap();
    }
    let id = backend.prepare(&plan, &[arena], &externals).unwrap();
    let mut results = [(); 2].map(|()| vec![0; 256 * 256 * 4]);
    backend.run(id).unwrap();
    backend.read(externals[2], 0, &mut results[0]).unwrap();
    backend.write(externals[2], 0, &vec![0; 256 * 256 * 4]).unwrap();
    let times = backend.run_profiled(id).unwrap();
    backend.read(externals[2], 0, &mut results[1]).unwrap();
    assert!(results[0] == results[1] && results[0].iter().any(|&byte| byte != 0));
    assert_eq!(times.len(), plan.calls.len());
    let linear = plan.calls.iter().position(|call| matches!(call.op, Op::Linear(_))).unwrap();
    assert!(!times[linear].is_zero(), "{times:?}");
    assert!(backend.run_profiled(PlanId(99)).is_err());
}
