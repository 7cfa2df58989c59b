//! `seeds BAD OUT`: writes the seeds of every reader to `OUT/<reader>/`. `BAD` is `tests/bad`.

use std::fs;
use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let [bad, out] = [1, 2].map(|n| PathBuf::from(std::env::args_os().nth(n).unwrap_or_default()));
    for reader in sparta_readers::READERS {
        let dir = out.join(reader.name);
        fs::create_dir_all(&dir)?;
        for (i, bytes) in reader.seeds(&bad)?.iter().enumerate() {
            fs::write(dir.join(format!("seed-{i:03}")), bytes)?;
        }
    }
    Ok(())
}
