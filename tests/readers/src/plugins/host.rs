//! What the host reads: the answers of a plugin, which are the lines of the input in order.

use serde_json::json;
use sparta_core::plugin::{Entry, PluginSet};
use sparta_core::splits;
use sparta_graph::{DType, Graph, Op, Plan, Value};
use sparta_plugin::Error;
use sparta_plugin::abi::*;
use sparta_plugin::method::{GraphBuilder, Method, Options, Parameter, Role, Site};
use sparta_plugin::task::{OpenRequest, Task};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicPtr, Ordering};

thread_local! {
    static LINES: RefCell<VecDeque<Vec<u8>>> = RefCell::default();
}

static HOST: AtomicPtr<SpartaHost> = AtomicPtr::new(std::ptr::null_mut());

fn host() -> &'static SpartaHost {
    // SAFETY: the entry function stored the host's table, which lives as long as the process.
    unsafe { &*HOST.load(Ordering::Acquire) }
}

fn next_line() -> Option<Vec<u8>> {
    LINES.with_borrow_mut(VecDeque::pop_front)
}

/// Returns the next line as the result, or as an error if it begins with `!`.
unsafe extern "C" fn answer(call: SpartaCall) -> SpartaStatus {
    let line = next_line().unwrap_or_default();
    // SAFETY: `call` came from the host, and the bytes live until the function returns.
    unsafe {
        match line.strip_prefix(b"!") {
            Some(message) => {
                (host().error)(call, SpartaBytes::new(message));
                FAILED
            }
            None => {
                (host().result)(call, SpartaBytes::new(&line));
                OK
            }
        }
    }
}

unsafe extern "C" fn answer_request(call: SpartaCall, _request: SpartaBytes) -> SpartaStatus {
    // SAFETY: as the host called this function.
    unsafe { answer(call) }
}

unsafe extern "C" fn answer_handle(call: SpartaCall, _handle: u64) -> SpartaStatus {
    // SAFETY: as the host called this function.
    unsafe { answer(call) }
}

unsafe extern "C" fn next(call: SpartaCall, _iterator: u64, _max: usize) -> SpartaStatus {
    // SAFETY: as the host called this function.
    unsafe { answer(call) }
}

unsafe extern "C" fn open(_call: SpartaCall, _request: SpartaBytes, handle: *mut u64) -> SpartaStatus {
    // SAFETY: the host passes a writable `u64`.
    unsafe { handle.write(1) };
    OK
}

unsafe extern "C" fn open_backend(call: SpartaCall, _device: SpartaBytes, handle: *mut u64) -> SpartaStatus {
    // SAFETY: the host passes a writable `u64`.
    unsafe { handle.write(1) };
    // SAFETY: as the host called this function.
    unsafe { answer(call) }
}

unsafe extern "C" fn examples(_call: SpartaCall, _set: u64, _part: SpartaBytes, handle: *mut u64) -> SpartaStatus {
    // SAFETY: the host passes a writable `u64`.
    unsafe { handle.write(2) };
    OK
}

unsafe extern "C" fn close(_handle: u64) {}

/// Adds the operations of all remaining lines: digits, which are values, then the operation.
unsafe extern "C" fn forward(
    call: SpartaCall,
    _site: SpartaBytes,
    _x: u32,
    _w: u32,
    _extra: *const u32,
    _extra_count: usize,
    y: *mut u32,
) -> SpartaStatus {
    let mut latest = 0;
    while let Some(line) = next_line() {
        let digits = line.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let inputs: Vec<u32> = line[..digits].iter().map(|digit| u32::from(digit - b'0')).collect();
        let (mut outputs, mut count) = ([0; 4], 0);
        // SAFETY: every pointer and length describes a live local, and the call is still running.
        let status = unsafe {
            let op = SpartaBytes::new(&line[digits..]);
            (host().graph_apply)(call, op, inputs.as_ptr(), inputs.len(), outputs.as_mut_ptr(), 4, &mut count)
        };
        if status == OK && count > 0 {
            latest = outputs[0];
        }
    }
    // SAFETY: the host passes a writable `u32`.
    unsafe { y.write(latest) };
    OK
}

