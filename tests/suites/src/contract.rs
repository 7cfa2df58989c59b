//! What the trait [`Backend`](sparta_graph::Backend) promises beyond results: memory, handles and errors.

use crate::Subject;
use sparta_graph::graph::Graph;
use sparta_graph::ops::{Accumulate, Fill, Store};
use sparta_graph::{Backend, BackendError, BufferId, DType, Plan, PlanId, ReadId, Work};

type Check = fn(&mut dyn Backend) -> Result<(), String>;

const CHECKS: [(&str, Check); 7] = [
    ("what the device says about itself", describes_itself),
    ("new memory is zero", new_memory_is_zero),
    ("elements are written and read where they belong", offsets_count_elements),
    ("using what does not exist is an error", unknown_handles_are_errors),
    ("a plan runs as often as asked, in order", plans_run_in_order),
    ("work that is submitted together is done in order", submitted_work_is_done_in_order),
    ("memory in use is counted", memory_is_counted),
];

/// The violations of the contract, regardless of results.
pub fn check(subject: &mut Subject) -> Vec<String> {
    let mut failures = vec![];
    for (what, check) in CHECKS {
        println!("{}: {what}", subject.name);
        let outcome = match subject.open() {
            Ok(mut backend) => check(backend.as_mut()),
            Err(e) => Err(format!("cannot be opened: {e}")),
        };
        failures.extend(outcome.err().map(|why| format!("{what}: {why}")));
    }
    failures
}

const DTYPES: [DType; 4] = [DType::F32, DType::BF16, DType::F16, DType::U32];

fn text(error: BackendError) -> String {
    error.to_string()
}

fn expect(ok: bool, why: impl Into<String>) -> Result<(), String> {
    if ok { Ok(()) } else { Err(why.into()) }
}

fn describes_itself(backend: &mut dyn Backend) -> Result<(), String> {
    let info = backend.info();
    expect(!info.id.is_empty() && !info.name.is_empty(), "its id or its name is empty")?;
    expect(info.max_buffer >= 1 << 20, format!("max_buffer is {} bytes, less than 1 MiB", info.max_buffer))?;
    expect(info.activations.contains(&DType::F32), "it does not offer f32 activations, which every backend must")
}

fn new_memory_is_zero(backend: &mut dyn Backend) -> Result<(), String> {
    for dtype in DTYPES {
        // The second may get the memory of the first.
        for _ in 0..2 {
            let buffer = backend.alloc(dtype, 1000, "zero").map_err(text)?;
            let mut bytes = vec![1; 1000 * dtype.size()];
            backend.read(buffer, 0, &mut bytes).map_err(text)?;
            expect(bytes.iter().all(|&b| b == 0), format!("a new {dtype} buffer is not zero"))?;
            backend.write(buffer, 0, &vec![0x3f; bytes.len()]).map_err(text)?;
            backend.free(buffer);
        }
    }
    Ok(())
}

fn offsets_count_elements(backend: &mut dyn Backend) -> Result<(), String> {
    for dtype in DTYPES {
        let size = dtype.size();
        let buffer = backend.alloc(dtype, 64, "offsets").map_err(text)?;
        let data: Vec<u8> = (0..6 * size as u8).collect();
        backend.write(buffer, 10, &data).map_err(text)?;
        let mut out = vec![0xff; 10 * size];
        backend.read(buffer, 8, &mut out).map_err(text)?;
        let expected = [vec![0; 2 * size], data, vec![0; 2 * size]].concat();
        expect(out == expected, format!("{dtype}: read {out:?}, expected {expected:?}"))?;
        let mut beyond = vec![0; 4 * size];
        expect(
            backend.read(buffer, 62, &mut beyond).is_err(),
            format!("{dtype}: a buffer can be read beyond its end"),
        )?;
        expect(
            backend.write(buffer, 62, &beyond).is_err(),
            format!("{dtype}: a buffer can be written beyond its end"),
        )?;
        backend.free(buffer);
    }
    Ok(())
}

fn unknown_handles_are_errors(backend: &mut dyn Backend) -> Result<(), String> {
    let freed = backend.alloc(DType::F32, 4, "freed").map_err(text)?;
    backend.free(freed);
    expect(backend.read(freed, 0, &mut [0; 4]).is_err(), "a freed buffer can be read")?;
    expect(backend.write(BufferId(u64::MAX), 0, &[0; 4]).is_err(), "a buffer that never existed can be written")?;
    expect(backend.run(PlanId(u64::MAX)).is_err(), "a plan that never existed can be run")?;
    let plan = doubling()?;
    let (arena, buffers) = memory_of(backend, &plan)?;
    expect(backend.prepare(&plan, &arena, &[]).is_err(), "a plan can be prepared without its buffers")?;
    let id = backend.prepare(&plan, &arena, &buffers).map_err(text)?;
    backend.release(id);
    expect(backend.run(id).is_err(), "a released plan can be run")
}

