//! Both sides of the ABI in one process: plugins made by the SDK's macro, called through the host's wrappers.

use super::library::{Implementation, enter};
use super::*;
use library::Functions;
use sparta_graph::{
    Backend, BackendError, BufferId, DType, DeviceInfo, DeviceKind, Graph, Op, Plan, PlanId, ReadId, Value, Work,
};
use sparta_plugin::Error;
use sparta_plugin::abi::SpartaMethod;
use sparta_plugin::backend::{BackendPlugin, BackendPluginInfo};
use sparta_plugin::graph::ops::{Fill, Layout, Linear};
use sparta_plugin::method::*;
use sparta_plugin::task::*;

fn parameter(name: &str, role: Role) -> Parameter {
    Parameter { name: name.into(), shape: vec![3, 4], dtype: DType::F32, role, layer: Some(0) }
}

/// A method whose behaviour its option chooses.
struct Fickle;

impl Method for Fickle {
    fn describe(&self) -> MethodInfo {
        let mode = OptionInfo { name: "mode".into(), help: String::new(), kind: OptionKind::Text, default: None };
        MethodInfo {
            name: "fickle".into(),
            version: "0.9".into(),
            summary: String::new(),
            options: vec![mode],
            default_lr: 0.1,
        }
    }

    fn select(&self, parameters: &[Parameter], options: &Options) -> Result<Vec<Selection>, Error> {
        let extra = |shape: &[usize]| ExtraTensor::new("a", shape, Init::Zeros);
        let one = match options["mode"].as_str() {
            Some("panic") => panic!("mode {} is not for eating", options["mode"]),
            Some("error") => return Err("this model is too beautiful".into()),
            Some("few") => return Ok(vec![]),
            Some("likely") => Selection::Sparse { probability: 1.5 },
            Some("thin") => Selection::Sparse { probability: 0.1 + 0.2 },
            Some("empty") => Selection::Reparam { tensors: vec![extra(&[0])] },
            Some("twice") => Selection::Reparam { tensors: vec![extra(&[1]), extra(&[1])] },
            _ => Selection::Reparam { tensors: vec![extra(&[2, 4])] },
        };
        Ok(vec![one; parameters.len()])
    }

    fn forward(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        x: Value,
        w: Value,
        extra: &[Value],
    ) -> Result<Value, Error> {
        let linear = Op::from(Linear::plain(Layout::Nt));
        match site.options["mode"].as_str() {
            Some("panic") => panic!("no forward"),
            Some("stray") => Ok(Value(99)),
            // The message of the host's own rule must come back through the plugin.
            Some("shape") => {
                let rng = graph.rng()?;
                Ok(graph.apply(linear, &[x, rng])?[0])
            }
            _ => {
                assert_eq!(graph.shape(extra[0])?, [2, 4]);
                Ok(graph.apply(linear, &[x, w])?[0])
            }
        }
    }

    fn forward_with_bias(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        x: Value,
        [w, bias]: [Value; 2],
        extra: &[Value],
    ) -> Result<Value, Error> {
        fails(&site.options, "forward_with_bias")?;
        let y = self.forward(site, graph, x, w, extra)?;
        graph.one(sparta_plugin::graph::ops::Add {}, &[y, bias])
    }

    fn merge(&self, site: &Site, _: &mut dyn GraphBuilder, _: Value, _: &[Value]) -> Result<Value, Error> {
        fails(&site.options, "merge")?;
        Err(Error(format!("this method does not reparametrize {}", site.parameter.name)))
    }

    fn merge_with_bias(
        &self,
        site: &Site,
        _: &mut dyn GraphBuilder,
        [w, bias]: [Value; 2],
        _: &[Value],
    ) -> Result<[Value; 2], Error> {
        fails(&site.options, "merge_with_bias")?;
        Ok([bias, w])
    }

    fn steps(&self, options: &Options) -> Result<Option<Steps>, Error> {
        fails(options, "steps")?;
        Ok(None)
    }

