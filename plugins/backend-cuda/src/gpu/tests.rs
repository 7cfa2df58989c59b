//! Tests the GPU code on stand-ins for NVIDIA's libraries, whose queue does its work only when waited for.

mod products;

use super::*;
use crate::CudaBackend;
use crate::machine::Matrix;
use sparta_graph::Backend;
use sparta_graph::ops::Layout;
use std::ffi::{CStr, c_char};
use std::path::Path;
use std::process::Command;

/// The stand-ins with these definitions, in their own directory; `None` without a C compiler.
fn libraries(definitions: &[&str]) -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/cuda/libraries.c");
    let driver = dir.path().join("libcuda.so.1");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&driver).arg(source).args(definitions).arg("-lm");
    let Ok(done) = compiler.output() else {
        eprintln!("SKIPPED: no C compiler `cc`");
        return None;
    };
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    // One file, so that the loader treats them all as one library.
    for name in ["libnvrtc.so.13", "libcublasLt.so.13"] {
        std::fs::hard_link(&driver, dir.path().join(name)).unwrap();
    }
    Some(dir)
}

fn tools(dir: &tempfile::TempDir) -> Result<Tools, NoDriver> {
    Tools::load(&Search::within(dir.path()), Cache::at(None), Settings { tunes: false, graphs: true })
}

/// Algorithms are chosen by time, and the choices kept in the directory.
fn tuned(dir: &tempfile::TempDir) -> Gpu {
    let settings = Settings { tunes: true, graphs: true };
    let tools = Tools::load(&Search::within(dir.path()), Cache::at(Some(dir.path().into())), settings).unwrap();
    Gpu::open(&tools, &tools.cards[0]).unwrap()
}

