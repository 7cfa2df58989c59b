//! Uploads as part of a submission, and reads that do not wait.

use crate::backend::{WgpuBackend, other};
use crate::wait::{IN_BROWSER, Signal, Submitted, block_on};
use sparta_graph::{BackendError, Work};

/// How many staging buffers are kept for later reads.
const KEPT: usize = 4;

/// A read in flight.
pub(crate) struct Reading {
    staging: wgpu::Buffer,
    bytes: usize,
    mapped: Signal<Result<(), wgpu::BufferAsyncError>>,
    submission: Submitted,
    /// The last submission that it waits for.
    number: u64,
    /// The name of the tensor that is read.
    label: String,
}

impl WgpuBackend {
    /// Whether all writes fit one buffer of at most `most` bytes, and each is whole words.
    pub(crate) fn fits_one_upload(work: &[Work], most: usize) -> bool {
        let lengths = work.iter().map(|piece| match piece {
            Work::Write { data, .. } => data.len(),
            Work::Run(_) => 0,
        });
        lengths.clone().all(|n| n.is_multiple_of(4)) && lengths.sum::<usize>() <= most
    }

    /// Uploads the data of all writes at once, then copies and runs in order, in one submission, or in several if it
    /// is a lot of work.
    pub(crate) fn submit_together(&mut self, work: &[Work]) -> Result<(), BackendError> {
        let mut data = Vec::new();
        for piece in work {
            if let Work::Write { data: part, .. } = piece {
                data.extend_from_slice(part);
            }
        }
        let upload = self.upload_buffer(data.len())?;
        // The queue does this after the last submission's commands and before those of the next.
        self.queue.write_buffer(&upload, 0, &data);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let mut at = 0;
        for piece in work {
            match *piece {
                Work::Write { buffer, offset, data } => {
                    let target = self.buffer(buffer)?;
                    let start = self.range(target, offset, data.len())?;
                    encoder.copy_buffer_to_buffer(&upload, at, &target.buffer, start, data.len() as u64);
                    at += data.len() as u64;
                }
                Work::Run(plan) => {
                    let prepared = self.prepared(plan)?;
                    encoder = self.encode_paced(encoder, &prepared.steps, &prepared.work)?;
                }
            }
        }
        self.submit_encoded(encoder)?;
        self.check("submit")
    }

    /// A staging buffer for uploads, of at least `bytes` bytes.
    fn upload_buffer(&mut self, bytes: usize) -> Result<wgpu::Buffer, BackendError> {
        if let Some(upload) = self.upload.as_ref().filter(|upload| upload.size() >= bytes as u64) {
            return Ok(upload.clone());
        }
        let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let upload = self.create(bytes.next_power_of_two() as u64, usage, "upload")?;
        self.upload = Some(upload.clone());
        Ok(upload)
    }

    /// Queues a copy of `bytes` bytes from byte `start` on to a buffer that the host can read.
    pub(crate) fn start_read(
        &self,
        source: &wgpu::Buffer,
        label: &str,
        start: u64,
        bytes: usize,
    ) -> Result<Reading, BackendError> {
        let padded = bytes.next_multiple_of(4) as u64;
        let staging = self.staging(padded)?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(source, start, &staging, 0, padded);
        let submission = Submitted::new(&self.queue, self.queue.submit([encoder.finish()]));
        let mapped = Signal::new();
        let set = mapped.clone();
        staging.map_async(wgpu::MapMode::Read, .., move |result| set.set(result));
        Ok(Reading { staging, bytes, mapped, submission, number: self.submitted(), label: label.into() })
    }

    /// Waits for a read, but not for anything submitted after it.
    pub(crate) fn finish_read(&self, reading: Reading, out: &mut [u8]) -> Result<(), BackendError> {
        let Reading { staging, bytes, mapped, submission, number, label } = reading;
        if out.len() != bytes {
            let reason = format!("{label}: {bytes} bytes were requested, but {} are fetched", out.len());
            return Err(other(self.id(), reason));
        }
        self.wait_for(submission, number, &label)?;
        match self.mapped(mapped) {
            Some(Ok(())) => {}
            Some(Err(e)) => return Err(self.op(&label, e.to_string())),
            None => return Err(self.op(&label, "the device did not answer")),
        }
        let view = staging.get_mapped_range(..).map_err(|e| self.op(&label, e.to_string()))?;
        out.copy_from_slice(&view[..bytes]);
        drop(view);
        staging.unmap();
        let mut kept = self.staging.borrow_mut();
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push(staging);
        Ok(())
    }

    /// The result of a mapping whose submission is done; in a browser it may arrive later.
    fn mapped<T>(&self, mapped: Signal<T>) -> Option<T> {
        if IN_BROWSER { Some(block_on(mapped)) } else { mapped.take() }
    }

    /// Reads and waits.
    pub(crate) fn read_bytes(
        &self,
        source: &wgpu::Buffer,
        label: &str,
        start: u64,
        out: &mut [u8],
    ) -> Result<(), BackendError> {
        let reading = self.start_read(source, label, start, out.len())?;
        self.finish_read(reading, out)
    }

    fn staging(&self, bytes: u64) -> Result<wgpu::Buffer, BackendError> {
        let size = bytes.max(4);
        let mut kept = self.staging.borrow_mut();
        if let Some(i) = kept.iter().position(|buffer| buffer.size() == size) {
            return Ok(kept.swap_remove(i));
        }
        self.create(size, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST, "staging")
    }
}