    fn on_step(&self, step: &StepInfo, _: &mut dyn StepTensors) -> Result<serde_json::Value, Error> {
        fails(&step.options, "on_step")?;
        Ok(serde_json::Value::Null)
    }

    fn penalty(
        &self,
        site: &Site,
        graph: &mut dyn GraphBuilder,
        _: Value,
        _: &[Value],
    ) -> Result<Option<Value>, Error> {
        fails(&site.options, "penalty")?;
        match site.options["mode"].as_str() {
            Some("penalty") => graph.one(Fill { value: 1.0, shape: vec![1] }, &[]).map(Some),
            _ => Ok(None),
        }
    }

    fn update(&self, site: &Site, _: &mut dyn GraphBuilder, extra: &[Value], lr: Value) -> Result<Vec<Value>, Error> {
        fails(&site.options, "update")?;
        match site.options["mode"].as_str() {
            Some("few") => Ok(vec![]),
            _ => Ok(vec![extra[0], lr]),
        }
    }
}

/// Fails in this function, with an error or with a panic, if the mode says so.
fn fails(options: &Options, function: &str) -> Result<(), Error> {
    match options["mode"].as_str() {
        Some("panics") => panic!("{function} burns"),
        Some("fails") => Err(Error(format!("{function} is tired"))),
        _ => Ok(()),
    }
}

sparta_plugin::__entry!(method_entry, method, METHOD_ID, SpartaMethod, dyn Method, Fickle);

fn method() -> LoadedMethod {
    method_with(|table| table)
}

fn method_with(change: impl Fn(SpartaMethod) -> SpartaMethod) -> LoadedMethod {
    // SAFETY: the SDK's entry point.
    match unsafe { enter(method_entry) }.unwrap().remove(0) {
        Functions::Method(table) => {
            LoadedMethod::new(Implementation { table: change(table), name: "here".into() }).unwrap()
        }
        _ => unreachable!(),
    }
}

fn options(mode: &str) -> Options {
    Options::from([("mode".into(), mode.into())])
}

#[test]
fn selections_cross_and_are_checked() {
    let method = method();
    assert_eq!(method.describe(), Fickle.describe());
    let select = |mode, role| method.select(&[parameter("w", role)], &options(mode));
    assert_eq!(
        select("thin", Role::QProj).unwrap(),
        [Selection::Sparse { probability: 0.1 + 0.2 }],
        "a probability keeps its bits"
    );
    assert_eq!(select("reparam", Role::QProj), Fickle.select(&[parameter("w", Role::QProj)], &options("reparam")));
    let message = |mode, role| select(mode, role).unwrap_err().0;
    assert_eq!(message("error", Role::QProj), "this model is too beautiful [plugin fickle (here)]");
    assert_eq!(
        message("panic", Role::QProj),
        "the plugin panicked: mode \"panic\" is not for eating [plugin fickle (here)]"
    );
    assert!(message("few", Role::QProj).contains("fickle (here): `select` answered for 0 of 1"));
    assert!(message("likely", Role::QProj).contains("w: the probability 1.5"));
    assert!(message("empty", Role::QProj).contains("shape [0]"));
    assert!(message("twice", Role::QProj).contains("two tensors `a`"));
}

struct Builder {
    graph: Graph,
    rng: Value,
}

impl GraphBuilder for Builder {
    fn apply(&mut self, op: Op, inputs: &[Value]) -> Result<Vec<Value>, Error> {
        self.graph.apply(op, inputs).map_err(|e| Error(e.to_string()))
    }

    fn shape(&self, value: Value) -> Result<Vec<usize>, Error> {
        self.graph.shape(value).map(<[usize]>::to_vec).map_err(|e| Error(e.to_string()))
    }

    fn rng(&mut self) -> Result<Value, Error> {
        Ok(self.rng)
    }
}

