use super::{Exported, guarded, guarded_close, request, respond, text};
use crate::Error;
use crate::abi::*;
use crate::backend::BackendPlugin;
use serde::Deserialize;
use serde_json::Value as Json;
use sparta_graph::ops::CpuFunction;
use sparta_graph::{Backend, BackendError, BufferId, DType, Op, Plan, PlanId, ReadId, Work};
use std::collections::HashMap;

pub const fn table<E: Exported<Object = dyn BackendPlugin>>() -> SpartaBackend {
    SpartaBackend {
        size: size_of::<SpartaBackend>(),
        describe: Some(describe::<E>),
        devices: Some(devices::<E>),
        open: Some(open::<E>),
        close: Some(close),
        alloc: Some(alloc),
        free: Some(free),
        write: Some(write),
        read: Some(read),
        prepare: Some(prepare),
        run: Some(run),
        release: Some(release),
        run_profiled: Some(run_profiled),
        memory: Some(memory),
        submit: Some(submit),
        request: Some(request_read),
        fetch: Some(fetch),
        prepare_own: Some(prepare_own),
    }
}

/// What a backend's handle points to.
struct Opened {
    backend: Box<dyn Backend>,
    /// Reads that were requested and not fetched yet.
    reads: HashMap<u64, ReadId>,
    next_read: u64,
}

/// A `BackendError` crosses the ABI as JSON, so that the host can tell "out of memory" from "device lost".
fn encode(error: BackendError) -> Error {
    Error(serde_json::to_string(&error).unwrap_or_else(|_| error.to_string()))
}

/// # Safety
/// `backend` is a handle that `open` made and `close` has not freed, used by one thread at a time.
unsafe fn state<'a>(backend: u64) -> &'a mut Opened {
    // SAFETY: the caller vouches for it.
    unsafe { &mut *(backend as *mut Opened) }
}

/// # Safety
/// As for [`state`].
unsafe fn opened<'a>(backend: u64) -> &'a mut dyn Backend {
    // SAFETY: the caller vouches for it.
    unsafe { state(backend) }.backend.as_mut()
}

unsafe extern "C" fn describe<E: Exported<Object = dyn BackendPlugin>>(call: SpartaCall) -> SpartaStatus {
    guarded(call, || respond(call, &E::object().describe()))
}

unsafe extern "C" fn devices<E: Exported<Object = dyn BackendPlugin>>(call: SpartaCall) -> SpartaStatus {
    guarded(call, || respond(call, &E::object().devices().map_err(encode)?))
}

unsafe extern "C" fn open<E: Exported<Object = dyn BackendPlugin>>(
    call: SpartaCall,
    device: SpartaBytes,
    handle: *mut u64,
) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the id to this function.
        let device = unsafe { text(device) }?;
        let backend = E::object().open(device).map_err(encode)?;
        respond(call, &backend.info())?;
        let opened = Opened { backend, reads: HashMap::new(), next_read: 0 };
        // SAFETY: the host passes a writable `u64`.
        unsafe { handle.write(Box::into_raw(Box::new(opened)) as u64) };
        Ok(())
    })
}

unsafe extern "C" fn close(backend: u64) {
    // SAFETY: the host passes a handle that `open` made, once.
    guarded_close(|| drop(unsafe { Box::from_raw(backend as *mut Opened) }));
}

unsafe extern "C" fn alloc(
    call: SpartaCall,
    backend: u64,
    dtype: SpartaBytes,
    len: usize,
    label: SpartaBytes,
    buffer: *mut u64,
) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the handle and the texts to this function.
        let (backend, dtype, label) = unsafe { (opened(backend), text(dtype)?, text(label)?) };
        let dtype: DType = serde_json::from_value(Json::from(dtype)).map_err(|e| Error::new(e.to_string()))?;
        let id = backend.alloc(dtype, len, label).map_err(encode)?;
        // SAFETY: the host passes a writable `u64`.
        unsafe { buffer.write(id.0) };
        Ok(())
    })
}

unsafe extern "C" fn free(call: SpartaCall, backend: u64, buffer: u64) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the handle to this function.
        unsafe { opened(backend) }.free(BufferId(buffer));
        Ok(())
    })
}

