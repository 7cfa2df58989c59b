//! A communicator between threads of one process.

use sparta_plugin::Error;
use sparta_plugin::communicator::{Communicator, Place};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// One communicator for each of `size` threads.
pub fn threads(size: usize) -> Vec<Box<dyn Communicator>> {
    let round = Round { arrived: 0, left: 0, given: vec![Vec::new(); size], gone: None };
    let room = Arc::new(Room { round: Mutex::new(round), changed: Condvar::new() });
    (0..size).map(|rank| Box::new(Thread { rank, size, room: room.clone() }) as Box<dyn Communicator>).collect()
}

/// Where the threads meet.
struct Room {
    round: Mutex<Round>,
    changed: Condvar,
}

struct Round {
    /// Threads that have contributed in this round, and those that have taken the result.
    arrived: usize,
    left: usize,
    /// By rank.
    given: Vec<Vec<u8>>,
    /// Why nothing can be exchanged any more.
    gone: Option<String>,
}

struct Thread {
    rank: usize,
    size: usize,
    room: Arc<Room>,
}

impl Room {
    fn round(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        guard: MutexGuard<'a, Round>,
        until: impl Fn(&Round) -> bool,
    ) -> Result<MutexGuard<'a, Round>, Error> {
        let waited = self.changed.wait_while(guard, |round| round.gone.is_none() && !until(round));
        let round = waited.unwrap_or_else(PoisonError::into_inner);
        match &round.gone {
            // What a thread contributed before it ended is still there.
            Some(reason) if !until(&round) => Err(Error(reason.clone())),
            _ => Ok(round),
        }
    }
}

impl Thread {
    /// Contributes bytes, and takes those of all.
    fn meet<T>(&mut self, own: &[u8], take: impl FnOnce(&[Vec<u8>]) -> T) -> Result<T, Error> {
        let (room, size) = (self.room.clone(), self.size);
        let mut round = room.wait(room.round(), |round| round.arrived < size)?;
        round.given[self.rank] = own.to_vec();
        round.arrived += 1;
        room.changed.notify_all();
        let mut round = room.wait(round, |round| round.arrived == size)?;
        let taken = take(&round.given);
        round.left += 1;
        if round.left == size {
            (round.arrived, round.left) = (0, 0);
            room.changed.notify_all();
        }
        Ok(taken)
    }

    fn end(&self, reason: String) {
        self.room.round().gone.get_or_insert(reason);
        self.room.changed.notify_all();
    }
}

impl Communicator for Thread {
    fn place(&self) -> Place {
        let (rank, size) = (self.rank, self.size);
        Place { rank, size, local_rank: rank, host: "this machine".into(), library: "threads of this process".into() }
    }

    fn barrier(&mut self) -> Result<(), Error> {
        self.meet(&[], |_| ())
    }

    fn broadcast(&mut self, root: usize, data: &mut [u8]) -> Result<(), Error> {
        let own = if self.rank == root { data.to_vec() } else { Vec::new() };
        self.meet(&own, |all| data.copy_from_slice(&all[root]))
    }

    fn all_gather(&mut self, own: &[u8], all: &mut [u8]) -> Result<(), Error> {
        let len = own.len();
        self.meet(own, |given| {
            given.iter().enumerate().for_each(|(rank, bytes)| all[rank * len..(rank + 1) * len].copy_from_slice(bytes));
        })
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), Error> {
        let own: Vec<u8> = bytemuck::cast_slice(values).to_vec();
        values.fill(0.0);
        self.meet(&own, |given| {
            for bytes in given {
                let of = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes));
                values.iter_mut().zip(of).for_each(|(sum, value)| *sum += value);
            }
        })
    }

    fn abort(&mut self, reason: &str) {
        self.end(reason.to_owned());
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // The others have what they need from this one, or it has failed.
        self.end(format!("process {} has ended", self.rank));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `work` on each of three threads and returns what it gives, by rank.
    fn three<T: Send>(work: impl Fn(&mut dyn Communicator) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let work = &work;
            let one = |mut own: Box<dyn Communicator>| scope.spawn(move || work(&mut *own));
            let all: Vec<_> = threads(3).into_iter().map(one).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn every_process_receives_what_each_gives() {
        let gathered = three(|own| {
            let rank = own.place().rank as u8;
            let (mut all, mut data, mut sum) = ([0; 6], [rank; 2], [f32::from(rank), 1.0]);
            for _ in 0..100 {
                own.all_gather(&[rank, rank + 10], &mut all).unwrap();
            }
            own.barrier().unwrap();
            own.broadcast(2, &mut data).unwrap();
            own.all_reduce(&mut sum).unwrap();
            own.barrier().unwrap();
            (all, data, sum)
        });
        assert_eq!(gathered, vec![([0, 10, 1, 11, 2, 12], [2; 2], [3.0, 3.0]); 3]);
    }

    #[test]
    fn one_that_ends_ends_all() {
        let answers = three(|own| match own.place().rank {
            1 => Ok(()),
            _ => own.all_gather(&[1], &mut [0; 3]),
        });
        let gone = Err(Error("process 1 has ended".into()));
        assert_eq!(answers, [gone.clone(), Ok(()), gone]);
    }
}
