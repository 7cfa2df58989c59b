use super::earlier;
use super::library::Implementation;
use super::names;
use sparta_graph::ops::{CpuFunction, OwnFunction, OwnKernel};
use sparta_graph::{
    Backend, BackendError, BufferId, DType, DeviceInfo, MemoryUse, Op, Plan, PlanId, ReadId, Work, copy_ready,
};
use sparta_plugin::Error;
use sparta_plugin::abi::{SpartaBackend, SpartaBytes, SpartaWork, WORK_RUN, WORK_WRITE};
use sparta_plugin::backend::BackendPluginInfo;
use std::cell::Cell;
use std::marker::PhantomData;
use std::time::Duration;

/// A backend plugin from a loaded library.
pub struct LoadedBackendPlugin {
    plugin: Implementation<SpartaBackend>,
    info: BackendPluginInfo,
}

/// Decodes a plugin's error: a [`BackendError`] as JSON, or a text.
fn decode(plugin: &Implementation<SpartaBackend>, device: &str, error: Error) -> BackendError {
    serde_json::from_str(&error.0).unwrap_or_else(|_| BackendError::Other {
        device: device.to_owned(),
        reason: format!("{} [plugin {}]", error.0, plugin.name),
    })
}

impl LoadedBackendPlugin {
    /// Asks the plugin to describe itself.
    pub fn new(mut plugin: Implementation<SpartaBackend>) -> Result<Self, Error> {
        // SAFETY: the function of a loaded library, called as the ABI says.
        let answer = plugin.call("describe", plugin.table.describe, None, |f, call| unsafe { f(call) })?;
        let info: BackendPluginInfo = plugin.parse("describe", &answer)?;
        names::check("name", &info.name)
            .and_then(|()| names::check_version(&info.version))
            .map_err(|reason| Error(format!("plugin {}: {reason}", plugin.name)))?;
        plugin.name = format!("{} ({})", info.name, plugin.name);
        Ok(LoadedBackendPlugin { plugin, info })
    }

    pub fn info(&self) -> &BackendPluginInfo {
        &self.info
    }

    /// The backend's devices in this machine.
    pub fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        let plugin = &self.plugin;
        // SAFETY: the function of a loaded library, called as the ABI says.
        let answer = plugin.call_unnamed("devices", plugin.table.devices, None, |f, call| unsafe { f(call) });
        answer.and_then(|json| plugin.parse("devices", &json)).map_err(|e| decode(plugin, &self.info.name, e))
    }

    /// Opens the device with this [`DeviceInfo::id`].
    pub fn open(&self, device: &str) -> Result<Box<dyn Backend>, BackendError> {
        let plugin = self.plugin.clone();
        let mut handle = 0;
        // SAFETY: the function of a loaded library, called as the ABI says; pointers are to live locals.
        let answer = plugin.call_unnamed("open", plugin.table.open, None, |f, call| unsafe {
            f(call, SpartaBytes::new(device.as_bytes()), &mut handle)
        });
        let mut info: DeviceInfo =
            answer.and_then(|json| plugin.parse("open", &json)).map_err(|e| decode(&plugin, device, e))?;
        // The ABI's `prepare` takes a single buffer as the arena.
        info.segments = false;
        if self.plugin.table.prepare_own.is_none() {
            info.own_kernels.retain(|&kernel| kernel != OwnKernel::Function);
        }
        let ops = self.info.ops.clone();
        Ok(Box::new(LoadedBackend { plugin, info, ops, handle, one_thread: PhantomData }))
    }
}

/// An open device of a backend plugin.
struct LoadedBackend {
    plugin: Implementation<SpartaBackend>,
    info: DeviceInfo,
    /// [`BackendPluginInfo::ops`].
    ops: Option<Vec<String>>,
    handle: u64,
    /// `Send` but not `Sync`: used by one thread at a time.
    one_thread: PhantomData<Cell<()>>,
}

impl LoadedBackend {
    fn call<F>(&self, what: &str, function: Option<F>, call: impl FnOnce(F, u64) -> i32) -> Result<(), BackendError> {
        self.plugin
            .call_unnamed(what, function, None, call)
            .map(drop)
            .map_err(|e| decode(&self.plugin, &self.info.id, e))
    }