#[test]
fn a_plugin_builds_on_the_host_s_graph() {
    let mut graph = Graph::new();
    let [x, w, a] = [("x", [5, 4]), ("w", [3, 4]), ("a", [2, 4])].map(|(n, s)| graph.external(n, DType::F32, s));
    let rng = graph.external("rng", DType::U32, [4]);
    let mut builder = Builder { graph, rng };
    let mut forward = |mode| {
        let site = Site { parameter: parameter("w", Role::QProj), options: options(mode), training: true };
        let y = method().forward(&site, &mut builder, x, w, &[a])?;
        builder.shape(y)
    };
    assert_eq!(forward("reparam").unwrap(), [5, 3]);
    assert_eq!(forward("panic").unwrap_err().0, "the plugin panicked: no forward [plugin fickle (here)]");
    let message = forward("stray").unwrap_err().0;
    assert!(message.contains("output of `forward`") && message.contains("99"), "{message}");
    let message = forward("shape").unwrap_err().0;
    assert!(message.contains("linear") && message.contains("u32"), "{message}");
    let site = Site { parameter: parameter("w", Role::QProj), options: options(""), training: true };
    let message = method().merge(&site, &mut builder, w, &[a]).unwrap_err().0;
    assert!(message.contains("does not reparametrize w"), "{message}");
}

#[test]
fn functions_of_minor_version_4_cross_or_have_defaults() {
    let mut graph = Graph::new();
    let [x, w, a] = [("x", [5, 4]), ("w", [3, 4]), ("a", [2, 4])].map(|(n, s)| graph.external(n, DType::F32, s));
    let [bias, lr] = [("bias", 3), ("lr", 1)].map(|(n, s)| graph.external(n, DType::F32, [s]));
    let rng = graph.external("rng", DType::U32, [4]);
    let mut builder = Builder { graph, rng };
    let site = |mode| Site { parameter: parameter("w", Role::QProj), options: options(mode), training: true };
    let new = method();
    let y = new.forward_with_bias(&site(""), &mut builder, x, [w, bias], &[a]).unwrap();
    assert_eq!(builder.shape(y).unwrap(), [5, 3]);
    assert_eq!(new.merge_with_bias(&site(""), &mut builder, [w, bias], &[a]).unwrap(), [bias, w]);
    assert_eq!(new.penalty(&site(""), &mut builder, w, &[a]).unwrap(), None);
    let term = new.penalty(&site("penalty"), &mut builder, w, &[a]).unwrap().unwrap();
    assert_eq!(builder.shape(term).unwrap(), [1]);
    assert_eq!(new.update(&site(""), &mut builder, &[a, w], lr).unwrap(), [a, lr]);
    let message = new.update(&site("few"), &mut builder, &[a, w], lr).unwrap_err().0;
    assert!(message.contains("`update` gave 0 values, expected one for each of 2"), "{message}");

    let old = method_with(|table| SpartaMethod {
        forward_with_bias: None,
        merge_with_bias: None,
        penalty: None,
        update: None,
        ..table
    });
    let y = old.forward_with_bias(&site(""), &mut builder, x, [w, bias], &[a]).unwrap();
    assert_eq!(builder.graph.nodes().last().unwrap().op.name(), "add");
    assert_eq!(builder.shape(y).unwrap(), [5, 3]);
    assert_eq!(old.penalty(&site("penalty"), &mut builder, w, &[a]).unwrap(), None);
    assert_eq!(old.update(&site(""), &mut builder, &[a, w], lr).unwrap(), [a, w]);
}

struct NoTensors;

impl StepTensors for NoTensors {
    fn read(&mut self, _: &str, _: &str) -> Result<Vec<f32>, Error> {
        Ok(vec![])
    }

    fn indices(&mut self, _: &str) -> Result<Vec<u32>, Error> {
        Ok(vec![])
    }

    fn set(&mut self, _: &str, _: &[f32]) -> Result<(), Error> {
        Ok(())
    }

    fn replace(&mut self, _: &str, _: &[u32]) -> Result<(), Error> {
        Ok(())
    }
}

