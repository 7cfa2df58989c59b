//! The processes that train one model together: what they say to each other, and how they end together.
//!
//! Every exchange begins with a header from each process: where it is, whether its user has asked to stop, and whether
//! it has failed. So a process that fails ends the others at their next exchange with its message, and all stop after
//! the same step.

mod agreement;
mod header;
mod threads;

pub use agreement::Agreement;
pub use threads::threads;

use crate::job::{Member, Spent};
use crate::train::Peers;
use crate::{Error, Result};
use header::Header;
use serde::Serialize;
use sparta_plugin::communicator::{Communicator, Place};
use std::time::Instant;

/// This process and the others; a process alone is a team, too.
pub struct Team {
    others: Option<Others>,
    exact: bool,
}

struct Others {
    communicator: Box<dyn Communicator>,
    place: Place,
    members: Vec<Member>,
    /// Exchanges so far.
    turn: u64,
    /// Whether the user of this process has asked to stop, and whether all know that some user has.
    asks: bool,
    stops: bool,
    /// Whether all know that one of them has failed, or nothing can be exchanged any more.
    over: bool,
    spent: Spent,
}

impl Team {
    /// A process without others.
    pub fn alone() -> Team {
        Team { others: None, exact: true }
    }

    /// The processes that a communicator has brought together.
    pub fn meet(communicator: Box<dyn Communicator>) -> Team {
        let place = communicator.place();
        if place.size == 1 {
            return Team::alone();
        }
        let (members, spent) = (Vec::new(), Spent::default());
        let others = Others { communicator, place, members, turn: 0, asks: false, stops: false, over: false, spent };
        Team { others: Some(others), exact: true }
    }

    /// Tells the others what this process computes on.
    ///
    /// Errors: another process that has failed.
    pub fn introduce(&mut self, device: &str) -> Result<()> {
        let Some(others) = &self.others else { return Ok(()) };
        let (host, process) = (others.place.host.clone(), std::process::id());
        let own = Member { host, process, device: device.to_owned() };
        let members = self.exchange("introductions", &json(&own)?)?;
        let members = members.iter().map(|bytes| parse(bytes)).collect::<Result<_>>()?;
        if let Some(others) = &mut self.others {
            others.members = members;
        }
        Ok(())
    }

    /// Whether gradients are added in the order of their micro-batches.
    pub fn set_exact(&mut self, exact: bool) {
        self.exact = exact;
    }

    pub fn rank(&self) -> usize {
        self.others.as_ref().map_or(0, |others| others.place.rank)
    }

    pub fn size(&self) -> usize {
        self.others.as_ref().map_or(1, |others| others.place.size)
    }

    /// The number of this process among those on its machine.
    pub fn local_rank(&self) -> usize {
        self.others.as_ref().map_or(0, |others| others.place.local_rank)
    }

    /// Whether this process is the one that writes and prints.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// The processes in the order of their ranks; none for a process alone.
    pub fn members(&self) -> &[Member] {
        self.others.as_ref().map_or(&[], |others| &others.members)
    }

    /// What carries the messages.
    pub fn library(&self) -> &str {
        self.others.as_ref().map_or("", |others| &others.place.library)
    }

    /// What exchanges have cost; `None` for a process alone.
    pub fn spent(&self) -> Option<Spent> {
        self.others.as_ref().map(|others| others.spent)
    }

    /// Exchanges so far.
    pub fn turn(&self) -> u64 {
        self.others.as_ref().map_or(0, |others| others.turn)
    }

    /// Tells the others with the next exchange whether the user of this process has asked to stop.
    pub fn ask_to_stop(&mut self, asks: bool) {
        if let Some(others) = &mut self.others {
            others.asks = asks;
        }
    }

    /// Whether the team stops: as all knew at the last exchange or, for a process alone, because it `asks`.
    pub fn stops(&self, asks: bool) -> bool {
        self.others.as_ref().map_or(asks, |others| others.stops)
    }

    /// What each process has, in the order of ranks; `what` names it in the error if processes are not at the same
    /// place.
    ///
    /// Errors: a process that has failed, with its message.
    pub fn exchange(&mut self, what: &str, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let Some(others) = &mut self.others else { return Ok(vec![own.to_vec()]) };
        let headers = others.headers(what, own.len(), false)?;
        let lengths: Vec<usize> = headers.iter().map(|header| header.len as usize).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut padded = own.to_vec();
        padded.resize(longest, 0);
        let all = others.gather(&padded)?;
        Ok(lengths.iter().enumerate().map(|(rank, len)| all[rank * longest..][..*len].to_vec()).collect())
    }

    /// Gives all processes what the leading one has. The others' `own` is ignored.
    ///
    /// Errors: a process that has failed, with its message.
    pub fn share(&mut self, what: &str, own: Vec<u8>) -> Result<Vec<u8>> {
        let Some(others) = &mut self.others else { return Ok(own) };
        let headers = others.headers(what, own.len(), false)?;
        let mut data = own;
        data.resize(headers[0].len as usize, 0);
        let begin = Instant::now();
        let done = others.communicator.broadcast(0, &mut data);
        others.count(begin, data.len(), done)?;
        Ok(data)
    }

    /// Waits until all processes are here.
    ///
    /// Errors: a process that has failed, with its message.
    pub fn assemble(&mut self, what: &str) -> Result<()> {
        self.others.as_mut().map_or(Ok(()), |others| others.headers(what, 0, false).map(drop))
    }

