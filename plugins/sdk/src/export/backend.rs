use super::{Exported, guarded, guarded_close, request, respond, text};
use crate::Error;
use crate::abi::*;
use crate::backend::BackendPlugin;
use serde_json::Value as Json;
use sparta_graph::{Backend, BackendError, BufferId, DType, Plan, PlanId};

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
    }
}

/// Behind a backend's handle.
type BackendHandle = Box<dyn Backend>;

/// A `BackendError` crosses as JSON, so that the host can tell out of memory from a lost device.
fn encode(error: BackendError) -> Error {
    Error(serde_json::to_string(&error).unwrap_or_else(|_| error.to_string()))
}

/// # Safety
/// `backend` is a handle that `open` made and `close` has not freed, used by one thread at a time.
unsafe fn opened<'a>(backend: u64) -> &'a mut BackendHandle {
    // SAFETY: the caller vouches for it.
    unsafe { &mut *(backend as *mut BackendHandle) }
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
        let backend: BackendHandle = E::object().open(device).map_err(encode)?;
        respond(call, &backend.info())?;
        // SAFETY: the host passes a writable `u64`.
        unsafe { handle.write(Box::into_raw(Box::new(backend)) as u64) };
        Ok(())
    })
}

unsafe extern "C" fn close(backend: u64) {
    // SAFETY: the host passes a handle that `open` made, once.
    guarded_close(|| drop(unsafe { Box::from_raw(backend as *mut BackendHandle) }));
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
    guarded(call, || {
        // SAFETY: the host passed the handle, the message and the array to this function.
        let (backend, plan, externals): (_, Plan, _) =
            unsafe { (opened(backend), request(plan)?, slice(externals, external_count)) };
        let externals: Vec<BufferId> = externals.iter().map(|&id| BufferId(id)).collect();
        let id = backend.prepare(&plan, BufferId(arena), &externals).map_err(encode)?;
        // SAFETY: the host passes a writable `u64`.
        unsafe { prepared.write(id.0) };
        Ok(())
    })
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