/// The plugin can be called again after each.
#[test]
fn an_error_or_a_panic_in_any_function_is_an_error_that_names_the_plugin() {
    let mut graph = Graph::new();
    let [x, w, a] = [("x", [5, 4]), ("w", [3, 4]), ("a", [2, 4])].map(|(n, s)| graph.external(n, DType::F32, s));
    let [bias, lr] = [("bias", 3), ("lr", 1)].map(|(n, s)| graph.external(n, DType::F32, [s]));
    let rng = graph.external("rng", DType::U32, [4]);
    let (mut builder, method) = (Builder { graph, rng }, method());
    for (mode, say) in [("fails", "is tired"), ("panics", "burns")] {
        let site = Site { parameter: parameter("w", Role::QProj), options: options(mode), training: true };
        let info = StepInfo {
            step: 1,
            total_steps: 2,
            options: options(mode),
            state: serde_json::Value::Null,
            tensors: vec![],
        };
        let builder = &mut builder;
        let failures = [
            ("forward_with_bias", method.forward_with_bias(&site, builder, x, [w, bias], &[a]).map(drop)),
            ("merge", method.merge(&site, builder, w, &[a]).map(drop)),
            ("merge_with_bias", method.merge_with_bias(&site, builder, [w, bias], &[a]).map(drop)),
            ("penalty", method.penalty(&site, builder, w, &[a]).map(drop)),
            ("update", method.update(&site, builder, &[a], lr).map(drop)),
            ("steps", method.steps(&options(mode)).map(drop)),
            ("on_step", method.on_step(&info, &mut NoTensors).map(drop)),
        ];
        for (function, failure) in failures {
            let message = failure.unwrap_err().0;
            let expected = format!("{function} {say} [plugin fickle (here)]");
            assert!(message.ends_with(&expected), "{message}");
            assert_eq!(message.contains("the plugin panicked: "), mode == "panics", "{message}");
        }
    }
}

#[test]
fn a_finished_call_reaches_nothing() {
    let mut stale = 0;
    host::call(None, |id| {
        stale = id;
        sparta_plugin::abi::OK
    })
    .unwrap();
    let mut value = 7;
    // SAFETY: the pointer is to a live local.
    let status = unsafe { (host::HOST.graph_rng)(stale, &mut value) };
    assert_eq!((status, value), (sparta_plugin::abi::FAILED, 7));
    // SAFETY: the bytes are static.
    unsafe { (host::HOST.result)(stale, sparta_plugin::abi::SpartaBytes::new(b"late")) };
}

#[test]
fn a_graph_function_outside_of_forward_is_an_error() {
    let outcome = host::call(None, |id| {
        let mut value = 0;
        // SAFETY: the pointer is to a live local, and the message is copied at once.
        unsafe {
            let status = (host::HOST.graph_rng)(id, &mut value);
            (host::HOST.error)(id, (host::HOST.last_error)(id));
            status
        }
    });
    assert!(outcome.unwrap_err().unwrap().contains("only in the functions of a method that get values"));
}

#[test]
fn a_step_function_outside_of_on_step_is_an_error() {
    let nothing = || sparta_plugin::abi::SpartaBytes::new(b"w");
    let outcome = host::call(None, |id| {
        // SAFETY: the bytes are static, and the message is copied at once.
        unsafe {
            let status = (host::HOST.step_write)(id, nothing(), nothing(), nothing());
            (host::HOST.error)(id, (host::HOST.last_error)(id));
            status
        }
    });
    assert!(outcome.unwrap_err().unwrap().contains("only in on_step"));
}

/// 600 examples of `good`; `bad` fails at its 301st, `panics` at its second, `label` has a label too many.
struct Numbers;
struct Opened;

impl Task for Numbers {
    fn describe(&self) -> TaskPluginInfo {
        let task = TaskInfo {
            id: "parity".into(),
            title: "Parity".into(),
            labels: vec!["even".into(), "odd".into()],
            target: None,
            weights: vec![],
            metrics: vec!["accuracy".into()],
            primary: "accuracy".into(),
            pair: true,
            prompt: None,
        };
        TaskPluginInfo { name: "numbers".into(), version: "1".into(), tasks: vec![task], options: vec![] }
    }

    fn open(&self, _: &OpenRequest) -> Result<Box<dyn Dataset>, Error> {
        Ok(Box::new(Opened))
    }
}

