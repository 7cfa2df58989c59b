//! What launchers tell a process in its environment.

use sparta_plugin::communicator::Launch;

/// A launcher: how people call it, and the variables with a process's rank, the number of processes, and their number on this
/// machine.
struct Launcher {
    name: &'static str,
    rank: &'static str,
    size: &'static str,
    local_size: &'static str,
}

const LAUNCHERS: [Launcher; 3] = [
    Launcher {
        name: "mpirun of Open MPI",
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    // Of MPICH and what comes from it; of srun with --mpi=pmi2, too.
    Launcher { name: "mpiexec", rank: "PMI_RANK", size: "PMI_SIZE", local_size: "MPI_LOCALNRANKS" },
    // A batch script has the rank, but is no step.
    Launcher {
        name: "srun",
        rank: "SLURM_PROCID",
        size: "SLURM_STEP_NUM_TASKS",
        local_size: "SLURM_STEP_TASKS_PER_NODE",
    },
];

/// The launcher of this process, where it has started others, too.
pub fn launch(variable: &dyn Fn(&str) -> Option<String>) -> Option<Launch> {
    let number = |name: &str| variable(name)?.parse::<usize>().ok();
    let launch = LAUNCHERS.iter().find_map(|launcher| {
        let (rank, size) = (number(launcher.rank)?, number(launcher.size)?);
        Some(Launch { launcher: launcher.name.into(), rank, size })
    });
    launch.filter(|launch| launch.size > 1 && launch.rank < launch.size)
}

/// Processes of the launch on this machine, as far as the launcher tells; 1 where there is none.
pub fn local_size() -> usize {
    local_size_in(&|name| std::env::var(name).ok())
}

fn local_size_in(variable: &dyn Fn(&str) -> Option<String>) -> usize {
    if launch(variable).is_none() {
        return 1;
    }
    // SLURM writes `4(x2),3`, from the first machine to the last.
    let number = |text: String| text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
    LAUNCHERS.iter().find_map(|launcher| number(variable(launcher.local_size)?)).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> (Option<(usize, usize)>, usize) {
        let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        (launch(&variable).map(|launch| (launch.rank, launch.size)), local_size_in(&variable))
    }

    #[test]
    fn launchers_are_known_by_their_variables() {
        assert_eq!(with(&[("PMI_RANK", "1"), ("PMI_SIZE", "4"), ("MPI_LOCALNRANKS", "2")]), (Some((1, 4)), 2));
        assert_eq!(with(&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")]), (Some((0, 2)), 1));
        let step = [("SLURM_PROCID", "3"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_STEP_TASKS_PER_NODE", "4(x2)")];
        assert_eq!(with(&step), (Some((3, 8)), 4));
    }

    #[test]
    fn a_process_alone_has_no_launch() {
        assert_eq!(with(&[]), (None, 1));
        assert_eq!(with(&[("PMI_RANK", "0"), ("PMI_SIZE", "1"), ("MPI_LOCALNRANKS", "1")]), (None, 1));
        let batch_script = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_TASKS_PER_NODE", "8")];
        assert_eq!(with(&batch_script), (None, 1));
        assert_eq!(with(&[("PMI_RANK", "x"), ("PMI_SIZE", "2")]), (None, 1));
    }
}