    /// The JSON form of a plan that the plugin understands.
    fn message(&self, plan: &Plan) -> Result<Vec<u8>, BackendError> {
        let serialise = |e: serde_json::Error| BackendError::Other {
            device: self.info.id.clone(),
            reason: format!("the plan cannot be serialised: {e}"),
        };
        let lacking = match &self.ops {
            Some(ops) => {
                let mut names = plan.calls.iter().map(|call| call.op.name());
                let missing = names.find(|name| ops.iter().all(|known| known != name));
                missing.map(|name| (name.to_owned(), "it does not have this operation".to_owned()))
            }
            None => earlier::check(&serde_json::to_value(plan).map_err(serialise)?).err(),
        };
        match lacking {
            Some((op, what)) => Err(BackendError::Op {
                device: self.info.id.clone(),
                op,
                reason: format!(
                    "the plugin {} is older than this sparta-cli: {what}; update the plugin, or use another device",
                    self.plugin.name
                ),
            }),
            None => serde_json::to_vec(plan).map_err(serialise),
        }
    }
}

/// What computes the plugins' own operations of a plan on the CPU, in order.
fn functions(plan: &Plan) -> Vec<Option<OwnFunction>> {
    let own = plan.calls.iter().filter_map(|call| match &call.op {
        Op::Own(own) => Some(own.0.function.map(CpuFunction::raw)),
        _ => None,
    });
    own.collect()
}

// SAFETY of the calls below: they are functions of a loaded library, called as the ABI specifies, from one thread at a
// time, with an open handle that the library made; every pointer and length describes a live local or argument.
impl Backend for LoadedBackend {
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn alloc(&mut self, dtype: DType, len: usize, label: &str) -> Result<BufferId, BackendError> {
        let (dtype, label) = (dtype.to_string(), SpartaBytes::new(label.as_bytes()));
        let mut buffer = 0;
        // SAFETY: see the impl.
        self.call("alloc", self.plugin.table.alloc, |f, call| unsafe {
            f(call, self.handle, SpartaBytes::new(dtype.as_bytes()), len, label, &mut buffer)
        })?;
        Ok(BufferId(buffer))
    }

    fn free(&mut self, buffer: BufferId) {
        // SAFETY: see the impl.
        let freed = self.call("free", self.plugin.table.free, |f, call| unsafe { f(call, self.handle, buffer.0) });
        // The trait's `free` cannot fail: a buffer that a broken plugin keeps is only a leak.
        let _ = freed;
    }

    fn memory_use(&self) -> Option<MemoryUse> {
        let mut used = MemoryUse::default();
        // SAFETY: see the impl.
        let counted = self.call("memory", self.plugin.table.memory, |f, call| unsafe {
            f(call, self.handle, &mut used.in_use, &mut used.peak)
        });
        counted.ok().map(|()| used)
    }

    fn supports(&self, plan: &Plan) -> Result<(), BackendError> {
        self.message(plan).map(drop)
    }

    fn write(&mut self, buffer: BufferId, offset: usize, data: &[u8]) -> Result<(), BackendError> {
        // SAFETY: see the impl.
        self.call("write", self.plugin.table.write, |f, call| unsafe {
            f(call, self.handle, buffer.0, offset, SpartaBytes::new(data))
        })
    }

    fn read(&mut self, buffer: BufferId, offset: usize, out: &mut [u8]) -> Result<(), BackendError> {
        let (data, len) = (out.as_mut_ptr(), out.len());
        // SAFETY: see the impl.
        self.call("read", self.plugin.table.read, |f, call| unsafe {
            f(call, self.handle, buffer.0, offset, data, len)
        })
    }

