//! Whether all processes are about to do the same thing.

use super::{Team, json, parse};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Names and values of what must be the same in all processes.
pub type Agreement = BTreeMap<String, String>;

/// Differences that are listed.
const LISTED: usize = 5;

impl Team {
    /// Errors: a process that differs from the first one; names both.
    pub fn agree(&mut self, what: &str, own: &Agreement) -> Result<()> {
        let all = self.exchange(what, &json(own)?)?;
        let all = all.iter().map(|bytes| parse(bytes)).collect::<Result<Vec<Agreement>>>()?;
        let Some(rank) = all.iter().position(|other| *other != all[0]) else { return Ok(()) };
        let name = |rank: usize| match self.members().get(rank) {
            Some(member) => format!("process {rank} on {}", member.host),
            None => format!("process {rank}"),
        };
        Err(Error::Usage(format!(
            "the processes differ: {}; give all of them the same program, plugins, model, data and options",
            differences(&all[0], &all[rank], [&name(0), &name(rank)])
        )))
    }
}

fn differences(first: &Agreement, other: &Agreement, names: [&str; 2]) -> String {
    let keys: std::collections::BTreeSet<&String> = first.keys().chain(other.keys()).collect();
    let changed: Vec<&String> = keys.into_iter().filter(|key| first.get(*key) != other.get(*key)).collect();
    let value = |of: &Agreement, key: &String| of.get(key).cloned().unwrap_or_else(|| "nothing".into());
    let listed = changed.iter().take(LISTED).map(|key| {
        format!("{key} is {} for {} and {} for {}", value(first, key), names[0], value(other, key), names[1])
    });
    let mut text = listed.collect::<Vec<_>>().join("; ");
    if changed.len() > LISTED {
        text += &format!("; and {} more", changed.len() - LISTED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_both_sides() {
        let [a, b] = [["x 1", "y 2"], ["x 1", "z 3"]].map(|entries| {
            entries.map(|entry| entry.split_once(' ').unwrap()).map(|(k, v)| (k.to_owned(), v.to_owned())).into()
        });
        let text = differences(&a, &b, ["process 0", "process 2"]);
        assert_eq!(
            text,
            "y is 2 for process 0 and nothing for process 2; z is nothing for process 0 and 3 for process 2"
        );
    }
}