impl Dataset for Opened {
    fn recipe(&self) -> Recipe {
        let source = Source { parts: vec!["good".into()], take: Take::All };
        Recipe {
            train: source.clone(),
            dev: source.clone(),
            test: source,
            notes: vec!["one for all".into()],
            task: None,
        }
    }

    fn examples(&self, part: &str) -> Result<Examples<'_>, Error> {
        let part = part.to_owned();
        Ok(Box::new((0..600u32).map(move |i| match (part.as_str(), i) {
            ("bad", 300..) => Err(Error(format!("numbers.txt, line {}: not a number", i + 1))),
            ("panics", 1..) => panic!("out of fingers"),
            ("label", _) => Ok(Example { text: i.to_string(), pair: Some("p".into()), label: 2, ..Example::default() }),
            _ => {
                let pair = Some("é\n".into());
                Ok(Example { text: i.to_string(), pair, label: i % 2, ..Example::default() })
            }
        })))
    }
}

sparta_plugin::__entry!(task_entry, task, TASK_ID, SpartaTask, dyn Task, Numbers);

#[test]
fn examples_cross_in_batches_with_their_errors() {
    // SAFETY: the SDK's entry point.
    let task = match unsafe { enter(task_entry) }.unwrap().remove(0) {
        Functions::Task(table) => LoadedTask::new(Implementation { table, name: "here".into() }).unwrap(),
        _ => unreachable!(),
    };
    let dataset = task.open(&OpenRequest::new("parity", "/data")).unwrap();
    assert_eq!(dataset.recipe(), Opened.recipe());
    let read = |part: &str| -> Vec<Result<Example, Error>> { dataset.examples(part).unwrap().collect() };
    assert_eq!(read("good"), Opened.examples("good").unwrap().collect::<Vec<_>>());
    let bad = read("bad");
    assert_eq!((bad.len(), bad.iter().filter(|e| e.is_ok()).count()), (301, 300));
    assert_eq!(bad[300], Err("numbers.txt, line 301: not a number [plugin numbers (here)]".into()));
    assert_eq!(read("panics"), [Err("the plugin panicked: out of fingers [plugin numbers (here)]".into())]);
    let label = read("label");
    assert!(label.len() == 1 && label[0].as_ref().unwrap_err().0.contains("`parity`: label 2, expected less than 2"));
}

/// Buffers without plans.
struct Memory(Vec<Vec<u8>>);
struct MemoryPlugin;

fn memory_info() -> DeviceInfo {
    DeviceInfo {
        id: "memory".into(),
        name: "Memory".into(),
        kind: DeviceKind::Other,
        card: None,
        driver: "none".into(),
        memory: Some(1 << 40),
        max_buffer: u64::MAX,
        max_binding: None,
        segments: false,
        in_place: true,
        activations: vec![DType::F32],
        products: vec![],
        multiplier: None,
        rounds_in_attention: false,
        tf32: false,
        sampled_cost: None,
        own_kernels: vec![],
    }
}

impl BackendPlugin for MemoryPlugin {
    fn describe(&self) -> BackendPluginInfo {
        BackendPluginInfo { name: "memory".into(), version: "1".into(), ops: None }
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        Ok(vec![memory_info()])
    }

    fn open(&self, device: &str) -> Result<Box<dyn Backend>, BackendError> {
        match device {
            "memory" => Ok(Box::new(Memory(vec![]))),
            _ => panic!("no device {device}"),
        }
    }
}

impl Backend for Memory {
    fn info(&self) -> DeviceInfo {
        memory_info()
    }

    fn alloc(&mut self, dtype: DType, len: usize, label: &str) -> Result<BufferId, BackendError> {
        if len > 1000 {
            let (device, what, bytes) = ("memory".into(), label.into(), (len * dtype.size()) as u64);
            return Err(BackendError::OutOfMemory { device, what, bytes });
        }
        self.0.push(vec![0; len * dtype.size()]);
        Ok(BufferId(self.0.len() as u64 - 1))
    }