    /// Waits until all processes are done; nothing is exchanged after that.
    ///
    /// Errors: a process that has failed, with its message.
    pub fn end(&mut self) -> Result<()> {
        self.assemble("the end")?;
        if let Some(others) = &mut self.others {
            others.over = true;
        }
        Ok(())
    }

    /// Ends the others with this error, unless they already know that it is over. Returns the error for the user.
    pub fn fail(&mut self, error: Error) -> Error {
        let Some(others) = self.others.as_mut().filter(|others| !others.over) else { return error };
        let message = error.to_string();
        // The header tells all of them; what comes back is the same message again, or that of another process.
        let _ = others.headers("an error", message.len(), true).and_then(|headers| others.messages(&headers, &message));
        error
    }
}

impl Others {
    /// The headers of all processes, once the last one is here.
    fn headers(&mut self, what: &str, len: usize, failed: bool) -> Result<Vec<Header>> {
        let own = Header { turn: self.turn, place: header::place(what), len: len as u64, stops: self.asks, failed };
        self.turn += 1;
        let (begin, bytes) = (Instant::now(), own.to_bytes());
        let mut all = vec![0; bytes.len() * self.place.size];
        let gathered = self.communicator.all_gather(&bytes, &mut all);
        self.spent.waiting += begin.elapsed().as_secs_f64();
        if let Err(error) = gathered {
            return Err(self.broken(error));
        }
        let headers: Vec<Header> = all.chunks(bytes.len()).map(Header::from_bytes).collect();
        self.stops |= headers.iter().any(|header| header.stops);
        if headers.iter().any(|header| header.failed) {
            self.over = true;
            return match failed {
                true => Ok(headers),
                false => Err(self.failure(&headers)),
            };
        }
        if let Some(rank) = headers.iter().position(|other| (other.turn, other.place) != (own.turn, own.place)) {
            let own_rank = self.place.rank;
            let error = format!(
                "process {own_rank} is at {what} and process {rank} is elsewhere: all must run the same program with \
                 the same options and data"
            );
            return Err(self.broken(sparta_plugin::Error(error)));
        }
        Ok(headers)
    }

    /// The messages of processes that have failed, by rank.
    fn messages(&mut self, headers: &[Header], own: &str) -> Result<Vec<(usize, String)>> {
        let of = |header: &Header| if header.failed { header.len as usize } else { 0 };
        let longest = headers.iter().map(of).max().unwrap_or(0);
        let mut padded = own.as_bytes().to_vec();
        padded.resize(longest, 0);
        let all = self.gather(&padded)?;
        let message = |(rank, header): (usize, &Header)| {
            let text = String::from_utf8_lossy(&all[rank * longest..][..of(header)]).into_owned();
            header.failed.then_some((rank, text))
        };
        Ok(headers.iter().enumerate().filter_map(message).collect())
    }

    /// The error that a process reports when others have failed.
    fn failure(&mut self, headers: &[Header]) -> Error {
        let messages = match self.messages(headers, "") {
            Ok(messages) => messages,
            Err(error) => return error,
        };
        let named = messages.iter().map(|(rank, message)| format!("{} failed: {message}", self.name(*rank)));
        Error::Training(named.collect::<Vec<_>>().join("; "))
    }

    fn name(&self, rank: usize) -> String {
        match self.members.get(rank) {
            Some(member) => format!("process {rank} on {}", member.host),
            None => format!("process {rank}"),
        }
    }

    fn gather(&mut self, own: &[u8]) -> Result<Vec<u8>> {
        let mut all = vec![0; own.len() * self.place.size];
        if !own.is_empty() {
            let begin = Instant::now();
            let done = self.communicator.all_gather(own, &mut all);
            self.count(begin, all.len() - own.len(), done)?;
        }
        Ok(all)
    }

    fn count(
        &mut self,
        begin: Instant,
        bytes: usize,
        done: std::result::Result<(), sparta_plugin::Error>,
    ) -> Result<()> {
        self.spent.exchanging += begin.elapsed().as_secs_f64();
        self.spent.bytes += bytes as u64;
        self.spent.exchanges += 1;
        done.map_err(|error| self.broken(error))
    }

    /// Nothing can be exchanged any more.
    fn broken(&mut self, error: sparta_plugin::Error) -> Error {
        self.over = true;
        self.communicator.abort(&error.0);
        Error::Training(error.0)
    }
}

impl Peers for Team {
    fn rank(&self) -> usize {
        Team::rank(self)
    }

    fn size(&self) -> usize {
        Team::size(self)
    }

    fn exact(&self) -> bool {
        self.exact
    }

    fn gather(&mut self, own: &[f32]) -> Result<Vec<f32>> {
        let Some(others) = &mut self.others else { return Ok(own.to_vec()) };
        others.headers("gradients or outputs", 4 * own.len(), false)?;
        let mut all = vec![0f32; own.len() * others.place.size];
        let begin = Instant::now();
        let done = others.communicator.all_gather(bytemuck::cast_slice(own), bytemuck::cast_slice_mut(&mut all));
        others.count(begin, 4 * (all.len() - own.len()), done)?;
        Ok(all)
    }

    fn add(&mut self, values: &mut [f32]) -> Result<()> {
        let Some(others) = &mut self.others else { return Ok(()) };
        others.headers("sums of gradients", 4 * values.len(), false)?;
        let begin = Instant::now();
        let done = others.communicator.all_reduce(values);
        others.count(begin, 4 * values.len(), done)
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::Training(e.to_string()))
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::Training(format!("the message of another process cannot be read: {e}")))
}