fn open(definitions: &[&str]) -> Option<Gpu> {
    let tools = tools(&libraries(definitions)?).unwrap();
    Some(Gpu::open(&tools, &tools.cards[0]).unwrap())
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

fn put(gpu: &mut Gpu, data: &[u8]) -> u64 {
    let address = gpu.alloc(data.len()).unwrap();
    // SAFETY: the memory has as many bytes.
    unsafe { gpu.write(address, data) }.unwrap();
    address
}

fn get(gpu: &mut Gpu, address: u64, length: usize) -> Vec<u8> {
    let mut out = vec![1; length];
    // SAFETY: tests ask for what they have allocated.
    unsafe { gpu.read(address, &mut out) }.unwrap();
    out
}

/// The stand-in's only kernel.
fn add(shared: u32) -> KernelText {
    KernelText { text: "good".into(), entry: "add".into(), shared }
}

fn launch(gpu: &mut Gpu, kernel: KernelId, address: u64, count: u32, value: f32) -> Result<(), Failure> {
    let mut arguments = Arguments::default();
    arguments.address(address);
    arguments.words(&[count, value.to_bits()]);
    // SAFETY: the arguments are those of the stand-in's kernel.
    unsafe { gpu.launch(kernel, [1, 1, 1], Threads { block: 32, shared: 0 }, &mut arguments) }
}

#[test]
fn cards_are_listed_with_the_versions_of_all_libraries() {
    let Some(dir) = libraries(&["-DCARDS=2"]) else { return };
    let tools = tools(&dir).unwrap();
    let infos: Vec<DeviceInfo> = tools.cards.iter().map(|card| tools.info(card)).collect();
    let ids: Vec<&str> = infos.iter().map(|info| info.id.as_str()).collect();
    assert_eq!(ids, ["cuda:0", "cuda:1"]);
    let second = &infos[1];
    assert_eq!((second.name.as_str(), second.memory), ("Stand-in B", Some((2 << 30) - CONTEXT)));
    assert_eq!(second.card.as_deref(), Some("0000:0b:00.0"));
    assert!(second.driver.contains("(CUDA 13.0)") || second.driver.contains("driver for CUDA 13.0"), "{second:?}");
    assert!(second.driver.ends_with(", NVRTC 13.0, cuBLASLt 13.0.2"), "{second:?}");
    assert_eq!((second.products.as_slice(), second.kind), (&[DType::BF16][..], DeviceKind::DiscreteGpu));
}

#[test]
fn missing_libraries_are_reported_with_their_package() {
    let Some(dir) = libraries(&["-DVERSION=12080"]) else { return };
    // A driver for CUDA 12 cannot run libraries of CUDA 13.
    let Err(NoDriver::Broken(reason)) = tools(&dir) else { panic!("there is no NVRTC 12") };
    let said =
        ["CUDA 12.8", "NVRTC is missing (libnvrtc.so.12)", "`pip install nvidia-cuda-nvrtc-cu12 nvidia-cublas-cu12`"];
    assert!(said.iter().all(|part| reason.contains(part)), "{reason}");
    let Some(dir) = libraries(&[]) else { return };
    std::fs::remove_file(dir.path().join("libcublasLt.so.13")).unwrap();
    let tools = tools(&dir).unwrap();
    let info = tools.info(&tools.cards[0]);
    let said = "products are slow, as cuBLASLt is missing (libcublasLt.so.13): `pip install nvidia-cublas~=13.0`";
    assert!(info.driver.contains(said), "{}", info.driver);
    assert_eq!((info.products.len(), info.multiplier.as_deref()), (0, Some("f32")));
    let mut gpu = Gpu::open(&tools, &tools.cards[0]).unwrap();
    assert_eq!(gpu.product(&product(Layout::Nt, DType::F32, DType::F32)).unwrap(), None);
}

#[test]
fn a_card_that_nothing_compiles_for_is_not_a_device() {
    let Some(dir) = libraries(&["-DCAPABILITY=6"]) else { return };
    let Err(NoDriver::Broken(reason)) = tools(&dir) else { panic!("the stand-in compiles from 7.5 on") };
    assert!(reason.starts_with("Stand-in A: NVRTC 13.0 cannot compile for compute capability 6.0; "), "{reason}");
}

#[test]
fn no_driver_is_absent_and_a_failing_one_broken() {
    let kind = |definitions: &[&str]| Some(tools(&libraries(definitions)?).err());
    let Some(absent) = kind(&["-DFAIL=\"cuInit\"", "-DCODE=100"]) else { return };
    assert!(matches!(absent, Some(NoDriver::Absent(_))), "{absent:?}");
    assert!(matches!(kind(&["-DCARDS=0"]), Some(Some(NoDriver::Absent(_)))));
    let broken = |call: &str, code: &str| match kind(&[&format!("-DFAIL=\"{call}\""), &format!("-DCODE={code}")]) {
        Some(Some(NoDriver::Broken(reason))) => reason,
        other => panic!("{call}: {other:?}"),
    };
    assert_eq!(broken("cuInit", "998"), "cuInit: error 998");
    for call in ["cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName"] {
        assert_eq!(broken(call, "3"), format!("{call}: CUDA_ERROR_OTHER (something else)"));
    }
    assert!(broken("cuDeviceTotalMem_v2", "3").starts_with("cuDeviceTotalMem: "));
    assert!(broken("cuDeviceGetAttribute", "3").starts_with("cuDeviceGetAttribute: "));
    assert!(broken("nvrtcVersion", "3").ends_with("is installed, but nvrtcVersion: NVRTC_ERROR_OTHER"));
}

#[test]
fn a_card_that_does_not_open_says_which_call_failed() {
    let opened = |call: &str, code: &str| {
        let dir = libraries(&[&format!("-DFAIL=\"{call}\""), &format!("-DCODE={code}")])?;
        let tools = tools(&dir).unwrap();
        Some(Gpu::open(&tools, &tools.cards[0]).err().unwrap_or_else(|| panic!("{call} does not fail")))
    };
    for (call, shown) in [
        ("cuCtxCreate_v2", "cuCtxCreate"),
        ("cuStreamCreate", "cuStreamCreate"),
        ("cuMemHostAlloc", "cuMemHostAlloc of 16777216 bytes"),
        ("cuEventCreate", "cuEventCreate"),
        ("cuMemsetD8Async", "cuMemsetD8Async"),
        ("cuMemGetInfo_v2", "cuMemGetInfo"),
    ] {
        let Some(failure) = opened(call, "3") else { return };
        assert_eq!(failure, Failure::Other(format!("{shown}: CUDA_ERROR_OTHER (something else)")));
    }
    assert_eq!(opened("cuMemAlloc_v2", "2"), Some(Failure::OutOfMemory { bytes: 32 << 20 }));
    assert_eq!(opened("cuCtxCreate_v2", "2"), Some(Failure::OutOfMemory { bytes: CONTEXT }));
    assert_eq!(opened("cublasLtCreate", "3"), Some(Failure::OutOfMemory { bytes: CONTEXT }));
    assert_eq!(opened("cublasLtCreate", "1"), Some(Failure::Other("cublasLtCreate: some status (1)".into())));
}

/// What a run does with a card, from the search for libraries on.
fn everything(dir: &tempfile::TempDir) -> Result<(), String> {
    let settings = Settings { tunes: true, graphs: true };
    let tools = Tools::load(&Search::within(dir.path()), Cache::at(None), settings);
    let tools = tools.map_err(|none| none.reason().to_owned())?;
    let reason = |failure: Failure| failure.reason();
    let mut gpu = Gpu::open(&tools, &tools.cards[0]).map_err(reason)?;
    let work = |gpu: &mut Gpu| {
        let kernel = gpu.load(&[add(1000)])?[0];
        let address = gpu.alloc(8)?;
        let mut out = [0; 8];
        gpu.mark()?;
        launch(gpu, kernel, address, 2, 10.0)?;
        gpu.mark()?;
        // SAFETY: the memory has 8 bytes.
        unsafe {
            gpu.write(address, &[1; 8])?;
            gpu.copy(address, address + 4, 4)?;
            gpu.read(address, &mut out)?;
            let reading = gpu.start_read(address, 8)?;
            gpu.finish_read(reading, &mut out)?;
        }
        gpu.times()?;
        let form = Product { bias: true, ..product(Layout::Nt, DType::F32, DType::F32) };
        let id = gpu.product(&form)?.ok_or_else(|| Failure::Other("no algorithm".into()))?;
        let place = gpu.alloc(5 * 256)?;
        let [a, b, c, bias, residual] = [0, 1, 2, 3, 4].map(|i| place + 256 * i);
        let factors = Factors { a, b, c, bias, residual, scale: 1.0 };
        // SAFETY: each matrix lies within 256 bytes.
        unsafe { gpu.multiply(id, &factors) }?;
        let graph = gpu.record(&mut |machine| {
            // SAFETY: as above.
            unsafe { machine.multiply(id, &factors) }
        })?;
        let graph = graph.ok_or_else(|| Failure::Other("nothing recorded".into()))?;
        gpu.replay(graph)?;
        gpu.forget(graph);
        gpu.mark()?;
        gpu.free(address);
        Ok(())
    };
    work(&mut gpu).map_err(reason)
}

/// The stand-ins of a directory, whose calls can be made to fail one after the other.
struct StandIn(libloading::Library);

impl StandIn {
    /// Makes a function fail with a code from a call on; counts anew.
    fn fail(&self, name: &CStr, code: i32, from: i32) {
        // SAFETY: the function of `libraries.c`, which keeps the pointer: callers let it live as long.
        unsafe {
            let fail = self.0.get::<unsafe extern "C" fn(*const c_char, i32, i32)>(b"stand_in_fails").unwrap();
            fail(name.as_ptr(), code, from);
        }
    }

    /// What was called, and how often.
    fn called(&self) -> Vec<(CString, i32)> {
        // SAFETY: the function of `libraries.c`; the names are its own.
        let at = |i| unsafe {
            let called =
                self.0.get::<unsafe extern "C" fn(i32, *mut i32) -> *const c_char>(b"stand_in_called").unwrap();
            let mut calls = 0;
            let name = called(i, &mut calls);
            (!name.is_null()).then(|| (CStr::from_ptr(name).to_owned(), calls))
        };
        (0..).map_while(at).collect()
    }
}

/// Whatever fails, at whatever point, the error names it; anything that can do without it continues.
#[test]
fn each_call_that_fails_is_named() {
    let Some(dir) = libraries(&[]) else { return };
    // SAFETY: loading the stand-ins runs nothing.
    let stand_in = StandIn(unsafe { libloading::Library::new(dir.path().join("libcuda.so.1")) }.unwrap());
    stand_in.fail(c"", 0, 0);
    everything(&dir).unwrap();
    let calls = stand_in.called();
    assert!(calls.len() > 40, "{calls:?}");
    // A card without a bus address is still a card; what is not freed goes with its context, and the waits for that
    // come last.
    let harmless = ["cuDeviceGetPCIBusId", "cuGraphExecDestroy"];
    for (name, count) in &calls {
        let shown = name.to_str().unwrap();
        // The first code has no special meaning in any library.
        for (code, from) in [(5, 0), (5, count / 2), (700, 0), (700, count / 2)] {
            stand_in.fail(name, code, from);
            match everything(&dir) {
                Ok(()) if from > 0 && shown == "cuStreamSynchronize" => {}
                Ok(()) => assert!(harmless.contains(&shown), "{shown} fails, and nobody sees it"),
                Err(said) => {
                    assert!(said.contains(shown.trim_end_matches("_v2")), "{shown} fails from call {from}: {said}");
                }
            }
        }
    }
}

#[test]
fn memory_that_others_use_on_a_card_is_left_to_them() {
    for (used, left) in [("0", (1 << 30) - CONTEXT), ("(700ull<<20)", 324 << 20)] {
        let Some(gpu) = open(&[&format!("-DUSED={used}")]) else { return };
        let info = gpu.info();
        assert_eq!((info.memory, info.max_buffer), (Some(left), (1 << 30) - CONTEXT));
    }
}

#[test]
fn a_launch_without_memory_fails_with_advice() {
    let Some(mut gpu) = open(&["-DFAIL=\"cuLaunchKernel\"", "-DCODE=2"]) else { return };
    let (kernel, address) = (gpu.load(&[add(0)]).unwrap()[0], gpu.alloc(4).unwrap());
    let said = format!("cuLaunchKernel: CUDA_ERROR_OUT_OF_MEMORY (out of memory); {}", driver::TO_HAVE_MEMORY);
    assert_eq!(launch(&mut gpu, kernel, address, 1, 1.0), Err(Failure::Other(said)));
}

#[test]
fn a_lost_device_says_how_to_find_the_op() {
    let Some(gpu) = open(&["-DFAIL=\"cuMemcpyHtoDAsync_v2\"", "-DCODE=700"]) else { return };
    let mut backend = CudaBackend::new(Box::new(gpu)).unwrap();
    let buffer = backend.alloc(DType::F32, 2, "x").unwrap();
    let said = "cuda:0: the device was lost during x: cuMemcpyHtoDAsync: CUDA_ERROR_ILLEGAL_ADDRESS (an illegal \
                memory access was encountered); with SPARTA_CUDA_GRAPHS=0 and CUDA_LAUNCH_BLOCKING=1, this message \
                names the op";
    assert_eq!(backend.write(buffer, 0, &[0; 8]).unwrap_err().to_string(), said);
}

#[test]
fn memory_is_zero_and_bytes_come_back_however_many() {
    let Some(mut gpu) = open(&[]) else { return };
    let empty = gpu.alloc(0).unwrap();
    gpu.free(empty);
    let address = gpu.alloc(1000).unwrap();
    assert_eq!(get(&mut gpu, address, 1000), vec![0; 1000]);
    // Larger than both halves of the pinned memory, in pieces that do not fit its end.
    let large: Vec<u8> = (0..70_000_003u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect();
    let whole = put(&mut gpu, &large);
    assert_eq!(get(&mut gpu, whole, large.len()), large);
    let pieces = gpu.alloc(large.len()).unwrap();
    let mut at = 0;
    for (i, piece) in large.chunks(7_777_777).enumerate() {
        // SAFETY: the memory has as many bytes as `large`.
        unsafe { gpu.write(pieces + at, piece) }.unwrap();
        at += piece.len() as u64;
        // SAFETY: as above.
        unsafe { gpu.write(address, &[i as u8]) }.unwrap();
    }
    assert_eq!(get(&mut gpu, pieces, large.len()), large);
    assert_eq!(get(&mut gpu, address, 2), [9, 0]);
    // SAFETY: both ranges are allocated.
    unsafe { gpu.copy(whole + 5, address, 990) }.unwrap();
    assert_eq!(get(&mut gpu, address, 990), large[5..995]);
}

#[test]
fn reads_return_the_state_of_their_moment() {
    let Some(mut gpu) = open(&[]) else { return };
    let kernel = gpu.load(&[add(0)]).unwrap()[0];
    let address = put(&mut gpu, &bytes(&[1.0, 2.0]));
    let mut readings = Vec::new();
    for _ in 0..3 {
        launch(&mut gpu, kernel, address, 2, 10.0).unwrap();
        // SAFETY: the memory has 8 bytes.
        readings.push(unsafe { gpu.start_read(address, 8) }.unwrap());
    }
    let mut out = [0; 8];
    for (i, reading) in readings.iter().enumerate().rev() {
        gpu.finish_read(*reading, &mut out).unwrap();
        assert_eq!(floats(&out), [1.0 + 10.0 * (i + 1) as f32, 2.0 + 10.0 * (i + 1) as f32]);
    }
    let again = gpu.finish_read(readings[0], &mut out);
    assert_eq!(again, Err(Failure::Other("there is no requested read 1".into())));
    // SAFETY: the memory has 8 bytes.
    let short = unsafe { gpu.start_read(address, 4) }.unwrap();
    assert!(matches!(gpu.finish_read(short, &mut out), Err(Failure::Other(_))));
    // SAFETY: as above.
    let nothing = unsafe { gpu.start_read(address, 0) }.unwrap();
    gpu.finish_read(nothing, &mut []).unwrap();
}

#[test]
fn kernels_get_their_arguments_and_shared_memory() {
    let Some(mut gpu) = open(&[]) else { return };
    let kernels = gpu.load(&[add(0), add(100_000)]).unwrap();
    assert_eq!(kernels, [KernelId(0), KernelId(1)]);
    let address = put(&mut gpu, &bytes(&[0.0; 4]));
    let mut arguments = Arguments::default();
    arguments.address(address);
    arguments.words(&[3, 0.5f32.to_bits()]);
    for (kernel, shared, right) in [(1, 100_000, true), (0, 100_000, false)] {
        let threads = Threads { block: 64, shared };
        // SAFETY: the arguments are those of the stand-in's kernel.
        let launched = unsafe { gpu.launch(kernels[kernel], [1, 1, 1], threads, &mut arguments) };
        assert_eq!(launched.is_ok(), right);
    }
    assert_eq!(floats(&get(&mut gpu, address, 16)), [0.5, 0.5, 0.5, 0.0]);
    let wrong = KernelText { text: "first line\nwrong".into(), entry: "bad".into(), shared: 0 };
    let message = "NVRTC 13.0 does not compile kernel bad: bad(2): error: it is wrong [wrong]";
    assert_eq!(gpu.load(&[add(0), wrong]), Err(Failure::Other(message.into())));
    let large = "kernel add: cuFuncSetAttribute to 1048576 bytes of shared memory: CUDA_ERROR_OTHER (something else)";
    assert_eq!(gpu.load(&[add(1 << 20)]), Err(Failure::Other(large.into())));
}

#[test]
fn marks_time_what_is_between_them() {
    let Some(mut gpu) = open(&[]) else { return };
    let kernel = gpu.load(&[add(0)]).unwrap()[0];
    let address = put(&mut gpu, &bytes(&[0.0]));
    for _ in 0..2 {
        for launches in [0, 2, 3] {
            (0..launches).for_each(|_| launch(&mut gpu, kernel, address, 1, 1.0).unwrap());
            gpu.mark().unwrap();
        }
        assert_eq!(gpu.times().unwrap(), [Duration::from_millis(2), Duration::from_millis(3)]);
    }
    assert_eq!(gpu.times().unwrap(), []);
}

#[test]
fn a_lost_device_stays_lost_and_other_errors_pass() {
    let Some(mut gpu) = open(&["-DFAIL=\"cuMemcpyDtoDAsync_v2\"", "-DCODE=700"]) else { return };
    let address = gpu.alloc(8).unwrap();
    // SAFETY: the stand-in fails before it copies.
    let lost = unsafe { gpu.copy(address, address, 8) }.unwrap_err();
    let reason = "cuMemcpyDtoDAsync: CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access was encountered)";
    assert_eq!(lost, Failure::Lost(reason.into()));
    assert_eq!(gpu.alloc(8), Err(lost.clone()));
    assert_eq!(gpu.mark(), Err(lost.clone()));
    assert_eq!(gpu.product(&product(Layout::Nt, DType::F32, DType::F32)), Err(lost));
    gpu.free(address);

    // The first is that of the products' memory.
    let Some(mut gpu) = open(&["-DFAIL=\"cuMemAlloc_v2\"", "-DCODE=2", "-DAFTER=1"]) else { return };
    assert_eq!(gpu.alloc(1 << 40), Err(Failure::OutOfMemory { bytes: 1 << 40 }));
    assert_eq!(gpu.mark(), Ok(()));
}

/// 3 x 5 from an inner dimension of 4; the rows of each matrix are longer than they need be.
fn product(layout: Layout, factors: DType, result: DType) -> Product {
    let matrix = |dtype| Matrix { dtype, stride: 8 };
    let (a, b, c) = (matrix(factors), matrix(factors), matrix(result));
    Product { layout, m: 3, n: 5, k: 4, a, b, c, bias: false, residual: false, tf32: false }
}

/// 3 x 5 matrices of 8-element rows for [`product`], the elements of `a` and `b` all `value`.
fn factors(gpu: &mut Gpu, value: f32) -> Factors {
    let [a, b, c] = [value, value, 0.0].map(|value| put(gpu, &bytes(&[value; 64])));
    Factors { a, b, c, bias: 0, residual: 0, scale: 1.0 }
}

#[test]
fn recorded_work_is_done_whenever_it_is_replayed() {
    let Some(mut gpu) = open(&[]) else { return };
    let kernel = gpu.load(&[add(0)]).unwrap()[0];
    let [from, to] = [0, 1].map(|_| put(&mut gpu, &bytes(&[1.0, 2.0])));
    let mut arguments = Arguments::default();
    arguments.address(from);
    arguments.words(&[2, 10f32.to_bits()]);
    let graph = gpu.record(&mut |machine| {
        // SAFETY: the arguments are those of the stand-in's kernel, and both ranges have 8 bytes.
        unsafe {
            machine.launch(kernel, [1, 1, 1], Threads { block: 32, shared: 0 }, &mut arguments)?;
            machine.copy(from, to, 8)
        }
    });
    let graph = graph.unwrap().unwrap();
    assert_eq!(floats(&get(&mut gpu, to, 8)), [1.0, 2.0], "recorded, not done");
    for round in 1..=3 {
        gpu.replay(graph).unwrap();
        let sum = 10.0 * round as f32;
        assert_eq!(floats(&get(&mut gpu, to, 8)), [1.0 + sum, 2.0 + sum]);
    }
    // What it reads is in memory, not in the recording.
    // SAFETY: the memory has 8 bytes.
    unsafe { gpu.write(from, &bytes(&[5.0, 6.0])) }.unwrap();
    gpu.replay(graph).unwrap();
    assert_eq!(floats(&get(&mut gpu, to, 8)), [15.0, 16.0]);
    gpu.forget(graph);
    assert_eq!(gpu.replay(graph), Err(Failure::Other("no such graph".into())));
}

#[test]
fn what_cannot_be_recorded_leaves_the_queue_as_it_was() {
    let Some(mut gpu) = open(&[]) else { return };
    let kernel = gpu.load(&[add(0)]).unwrap()[0];
    let address = put(&mut gpu, &bytes(&[1.0]));
    // A read waits, which a recording cannot.
    let recorded = gpu.record(&mut |machine| {
        // SAFETY: the memory has 4 bytes.
        unsafe { machine.read(address, &mut [0; 4]) }
    });
    assert!(matches!(recorded, Err(Failure::Other(_))), "{recorded:?}");
    launch(&mut gpu, kernel, address, 1, 1.0).unwrap();
    assert_eq!(floats(&get(&mut gpu, address, 4)), [2.0]);
}
