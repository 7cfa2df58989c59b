//! Processes that train one model together.

use super::thousands;
use serde::{Deserialize, Serialize};
use sparta_graph::memory_size;
use std::fmt;

/// How processes that train together add up their gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exchange {
    /// Each micro-batch on its own, in their order.
    #[default]
    Exact,
    /// Each process adds its own first; then the communicator adds these sums in an order that it chooses.
    Fast,
}

impl Exchange {
    /// What `--exchange` can be.
    pub const ALL: &[(&str, Exchange)] = &[("exact", Exchange::Exact), ("fast", Exchange::Fast)];

    pub fn is_exact(&self) -> bool {
        *self == Exchange::Exact
    }
}

/// A process, as shown to users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The name of its machine.
    pub host: String,
    /// Its process ID on that machine.
    pub process: u32,
    /// What it computes on: `Tesla T4 (cuda:0)`.
    pub device: String,
}

/// Who does what in a run of several processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TogetherPlan {
    /// In the order of their ranks.
    pub members: Vec<Member>,
    /// What carries the messages.
    pub library: String,
    pub exchange: Exchange,
    /// Micro-batches of a step of the mean length.
    pub micro_batches: usize,
    /// Bytes of the gradients of a micro-batch; 0 if each process computes all gradients itself.
    pub gradient_bytes: u64,
    /// The option with which a single process computes the same result.
    pub alone: String,
}

impl TogetherPlan {
    /// Bytes that a process receives in a step, at most.
    pub fn step_bytes(&self) -> u64 {
        let (count, size) = (self.micro_batches as u64, self.members.len() as u64);
        match self.exchange {
            _ if count < 2 => 0,
            Exchange::Exact => self.gradient_bytes * count.div_ceil(size) * (size - 1),
            Exchange::Fast => self.gradient_bytes * 2 * (size - 1) / size,
        }
    }
}

impl fmt::Display for TogetherPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TogetherPlan { members, library, micro_batches, .. } = self;
        writeln!(f, "processes  {} by {library}; the first one writes", members.len())?;
        let mut first = 0;
        for equal in members.chunk_by(|a, b| (&a.host, &a.device) == (&b.host, &b.device)) {
            let (last, member) = (first + equal.len() - 1, &equal[0]);
            let numbers: Vec<String> = equal.iter().map(|member| member.process.to_string()).collect();
            let ranks = if first == last { first.to_string() } else { format!("{first} to {last}") };
            writeln!(f, "  {ranks:<8} {} ({}): {}", member.host, numbers.join(", "), member.device)?;
            first = last + 1;
        }
        if self.gradient_bytes == 0 {
            return writeln!(f, "  share    features and evaluations; each process does all steps of the head");
        }
        let (count, size) = (thousands(*micro_batches as u64), members.len());
        writeln!(f, "  share    a step of mean length has {count} micro-batches; each process computes one in {size}")?;
        let (step, one) = (memory_size(self.step_bytes()), memory_size(self.gradient_bytes));
        let order = match self.exchange {
            Exchange::Exact => format!("added in their order, with the same bytes as one process{}", self.alone),
            Exchange::Fast => "added in any order: a different number of processes gives different bytes".to_owned(),
        };
        writeln!(
            f,
            "  exchange each process receives {step} per step; the gradients of a micro-batch take {one}, {order}"
        )
    }
}

/// What the exchanges cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Seconds spent waiting for the slowest process.
    pub waiting: f64,
    /// Seconds of the exchanges themselves.
    pub exchanging: f64,
    /// Bytes that this process has received.
    pub bytes: u64,
    pub exchanges: u64,
}

impl Spent {
    /// What was spent since `before`.
    pub fn since(&self, before: &Spent) -> Spent {
        Spent {
            waiting: self.waiting - before.waiting,
            exchanging: self.exchanging - before.exchanging,
            bytes: self.bytes - before.bytes,
            exchanges: self.exchanges - before.exchanges,
        }
    }
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spent { waiting, exchanging, bytes, exchanges } = self;
        write!(
            f,
            "{} exchanges, {} received in {exchanging:.3} s, {waiting:.3} s waiting for other processes",
            thousands(*exchanges),
            memory_size(*bytes)
        )
    }
}
