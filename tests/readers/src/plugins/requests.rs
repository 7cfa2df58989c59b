//! What the SDK reads for a plugin: the host's requests. The first line is the function, the rest the message.

use serde_json::json;
use sparta_backend_cpu::Cpu;
use sparta_core::plugin::PluginSet;
use sparta_graph::{Backend, BackendError, DeviceInfo, Graph, Plan, Value};
use sparta_plugin::Error;
use sparta_plugin::abi::*;
use sparta_plugin::backend::{BackendPlugin, BackendPluginInfo};
use sparta_plugin::export::{self, Exported};
use sparta_plugin::method::{GraphBuilder, Method, MethodInfo, Options, Parameter, Selection, Site};
use sparta_plugin::task::{Dataset, Examples, OpenRequest, Recipe, Source, Take, Task, TaskPluginInfo};

/// A plugin of each kind that accepts everything it can read.
struct Plugin;

impl Method for Plugin {
    fn describe(&self) -> MethodInfo {
        let (name, version) = ("requests".into(), "1".into());
        MethodInfo { name, version, summary: String::new(), options: vec![], default_lr: 0.1 }
    }

    fn select(&self, parameters: &[Parameter], _: &Options) -> Result<Vec<Selection>, Error> {
        Ok(parameters.iter().map(|_| Selection::Frozen).collect())
    }

    fn forward(&self, _: &Site, _: &mut dyn GraphBuilder, _: Value, w: Value, _: &[Value]) -> Result<Value, Error> {
        Ok(w)
    }

    fn merge(&self, _: &Site, _: &mut dyn GraphBuilder, w: Value, _: &[Value]) -> Result<Value, Error> {
        Ok(w)
    }
}

impl Task for Plugin {
    fn describe(&self) -> TaskPluginInfo {
        TaskPluginInfo { name: "requests".into(), version: "1".into(), tasks: vec![], options: vec![] }
    }

    fn open(&self, request: &OpenRequest) -> Result<Box<dyn Dataset>, Error> {
        Ok(Box::new(Opened(request.task.clone())))
    }
}

struct Opened(String);

impl Dataset for Opened {
    fn recipe(&self) -> Recipe {
        let source = || Source { parts: vec![self.0.clone()], take: Take::All };
        Recipe { train: source(), dev: source(), test: source(), notes: vec![], task: None }
    }

    fn examples(&self, part: &str) -> Result<Examples<'_>, Error> {
        Err(Error(format!("no part {part}")))
    }
}

impl BackendPlugin for Plugin {
    fn describe(&self) -> BackendPluginInfo {
        BackendPluginInfo { name: "requests".into(), version: "1".into(), ops: None }
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        Ok(vec![])
    }

    fn open(&self, _: &str) -> Result<Box<dyn Backend>, BackendError> {
        Ok(Box::new(Cpu::new(Some(1))?))
    }
}

sparta_plugin::__entry!(method_entry, method, METHOD_ID, SpartaMethod, dyn Method, Plugin);

struct OfTask;
impl Exported for OfTask {
    type Object = dyn Task;
    fn object() -> &'static dyn Task {
        &Plugin
    }
}

struct OfMethod;
impl Exported for OfMethod {
    type Object = dyn Method;
    fn object() -> &'static dyn Method {
        &Plugin
    }
}

struct OfBackend;
impl Exported for OfBackend {
    type Object = dyn BackendPlugin;
    fn object() -> &'static dyn BackendPlugin {
        &Plugin
    }
}

static METHOD: SpartaMethod = export::method::table::<OfMethod>();
static TASK: SpartaTask = export::task::table::<OfTask>();
static BACKEND: SpartaBackend = export::backend::table::<OfBackend>();

/// Not a call of the host, which ignores results and errors of unknown calls.
const CALL: SpartaCall = 0;

pub fn requests(bytes: &[u8]) -> bool {
    static LINKED: std::sync::Once = std::sync::Once::new();
    // The SDK learns of the host when a plugin is entered.
    // SAFETY: the SDK's entry point, whose tables are statics.
    LINKED.call_once(|| unsafe { PluginSet::default().link(method_entry) });
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else { return false };
    let message = SpartaBytes::new(&bytes[end + 1..]);
    let mut out = 0;
    let status = match &bytes[..end] {
        // SAFETY: every pointer and length describes a live local; there are no extra values.
        b"select" => METHOD.select.map(|f| unsafe { f(CALL, message) }),
        // SAFETY: as above.
        b"forward" => METHOD.forward.map(|f| unsafe { f(CALL, message, 0, 1, std::ptr::null(), 0, &mut out) }),
        // SAFETY: as above.
        b"merge" => METHOD.merge.map(|f| unsafe { f(CALL, message, 1, std::ptr::null(), 0, &mut out) }),
        b"open" => open(message),
        b"prepare" => prepare(message),
        _ => None,
    };
    status == Some(OK)
}

/// Opens a data set, asks for its recipe, and closes it.
fn open(request: SpartaBytes) -> Option<SpartaStatus> {
    let mut handle = 0;
    // SAFETY: every pointer and length describes a live local, and the handle is that of `open`, closed once.
    unsafe {
        if (TASK.open?)(CALL, request, &mut handle) != OK {
            return None;
        }
        let status = (TASK.recipe?)(CALL, handle);
        (TASK.close?)(handle);
        Some(status)
    }
}

/// Prepares a plan on a fresh device with an arena and two buffers of 64 values each.
fn prepare(plan: SpartaBytes) -> Option<SpartaStatus> {
    let (open, alloc, prepare, close) = (BACKEND.open?, BACKEND.alloc?, BACKEND.prepare?, BACKEND.close?);
    let (mut device, mut buffers, mut prepared) = (0, [0; 3], 0);
    // SAFETY: every pointer and length describes a live local, and the handle is that of `open`, closed once.
    unsafe {
        if open(CALL, SpartaBytes::new(b"cpu"), &mut device) != OK {
            return None;
        }
        for buffer in &mut buffers {
            alloc(CALL, device, SpartaBytes::new(b"f32"), 64, SpartaBytes::new(b"x"), buffer);
        }
        let [arena, externals @ ..] = &buffers;
        let status = prepare(CALL, device, plan, *arena, externals.as_ptr(), externals.len(), &mut prepared);
        close(device);
        Some(status)
    }
}

pub fn good_requests() -> Vec<Vec<u8>> {
    use sparta_graph::DType;
    use sparta_graph::ops::{Add, Store};
    let parameter = json!({"name": "w", "shape": [3, 4], "dtype": "f32", "role": "q_proj", "layer": 0});
    let site = json!({"parameter": parameter, "options": {"lora-r": 2}, "training": true});
    let mut graph = Graph::new();
    let [a, b] = ["a", "b"].map(|name| graph.external(name, DType::F32, [8, 8]));
    let sum = graph.one(Add {}, &[a, b]).expect("two matrices");
    graph.apply(Store {}.into(), &[a, sum]).expect("matrices of one shape");
    let plan = serde_json::to_string(&Plan::build(&graph, true)).expect("a plan is plain data");
    vec![
        format!("select\n{}", json!({"parameters": [parameter], "options": {"density": 0.5}})).into(),
        format!("prepare\n{plan}").into(),
        format!("forward\n{site}").into(),
        format!("merge\n{site}").into(),
        format!("open\n{}", json!({"task": "t", "data": "d"})).into(),
    ]
}
