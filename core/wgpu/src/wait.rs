//! Waiting for a device. Code in a browser must not block: there the WebAssembly stack is suspended until a promise settles
//! (JavaScript Promise Integration), so that callers need not be asynchronous.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

#[cfg(not(target_arch = "wasm32"))]
pub(crate) use pollster::block_on;

/// Waits for a future.
#[cfg(target_arch = "wasm32")]
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Wake));
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        // SAFETY: a function without arguments. Callbacks that run before it returns use the stack below this frame and
        // restore it.
        unsafe { suspend() };
    }
}

#[cfg(target_arch = "wasm32")]
#[link(wasm_import_module = "./suspend.js")]
unsafe extern "C" {
    /// Returns after the next [`wake`], or at once if there was one since it last returned.
    fn suspend();
    fn wake();
}

#[cfg(target_arch = "wasm32")]
struct Wake;

#[cfg(target_arch = "wasm32")]
impl std::task::Wake for Wake {
    fn wake(self: Arc<Self>) {
        // SAFETY: a function without arguments, which settles a promise.
        unsafe { wake() }
    }
}

/// A value that a callback of the device delivers once.
pub(crate) struct Signal<T>(Arc<Mutex<State<T>>>);

struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

impl<T> Signal<T> {
    pub fn new() -> Self {
        Signal(Arc::new(Mutex::new(State { value: None, waker: None })))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, value: T) {
        let mut state = self.lock();
        state.value = Some(value);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The value, if it is there.
    pub fn take(&self) -> Option<T> {
        self.lock().value.take()
    }
}

impl<T> Clone for Signal<T> {
    fn clone(&self) -> Self {
        Signal(self.0.clone())
    }
}

impl<T> Future for Signal<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut state = self.lock();
        match state.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// A submission that can be waited for.
#[derive(Clone)]
pub(crate) struct Submitted {
    #[cfg(not(target_arch = "wasm32"))]
    index: wgpu::SubmissionIndex,
    #[cfg(target_arch = "wasm32")]
    done: Signal<()>,
}

#[cfg(not(target_arch = "wasm32"))]
impl Submitted {
    pub fn new(_: &wgpu::Queue, index: wgpu::SubmissionIndex) -> Self {
        Submitted { index }
    }

    pub fn wait(self, device: &wgpu::Device) -> Result<(), wgpu::PollError> {
        device.poll(wgpu::PollType::Wait { submission_index: Some(self.index), timeout: None }).map(|_| ())
    }
}

#[cfg(target_arch = "wasm32")]
impl Submitted {
    pub fn new(queue: &wgpu::Queue, _: wgpu::SubmissionIndex) -> Self {
        let done = Signal::new();
        let set = done.clone();
        queue.on_submitted_work_done(move || set.set(()));
        Submitted { done }
    }

    pub fn wait(self, _: &wgpu::Device) -> Result<(), wgpu::PollError> {
        block_on(self.done);
        Ok(())
    }
}

impl std::fmt::Debug for Submitted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Submitted")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_wakes_who_waits_for_it() {
        let signal = Signal::new();
        let set = signal.clone();
        let waiting = std::thread::spawn(move || block_on(signal));
        set.set(7);
        assert_eq!(waiting.join().ok(), Some(7));
        assert_eq!(set.take(), None);
    }
}
