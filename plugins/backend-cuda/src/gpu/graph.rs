//! CUDA graphs: work that is recorded once, and queued again by a single call.

use super::Session;
use super::driver::{Graph, GraphExec};
use crate::machine::{Failure, GraphId};
use std::collections::HashMap;
use std::ffi::c_int;
use std::ptr;

/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`: other threads may do what a capture does not allow.
const THREAD_LOCAL: c_int = 1;

/// The graphs of a context.
#[derive(Default)]
pub struct Graphs {
    ready: HashMap<usize, GraphExec>,
    next: usize,
}

/// From now on, work for the queue is recorded and not done.
pub fn begin(session: &Session) -> Result<(), Failure> {
    let functions = &session.driver.functions;
    // SAFETY: the stream lives as long as the context.
    let begun = unsafe { (functions.cuStreamBeginCapture_v2)(session.stream, THREAD_LOCAL) };
    session.driver.check("cuStreamBeginCapture", begun)
}

impl Graphs {
    /// Ends what `begin` began and makes a graph of it.
    pub fn end(&mut self, session: &Session) -> Result<GraphId, Failure> {
        let (driver, functions) = (&session.driver, &session.driver.functions);
        let (mut graph, mut ready): (Graph, GraphExec) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the stream lives as long as the context, and the pointer is to a live local.
        driver.check("cuStreamEndCapture", unsafe { (functions.cuStreamEndCapture)(session.stream, &mut graph) })?;
        // SAFETY: the graph was made just now, and is no longer needed when it was instantiated, or was not.
        let (made, destroyed) = unsafe {
            let made = (functions.cuGraphInstantiateWithFlags)(&mut ready, graph, 0);
            (made, (functions.cuGraphDestroy)(graph))
        };
        driver.check("cuGraphInstantiateWithFlags", made)?;
        self.next += 1;
        self.ready.insert(self.next, ready);
        driver.check("cuGraphDestroy", destroyed)?;
        Ok(GraphId(self.next))
    }

    pub fn launch(&self, session: &Session, id: GraphId) -> Result<(), Failure> {
        let graph = *self.ready.get(&id.0).ok_or_else(|| Failure::Other("no such graph".into()))?;
        // SAFETY: the graph was instantiated in this context, and its work is that of the calls it was recorded from.
        session
            .driver
            .check("cuGraphLaunch", unsafe { (session.driver.functions.cuGraphLaunch)(graph, session.stream) })
    }

    /// Forgets a graph when its work is done.
    pub fn forget(&mut self, session: &Session, id: GraphId) -> Result<(), Failure> {
        let Some(graph) = self.ready.remove(&id.0) else { return Ok(()) };
        session.wait()?;
        // SAFETY: the graph was instantiated, is destroyed once, and none of its work is in the queue.
        session.driver.check("cuGraphExecDestroy", unsafe { (session.driver.functions.cuGraphExecDestroy)(graph) })
    }
}