    fn free(&mut self, buffer: BufferId) {
        self.0[buffer.0 as usize].clear();
    }

    fn write(&mut self, buffer: BufferId, offset: usize, data: &[u8]) -> Result<(), BackendError> {
        self.0[buffer.0 as usize][offset * 2..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn read(&mut self, buffer: BufferId, offset: usize, out: &mut [u8]) -> Result<(), BackendError> {
        out.copy_from_slice(&self.0[buffer.0 as usize][offset * 2..][..out.len()]);
        Ok(())
    }

    fn prepare(&mut self, plan: &Plan, arena: &[BufferId], externals: &[BufferId]) -> Result<PlanId, BackendError> {
        Ok(PlanId(plan.arena as u64 + arena[0].0 + externals.iter().map(|id| id.0).sum::<u64>()))
    }

    fn run(&mut self, plan: PlanId) -> Result<(), BackendError> {
        let (device, during) = ("memory".into(), format!("plan {}", plan.0));
        Err(BackendError::DeviceLost { device, during, reason: "forgotten".into() })
    }

    fn release(&mut self, _: PlanId) {}
}

sparta_plugin::__entry!(backend_entry, backend, BACKEND_ID, SpartaBackend, dyn BackendPlugin, MemoryPlugin);

#[test]
fn a_backend_crosses() {
    // SAFETY: the SDK's entry point.
    let plugin = match unsafe { enter(backend_entry) }.unwrap().remove(0) {
        Functions::Backend(table) => LoadedBackendPlugin::new(Implementation { table, name: "here".into() }).unwrap(),
        _ => unreachable!(),
    };
    assert_eq!(plugin.info(), &MemoryPlugin.describe());
    assert_eq!(plugin.devices().unwrap()[0].max_buffer, u64::MAX);
    let message = plugin.open("tape").err().unwrap().to_string();
    assert_eq!(message, "tape: the plugin panicked: no device tape [plugin memory (here)]");

    let mut backend = plugin.open("memory").unwrap();
    assert_eq!(backend.info().name, "Memory");
    let [a, b] = [4, 8].map(|len| backend.alloc(DType::BF16, len, "w").unwrap());
    backend.write(b, 3, &[1, 2, 3, 4]).unwrap();
    let mut out = [9; 6];
    backend.read(b, 2, &mut out).unwrap();
    assert_eq!(out, [0, 0, 1, 2, 3, 4]);
    assert!(matches!(
        backend.alloc(DType::F32, 2000, "big"),
        Err(BackendError::OutOfMemory { what, bytes: 8000, .. }) if what == "big"
    ));
    // In order, and the read is of what was there when it was requested.
    backend.submit(&[Work::Write { buffer: b, offset: 0, data: &[7, 8] }]).unwrap();
    let read = backend.request(b, 0, 4).unwrap();
    backend.submit(&[Work::Write { buffer: b, offset: 0, data: &[0, 0] }]).unwrap();
    let mut out = [9; 4];
    backend.fetch(read, &mut out).unwrap();
    assert_eq!(out, [7, 8, 0, 0]);
    let read = backend.request(b, 0, 4).unwrap();
    assert!(backend.fetch(read, &mut [0; 2]).unwrap_err().to_string().contains("4 bytes were requested"));
    assert!(backend.fetch(ReadId::Pending(77), &mut out).unwrap_err().to_string().contains("no requested read 77"));
    assert_eq!(backend.memory_use(), None, "this backend does not count");
    let mut out = [9; 6];
    let plan = backend
        .prepare(&Plan { arena: 256, segments: vec![], externals: vec![], calls: vec![], tf32: false }, &[a], &[b])
        .unwrap();
    assert_eq!(plan, PlanId(257));
    assert!(matches!(backend.run(plan), Err(BackendError::DeviceLost { during, .. }) if during == "plan 257"));
    backend.release(plan);
    backend.free(a);
    // A panic in the plugin is an error here, too.
    let message = backend.read(a, 0, &mut out).unwrap_err().to_string();
    assert!(message.starts_with("memory: the plugin panicked: "), "{message}");
}