/// x += x, four elements.
fn doubling() -> Result<Plan, String> {
    let mut graph = Graph::new();
    let [x, y] = ["x", "y"].map(|name| graph.external(name, DType::F32, [4]));
    let mut apply = |op: sparta_graph::Op, inputs: &[_]| graph.apply(op, inputs).map_err(|e| e.to_string());
    apply(Store {}.into(), &[y, x])?;
    apply(Accumulate {}.into(), &[x, y])?;
    // Needs an arena.
    let one = apply(Fill { value: 1.0, shape: vec![4] }.into(), &[])?[0];
    apply(Store {}.into(), &[y, one])?;
    Ok(Plan::build(&graph, false))
}

fn memory_of(backend: &mut dyn Backend, plan: &Plan) -> Result<(Vec<BufferId>, Vec<BufferId>), String> {
    let buffers = plan.externals.iter().map(|e| backend.alloc(e.ty.dtype, e.ty.numel(), &e.name));
    let buffers = buffers.collect::<Result<Vec<_>, _>>().map_err(text)?;
    let arena = plan.arena_buffers().iter().map(|bytes| backend.alloc(DType::F32, bytes / 4, "arena"));
    Ok((arena.collect::<Result<Vec<_>, _>>().map_err(text)?, buffers))
}

fn plans_run_in_order(backend: &mut dyn Backend) -> Result<(), String> {
    let plan = doubling()?;
    let (arena, buffers) = memory_of(backend, &plan)?;
    let id = backend.prepare(&plan, &arena, &buffers).map_err(text)?;
    let x = plan.externals.iter().position(|e| e.name == "x").ok_or("the plan has no x")?;
    let floats = |values: [f32; 4]| values.map(f32::to_le_bytes).concat();
    let read = |backend: &mut dyn Backend, expected: [f32; 4]| {
        let mut out = vec![0; 16];
        backend.read(buffers[x], 0, &mut out).map_err(text)?;
        expect(out == floats(expected), format!("x is {out:?}, expected the bytes of {expected:?}"))
    };
    backend.write(buffers[x], 0, &floats([1.0, 2.0, -3.0, 0.5])).map_err(text)?;
    for _ in 0..3 {
        backend.run(id).map_err(text)?;
    }
    read(backend, [8.0, 16.0, -24.0, 4.0])?;
    backend.write(buffers[x], 1, &1f32.to_le_bytes()).map_err(text)?;
    backend.run(id).map_err(text)?;
    read(backend, [16.0, 2.0, -48.0, 8.0])
}

fn submitted_work_is_done_in_order(backend: &mut dyn Backend) -> Result<(), String> {
    let plan = doubling()?;
    let (arena, buffers) = memory_of(backend, &plan)?;
    let id = backend.prepare(&plan, &arena, &buffers).map_err(text)?;
    let x = buffers[plan.externals.iter().position(|e| e.name == "x").ok_or("the plan has no x")?];
    let (first, second) = ([1f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat(), 10f32.to_le_bytes());
    let write = |offset, data| Work::Write { buffer: x, offset, data };
    let run = Work::Run(id);
    backend.submit(&[write(0, &first), run, write(1, &second), run]).map_err(text)?;
    let early = backend.request(x, 0, 16).map_err(text)?;
    backend.submit(&[run]).map_err(text)?;
    let late = backend.request(x, 1, 8).map_err(text)?;
    // Each read returns the state at its request, in whatever order the reads are fetched.
    let (mut late_bytes, mut early_bytes) = ([0; 8], [0; 16]);
    backend.fetch(late, &mut late_bytes).map_err(text)?;
    backend.fetch(early, &mut early_bytes).map_err(text)?;
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    expect(
        early_bytes[..] == bytes(&[4.0, 20.0, 12.0, 16.0]),
        format!("the first read gave the bytes {early_bytes:?}"),
    )?;
    expect(late_bytes[..] == bytes(&[40.0, 24.0]), format!("the second read gave the bytes {late_bytes:?}"))?;
    expect(backend.fetch(ReadId::Pending(u64::MAX), &mut [0; 4]).is_err(), "a read that never existed can be fetched")?;
    expect(backend.submit(&[Work::Run(PlanId(u64::MAX))]).is_err(), "a plan that never existed can be submitted")
}

/// A backend need not count.
fn memory_is_counted(backend: &mut dyn Backend) -> Result<(), String> {
    let Some(before) = backend.memory_use() else { return Ok(()) };
    let buffer = backend.alloc(DType::F32, 1 << 20, "counted").map_err(text)?;
    let used = backend.memory_use().unwrap_or_default();
    let grown = used.in_use.saturating_sub(before.in_use);
    expect((4 << 20..=5 << 20).contains(&grown), format!("4 MiB were allocated, and {grown} bytes more are in use"))?;
    backend.free(buffer);
    let after = backend.memory_use().unwrap_or_default();
    expect(after.in_use < used.in_use, "what is freed is still in use")?;
    expect(after.peak >= used.in_use, format!("the peak is {}, {} were in use", after.peak, used.in_use))
}
