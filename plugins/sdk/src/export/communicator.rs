use super::{Exported, guarded, guarded_close, respond, text};
use crate::Error;
use crate::abi::*;
use crate::communicator::{Communicator, CommunicatorPlugin};

pub const fn table<E: Exported<Object = dyn CommunicatorPlugin>>() -> SpartaCommunicator {
    SpartaCommunicator {
        size: size_of::<SpartaCommunicator>(),
        describe: Some(describe::<E>),
        launched: Some(launched::<E>),
        join: Some(join::<E>),
        leave: Some(leave),
        barrier: Some(barrier),
        broadcast: Some(broadcast),
        all_gather: Some(all_gather),
        all_reduce: Some(all_reduce),
        abort: Some(abort),
    }
}

/// Behind a communicator's handle.
type Handle = Box<dyn Communicator>;

/// # Safety
/// `communicator` is a handle that `join` made and `leave` has not freed, used by one thread at a time.
unsafe fn joined<'a>(communicator: u64) -> &'a mut dyn Communicator {
    // SAFETY: the caller vouches for it.
    unsafe { &mut **(communicator as *mut Handle) }
}

/// # Safety
/// `data` is null, or points to `len` initialised elements that nobody else uses for `'a`.
unsafe fn slice_mut<'a, T>(data: *mut T, len: usize) -> &'a mut [T] {
    if data.is_null() || len == 0 {
        return &mut [];
    }
    // SAFETY: the caller vouches for it.
    unsafe { std::slice::from_raw_parts_mut(data, len) }
}

unsafe extern "C" fn describe<E: Exported<Object = dyn CommunicatorPlugin>>(call: SpartaCall) -> SpartaStatus {
    guarded(call, || respond(call, &E::object().describe()))
}

unsafe extern "C" fn launched<E: Exported<Object = dyn CommunicatorPlugin>>(call: SpartaCall) -> SpartaStatus {
    guarded(call, || respond(call, &E::object().launched()?))
}

unsafe extern "C" fn join<E: Exported<Object = dyn CommunicatorPlugin>>(
    call: SpartaCall,
    handle: *mut u64,
) -> SpartaStatus {
    guarded(call, || {
        let communicator: Handle = E::object().join()?;
        respond(call, &communicator.place())?;
        // SAFETY: the host passes a writable `u64`.
        unsafe { handle.write(Box::into_raw(Box::new(communicator)) as u64) };
        Ok(())
    })
}

unsafe extern "C" fn leave(communicator: u64) {
    // SAFETY: the host passes a handle that `join` made, once.
    guarded_close(|| drop(unsafe { Box::from_raw(communicator as *mut Handle) }));
}

unsafe extern "C" fn barrier(call: SpartaCall, communicator: u64) -> SpartaStatus {
    // SAFETY: the host passes a handle that is open.
    guarded(call, || unsafe { joined(communicator) }.barrier())
}

unsafe extern "C" fn broadcast(
    call: SpartaCall,
    communicator: u64,
    root: usize,
    data: *mut u8,
    byte_count: usize,
) -> SpartaStatus {
    // SAFETY: the host passes a handle that is open, and writable bytes.
    guarded(call, || unsafe { joined(communicator).broadcast(root, slice_mut(data, byte_count)) })
}

unsafe extern "C" fn all_gather(
    call: SpartaCall,
    communicator: u64,
    own: SpartaBytes,
    all: *mut u8,
    byte_count: usize,
) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passes a handle that is open, readable bytes, and writable ones apart from them.
        let (communicator, own, all) = unsafe { (joined(communicator), own.as_slice(), slice_mut(all, byte_count)) };
        let size = communicator.place().size;
        match own.len().checked_mul(size) {
            Some(expected) if expected == all.len() => communicator.all_gather(own, all),
            _ => Err(Error(format!("{} bytes of each of {size} processes are not {}", own.len(), all.len()))),
        }
    })
}

unsafe extern "C" fn all_reduce(call: SpartaCall, communicator: u64, values: *mut f32, count: usize) -> SpartaStatus {
    // SAFETY: the host passes a handle that is open, and writable values.
    guarded(call, || unsafe { joined(communicator).all_reduce(slice_mut(values, count)) })
}

unsafe extern "C" fn abort(communicator: u64, reason: SpartaBytes) {
    guarded_close(|| {
        // SAFETY: the host passes a handle that is open, and a text.
        let (communicator, reason) = unsafe { (joined(communicator), text(reason)) };
        communicator.abort(reason.unwrap_or("no reason was given"));
    });
}
