//! Turns wgpu's errors into our own. wgpu panics on unhandled errors, and reports some of them long after the
//! call that caused them; both cases end here.

use sparta_graph::BackendError;
use std::sync::{Arc, Mutex, PoisonError};

/// Errors since the last check, collected by wgpu's callbacks.
#[derive(Clone, Default)]
pub(crate) struct Reports(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Why the device was lost, which is final.
    lost: Option<String>,
    /// The first error outside any scope.
    error: Option<String>,
}

impl Reports {
    /// Collects what `device` reports from now on.
    pub fn install(device: &wgpu::Device) -> Reports {
        let reports = Reports::default();
        let errors = reports.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            errors.lock(|state| state.error.get_or_insert_with(|| one_line(&error.to_string())).clone());
        }));
        let lost = reports.clone();
        device.set_device_lost_callback(move |reason, message| {
            lost.lock(|state| state.lost = Some(one_line(&format!("{message} ({reason:?})"))));
        });
        reports
    }

    fn lock<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns an error if anything was reported; `during` names the work at that time.
    pub fn check(&self, device: &str, during: &str) -> Result<(), BackendError> {
        let (lost, error) = self.lock(|state| (state.lost.clone(), state.error.take()));
        if let Some(reason) = lost {
            return Err(BackendError::DeviceLost { device: device.into(), during: during.into(), reason });
        }
        match error {
            Some(reason) => Err(BackendError::Op { device: device.into(), op: during.into(), reason }),
            None => Ok(()),
        }
    }
}

/// The kind of error that a scope caught, with its message.
pub(crate) enum Caught {
    OutOfMemory,
    Other(String),
}

/// Runs `f` and returns the error that wgpu reports for it.
pub(crate) fn scoped<T>(device: &wgpu::Device, f: impl FnOnce() -> T) -> Result<T, Caught> {
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let value = f();
    // Scopes close in reverse order.
    let caught = [validation.pop(), internal.pop()].map(pollster::block_on);
    if pollster::block_on(memory.pop()).is_some() {
        return Err(Caught::OutOfMemory);
    }
    match caught.into_iter().flatten().next() {
        Some(error) => Err(Caught::Other(one_line(&error.to_string()))),
        None => Ok(value),
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
