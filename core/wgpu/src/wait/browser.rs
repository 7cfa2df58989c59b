//! Waiting in a browser.

use super::Signal;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Waits for a future.
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

#[link(wasm_import_module = "./suspend.js")]
unsafe extern "C" {
    /// Returns after the next [`wake`], or at once if there was one since it last returned.
    fn suspend();
    fn wake();
}

struct Wake;

impl std::task::Wake for Wake {
    fn wake(self: Arc<Self>) {
        // SAFETY: a function without arguments, which settles a promise.
        unsafe { wake() }
    }
}

/// A submission that can be waited for.
#[derive(Clone)]
pub(crate) struct Submitted {
    done: Signal<()>,
}

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
