//! Waiting where threads can block.

pub(crate) use pollster::block_on;

/// A submission that can be waited for.
#[derive(Clone)]
pub(crate) struct Submitted {
    index: wgpu::SubmissionIndex,
}

impl Submitted {
    pub fn new(_: &wgpu::Queue, index: wgpu::SubmissionIndex) -> Self {
        Submitted { index }
    }

    pub fn wait(self, device: &wgpu::Device) -> Result<(), wgpu::PollError> {
        device.poll(wgpu::PollType::Wait { submission_index: Some(self.index), timeout: None }).map(|_| ())
    }
}