unsafe extern "C" fn write(
    call: SpartaCall,
    backend: u64,
    buffer: u64,
    offset: usize,
    data: SpartaBytes,
) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the handle and the bytes to this function.
        let (backend, data) = unsafe { (opened(backend), data.as_slice()) };
        backend.write(BufferId(buffer), offset, data).map_err(encode)
    })
}

unsafe extern "C" fn read(
    call: SpartaCall,
    backend: u64,
    buffer: u64,
    offset: usize,
    out: *mut u8,
    byte_count: usize,
) -> SpartaStatus {
    guarded(call, || {
        if byte_count == 0 {
            return Ok(());
        }
        // SAFETY: the host passed the handle, and `byte_count` initialised bytes that are only ours during the call.
        let (backend, out) = unsafe { (opened(backend), std::slice::from_raw_parts_mut(out, byte_count)) };
        backend.read(BufferId(buffer), offset, out).map_err(encode)
    })
}

unsafe extern "C" fn prepare(
    call: SpartaCall,
    backend: u64,
    plan: SpartaBytes,
    arena: u64,
    externals: *const u64,
    external_count: usize,
    prepared: *mut u64,
) -> SpartaStatus {
    // SAFETY: the arguments are those that the host passed to this function, and an empty list of functions.
    unsafe { prepare_own(call, backend, plan, arena, externals, external_count, std::ptr::null(), 0, prepared) }
}

unsafe extern "C" fn prepare_own(
    call: SpartaCall,
    backend: u64,
    plan: SpartaBytes,
    arena: u64,
    externals: *const u64,
    external_count: usize,
    functions: *const Option<OwnFunction>,
    function_count: usize,
    prepared: *mut u64,
) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the handle, the message and the arrays to this function.
        let (backend, given, externals, functions): (_, Json, _, _) = unsafe {
            let functions = slice(functions, function_count);
            (opened(backend), request(plan)?, slice(externals, external_count), functions)
        };
        let mut plan = understood(given)?;
        // SAFETY: the host passes functions as `abi::SpartaBackend` says.
        unsafe { give_functions(&mut plan, functions) };
        let externals: Vec<BufferId> = externals.iter().map(|&id| BufferId(id)).collect();
        let id = backend.prepare(&plan, &[BufferId(arena)], &externals).map_err(encode)?;
        // SAFETY: the host passes a writable `u64`.
        unsafe { prepared.write(id.0) };
        Ok(())
    })
}

/// Gives the plugins' own operations of a plan their functions, in order; those that are left without one have none.
///
/// # Safety
/// As for [`CpuFunction::new`], of each function for its operation.
unsafe fn give_functions(plan: &mut Plan, functions: &[Option<OwnFunction>]) {
    let own = plan.calls.iter_mut().filter_map(|call| match &mut call.op {
        Op::Own(own) => Some(&mut own.0.function),
        _ => None,
    });
    for (to, &function) in own.zip(functions) {
        // SAFETY: the caller vouches for it.
        *to = function.map(|function| unsafe { CpuFunction::new(function) });
    }
}

unsafe extern "C" fn run(call: SpartaCall, backend: u64, prepared: u64) -> SpartaStatus {
    // SAFETY: the host passed the handle to this function.
    guarded(call, || unsafe { opened(backend) }.run(PlanId(prepared)).map_err(encode))
}

unsafe extern "C" fn release(call: SpartaCall, backend: u64, prepared: u64) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the handle to this function.
        unsafe { opened(backend) }.release(PlanId(prepared));
        Ok(())
    })
}

unsafe extern "C" fn run_profiled(call: SpartaCall, backend: u64, prepared: u64) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the handle to this function.
        let times = unsafe { opened(backend) }.run_profiled(PlanId(prepared)).map_err(encode)?;
        respond(call, &times.iter().map(|time| time.as_nanos() as u64).collect::<Vec<_>>())
    })
}

unsafe extern "C" fn memory(call: SpartaCall, backend: u64, in_use: *mut u64, peak: *mut u64) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the handle to this function.
        let used = unsafe { opened(backend) }.memory_use().ok_or("this backend does not count its memory")?;
        // SAFETY: the host passes two writable `u64`.
        unsafe {
            in_use.write(used.in_use);
            peak.write(used.peak);
        }
        Ok(())
    })
}