    fn prepare(&mut self, plan: &Plan, arena: &[BufferId], externals: &[BufferId]) -> Result<PlanId, BackendError> {
        let message = self.message(plan)?;
        let &[arena] = arena else {
            let reason = format!("its plugin takes an arena in one buffer, got {} segments", arena.len());
            return Err(BackendError::Other { device: self.info.id.clone(), reason });
        };
        let externals: Vec<u64> = externals.iter().map(|id| id.0).collect();
        let (mut prepared, functions) = (0, functions(plan));
        if functions.iter().any(Option::is_some) {
            // SAFETY: see the impl; the functions are those of the plan's operations, in order.
            self.call("prepare_own", self.plugin.table.prepare_own, |f, call| unsafe {
                let (plan, count) = (SpartaBytes::new(&message), externals.len());
                let all = functions.as_ptr();
                f(call, self.handle, plan, arena.0, externals.as_ptr(), count, all, functions.len(), &mut prepared)
            })?;
            return Ok(PlanId(prepared));
        }
        // SAFETY: see the impl.
        self.call("prepare", self.plugin.table.prepare, |f, call| unsafe {
            let plan = SpartaBytes::new(&message);
            f(call, self.handle, plan, arena.0, externals.as_ptr(), externals.len(), &mut prepared)
        })?;
        Ok(PlanId(prepared))
    }

    fn run(&mut self, plan: PlanId) -> Result<(), BackendError> {
        // SAFETY: see the impl.
        self.call("run", self.plugin.table.run, |f, call| unsafe { f(call, self.handle, plan.0) })
    }

    fn submit(&mut self, work: &[Work]) -> Result<(), BackendError> {
        let Some(submit) = self.plugin.table.submit else {
            return work.iter().try_for_each(|piece| match *piece {
                Work::Write { buffer, offset, data } => self.write(buffer, offset, data),
                Work::Run(plan) => self.run(plan),
            });
        };
        let pieces: Vec<SpartaWork> = work
            .iter()
            .map(|piece| match *piece {
                Work::Write { buffer, offset, data } => {
                    SpartaWork { kind: WORK_WRITE, handle: buffer.0, offset, data: SpartaBytes::new(data) }
                }
                Work::Run(plan) => {
                    SpartaWork { kind: WORK_RUN, handle: plan.0, offset: 0, data: SpartaBytes::new(&[]) }
                }
            })
            .collect();
        // SAFETY: see the impl.
        self.call("submit", Some(submit), |f, call| unsafe { f(call, self.handle, pieces.as_ptr(), pieces.len()) })
    }

    fn request(&mut self, buffer: BufferId, offset: usize, bytes: usize) -> Result<ReadId, BackendError> {
        let Some(request) = self.plugin.table.request else {
            let mut out = vec![0; bytes];
            self.read(buffer, offset, &mut out)?;
            return Ok(ReadId::Ready(out));
        };
        let mut read = 0;
        // SAFETY: see the impl.
        self.call("request", Some(request), |f, call| unsafe {
            f(call, self.handle, buffer.0, offset, bytes, &mut read)
        })?;
        Ok(ReadId::Pending(read))
    }

    fn fetch(&mut self, read: ReadId, out: &mut [u8]) -> Result<(), BackendError> {
        let id = match read {
            ReadId::Pending(id) => id,
            ReadId::Ready(bytes) => {
                let device = self.info.id.clone();
                return copy_ready(&bytes, out).map_err(|reason| BackendError::Other { device, reason });
            }
        };
        let (data, len) = (out.as_mut_ptr(), out.len());
        // SAFETY: see the impl.
        self.call("fetch", self.plugin.table.fetch, |f, call| unsafe { f(call, self.handle, id, data, len) })
    }

    fn run_profiled(&mut self, plan: PlanId) -> Result<Vec<Duration>, BackendError> {
        let (plugin, function) = (&self.plugin, self.plugin.table.run_profiled);
        // SAFETY: see the impl.
        let answer =
            plugin.call_unnamed("run_profiled", function, None, |f, call| unsafe { f(call, self.handle, plan.0) });
        let nanoseconds: Result<Vec<u64>, Error> = answer.and_then(|json| plugin.parse("run_profiled", &json));
        let nanoseconds = nanoseconds.map_err(|e| decode(&self.plugin, &self.info.id, e))?;
        Ok(nanoseconds.into_iter().map(Duration::from_nanos).collect())
    }

    fn release(&mut self, plan: PlanId) {
        // SAFETY: see the impl.
        let released =
            self.call("release", self.plugin.table.release, |f, call| unsafe { f(call, self.handle, plan.0) });
        // As for `free`.
        let _ = released;
    }
}

impl Drop for LoadedBackend {
    fn drop(&mut self) {
        if let Some(close) = self.plugin.table.close {
            // SAFETY: the handle is closed once, here.
            unsafe { close(self.handle) };
        }
    }
}