static METHOD: SpartaMethod = SpartaMethod {
    size: size_of::<SpartaMethod>(),
    describe: Some(answer),
    select: Some(answer_request),
    forward: Some(forward),
    merge: None,
    forward_with_bias: None,
    merge_with_bias: None,
    penalty: None,
    update: None,
    steps: None,
    on_step: None,
};

static TASK: SpartaTask = SpartaTask {
    size: size_of::<SpartaTask>(),
    describe: Some(answer),
    open: Some(open),
    recipe: Some(answer_handle),
    examples: Some(examples),
    next: Some(next),
    close_examples: Some(close),
    close: Some(close),
};

static BACKEND: SpartaBackend = SpartaBackend {
    size: size_of::<SpartaBackend>(),
    describe: Some(answer),
    devices: Some(answer),
    open: Some(open_backend),
    close: Some(close),
    alloc: None,
    free: None,
    write: None,
    read: None,
    prepare: None,
    run: None,
    release: None,
    run_profiled: None,
    memory: None,
    submit: None,
    request: None,
    fetch: None,
    prepare_own: None,
};

macro_rules! entry {
    ($name:ident, $id:ident, $table:ident) => {
        unsafe extern "C" fn $name(host: *const SpartaHost) -> *const SpartaPlugin {
            static INTERFACE: SpartaInterface = SpartaInterface {
                size: size_of::<SpartaInterface>(),
                id: SpartaBytes::new($id.as_bytes()),
                table: (&raw const $table).cast(),
            };
            static INTERFACES: InterfaceList<1> = InterfaceList([&raw const INTERFACE]);
            static PLUGIN: SpartaPlugin = SpartaPlugin {
                size: size_of::<SpartaPlugin>(),
                abi_major: ABI_MAJOR,
                abi_minor: ABI_MINOR,
                interface_count: 1,
                interfaces: (&raw const INTERFACES).cast(),
            };
            HOST.store(host.cast_mut(), Ordering::Release);
            &raw const PLUGIN
        }
    };
}

entry!(method_entry, METHOD_ID, METHOD);
entry!(task_entry, TASK_ID, TASK);
entry!(backend_entry, BACKEND_ID, BACKEND);

fn linked(entry: Entry, bytes: &[u8]) -> PluginSet {
    LINES.set(bytes.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect());
    let mut plugins = PluginSet::default();
    // SAFETY: the entry points of this file obey the ABI, and their tables are statics.
    unsafe { plugins.link(entry) };
    plugins
}

struct Builder(Graph);

impl GraphBuilder for Builder {
    fn apply(&mut self, op: Op, inputs: &[Value]) -> Result<Vec<Value>, Error> {
        self.0.apply(op, inputs).map_err(|e| Error(e.to_string()))
    }

    fn shape(&self, value: Value) -> Result<Vec<usize>, Error> {
        self.0.shape(value).map(<[usize]>::to_vec).map_err(|e| Error(e.to_string()))
    }

    fn rng(&mut self) -> Result<Value, Error> {
        Ok(Value(3))
    }
}

pub fn method(bytes: &[u8]) -> bool {
    let plugins = linked(method_entry, bytes);
    let Some(method) = plugins.methods().first() else { return false };
    let w = Parameter { name: "w".into(), shape: vec![3, 4], dtype: DType::F32, role: Role::QProj, layer: Some(0) };
    let selected = method.select(std::slice::from_ref(&w), &Options::new()).is_ok();
    let mut graph = Graph::new();
    let [x, weight] = [("x", [5, 4]), ("w", [3, 4])].map(|(name, shape)| graph.external(name, DType::F32, shape));
    graph.external("ids", DType::U32, [5]);
    graph.external("rng", DType::U32, [4]);
    let mut builder = Builder(graph);
    let site = Site { parameter: w, options: Options::new(), training: true };
    let built = method.forward(&site, &mut builder, x, weight, &[]).is_ok();
    // What the host accepted as operations it must be able to plan.
    drop(Plan::build(&builder.0, true));
    selected && built
}