unsafe extern "C" fn submit(
    call: SpartaCall,
    backend: u64,
    work: *const SpartaWork,
    work_count: usize,
) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the handle and the array to this function.
        let (backend, work) = unsafe { (opened(backend), slice(work, work_count)) };
        let piece = |piece: &SpartaWork| match piece.kind {
            WORK_WRITE => {
                // SAFETY: the host passed the bytes to this function.
                let data = unsafe { piece.data.as_slice() };
                Ok(Work::Write { buffer: BufferId(piece.handle), offset: piece.offset, data })
            }
            WORK_RUN => Ok(Work::Run(PlanId(piece.handle))),
            kind => Err(Error::new(format!("the plugin does not know work of kind {kind}; rebuild it"))),
        };
        let work = work.iter().map(piece).collect::<Result<Vec<Work>, Error>>()?;
        backend.submit(&work).map_err(encode)
    })
}

unsafe extern "C" fn request_read(
    call: SpartaCall,
    backend: u64,
    buffer: u64,
    offset: usize,
    byte_count: usize,
    read: *mut u64,
) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the handle to this function.
        let state = unsafe { state(backend) };
        let requested = state.backend.request(BufferId(buffer), offset, byte_count).map_err(encode)?;
        state.next_read += 1;
        state.reads.insert(state.next_read, requested);
        // SAFETY: the host passes a writable `u64`.
        unsafe { read.write(state.next_read) };
        Ok(())
    })
}

unsafe extern "C" fn fetch(call: SpartaCall, backend: u64, read: u64, out: *mut u8, byte_count: usize) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the handle, and `byte_count` initialised bytes that are only ours during the call.
        let (state, out) = unsafe {
            let out = if byte_count == 0 { &mut [] } else { std::slice::from_raw_parts_mut(out, byte_count) };
            (state(backend), out)
        };
        let requested =
            state.reads.remove(&read).ok_or_else(|| Error::new(format!("there is no requested read {read}")))?;
        state.backend.fetch(requested, out).map_err(encode)
    })
}

/// The plan, or an error if it has a key this version does not know: ignoring one would change the result.
fn understood(given: Json) -> Result<Plan, Error> {
    let wrong = |e: serde_json::Error| Error::new(format!("the plugin does not understand the plan: {e}"));
    let plan = Plan::deserialize(&given).map_err(wrong)?;
    match unknown_key(&given, &serde_json::to_value(&plan).map_err(wrong)?) {
        Some(key) => Err(Error::new(format!(
            "the plugin does not understand the plan's `{key}`, which a later version added; rebuild it with \
             the current sparta-plugin"
        ))),
        None => Ok(plan),
    }
}

/// The path of the first key that has a value in `given` and is missing from `known`.
fn unknown_key(given: &Json, known: &Json) -> Option<String> {
    match (given, known) {
        (Json::Object(given), Json::Object(known)) => given.iter().find_map(|(key, value)| match known.get(key) {
            Some(known) => unknown_key(value, known).map(|rest| format!("{key}.{rest}")),
            None => (!value.is_null()).then(|| key.clone()),
        }),
        (Json::Array(given), Json::Array(known)) => {
            given.iter().zip(known).find_map(|(given, known)| unknown_key(given, known))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_plan_of_a_later_version_is_refused() {
        let plan = |op: Json| {
            let operand = json!({ "place": { "external": 0 }, "dtype": "f32", "shape": [2] });
            let call = json!({ "op": op, "inputs": [operand], "outputs": [operand], "label": "" });
            json!({ "arena": 0, "externals": [], "calls": [call] })
        };
        assert!(understood(plan(json!({ "op": "scale", "factor": 0.1 }))).is_ok());
        let later = json!({ "op": "scale", "factor": 0.1, "twist": null });
        assert!(understood(plan(later)).is_ok(), "a key without a value changes nothing");
        let message = |op| understood(plan(op)).unwrap_err().0;
        let twisted = message(json!({ "op": "scale", "factor": 0.1, "twist": 2 }));
        assert!(twisted.contains("`calls.op.twist`"), "{twisted}");
        let unknown = message(json!({ "op": "levitate" }));
        assert!(unknown.contains("levitate"), "{unknown}");
    }
}