pub fn good_method() -> Vec<Vec<u8>> {
    let info = json!({"name": "m", "version": "1", "summary": "", "default_lr": 0.1, "options": [
        {"name": "r", "help": "", "kind": {"type": "int", "min": 1, "max": 9}, "default": 2},
        {"name": "p", "help": "", "kind": {"type": "float", "min": 0.0, "max": 1.0, "min_open": true}, "default": 0.5},
        {"name": "t", "help": "", "kind": {"type": "text"}, "default": null}]});
    let reparam =
        json!([{"reparam": {"tensors": [{"name": "a", "shape": [2, 4], "init": {"uniform": {"bound": 0.5}}}]}}]);
    let sparse = json!([{"sparse": {"probability": 0.05}}]);
    let linear = json!({"op": "linear", "layout": "nt", "scale": 1.0, "bias": false, "residual": false});
    let operations = [
        "0{\"op\":\"scale\",\"factor\":2.0}",
        "00{\"op\":\"add\"}",
        "{\"op\":\"fill\",\"value\":1.0,\"shape\":[3,4]}",
        "0{\"op\":\"cast\",\"to\":\"bf16\"}",
        "03{\"op\":\"dropout\",\"p\":0.1,\"salt\":1}",
        "02{\"op\":\"select_rows\"}",
    ]
    .join("\n");
    vec![
        format!("{info}\n{reparam}\n{operations}").into(),
        format!("{info}\n{sparse}\n01{linear}\n{operations}").into(),
        format!("{info}\n[\"dense\"]\n").into(),
    ]
}

pub fn task(bytes: &[u8]) -> bool {
    let plugins = linked(task_entry, bytes);
    let Some(task) = plugins.tasks().first() else { return false };
    let Some(info) = task.info().tasks.first() else { return false };
    let request = OpenRequest::new(info.id.clone(), "data");
    let open = || task.open(&request);
    // The answers are given in order, whoever asks.
    let source = splits::Source { threads: 1, ..splits::Source::new(&open, &request.data) };
    let load = |opened| splits::load(opened, &splits::SPLITS, 7);
    splits::open(&source, info).and_then(load).is_ok()
}

pub fn good_task() -> Vec<Vec<u8>> {
    let info = json!({"name": "t", "version": "1", "tasks": [{"id": "t", "title": "", "labels": ["no", "yes"],
        "metrics": ["accuracy", "f1"], "primary": "f1", "pair": true,
        "prompt": {"template": "Is it? {text} {pair}", "verbalizers": ["No", "Yes"]}}]});
    let recipe = json!({"train": {"parts": ["a"], "take": "all"}, "dev": {"parts": ["b"], "take": {"draw": {"count": 1}}},
        "test": {"parts": ["b"], "take": {"rest": {"cap": 2}}}, "notes": ["x"]});
    let example = |text: &str, label: u32| json!({"text": text, "pair": "p", "label": label});
    let part = json!([example("a", 0), example("b", 1), example("c", 1), example("d", 0)]);
    vec![format!("{info}\n{recipe}\n{part}\n[]\n{part}\n{part}\n[]").into()]
}

pub fn backend(bytes: &[u8]) -> bool {
    let plugins = linked(backend_entry, bytes);
    let Some(backend) = plugins.backends().first() else { return false };
    let listed = backend.devices().is_ok();
    let opened =
        backend.open("d").map(|mut device| drop((device.info(), device.run_profiled(sparta_graph::PlanId(0)))));
    listed && opened.is_ok()
}

pub fn good_backend() -> Vec<Vec<u8>> {
    let info = json!({"name": "d", "version": "1"});
    let device = json!({"id": "d", "name": "D", "kind": "discrete_gpu", "driver": "1", "memory": 1024,
        "max_buffer": 512, "in_place": true});
    let lost = json!({"device_lost": {"device": "d", "during": "run", "reason": "heat"}});
    vec![format!("{info}\n[{device}]\n{device}\n[1, 2]").into(), format!("{info}\n[]\n{device}\n!{lost}").into()]
}
