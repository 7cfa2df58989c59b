//! What launchers tell a process in its environment.

use sparta_plugin::communicator::Launch;

/// A launcher: its usual name, whether it starts processes of Open MPI, and the variables with a process's rank, the
/// number of processes, and their number on this machine.
struct Launcher {
    name: &'static str,
    open_mpi: bool,
    rank: &'static str,
    size: &'static str,
    local_size: &'static str,
}

const LAUNCHERS: [Launcher; 4] = [
    Launcher {
        name: "mpirun of Open MPI",
        open_mpi: true,
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    // MPICH and its derivatives, and srun with --mpi=pmi2.
    Launcher { name: "mpiexec", open_mpi: false, rank: "PMI_RANK", size: "PMI_SIZE", local_size: "MPI_LOCALNRANKS" },
    Launcher {
        name: "srun --mpi=pmix",
        open_mpi: true,
        rank: "PMIX_RANK",
        size: "SLURM_STEP_NUM_TASKS",
        local_size: "SLURM_STEP_TASKS_PER_NODE",
    },
    // A batch script has the rank, but is not a step.
    Launcher {
        name: "srun",
        open_mpi: false,
        rank: "SLURM_PROCID",
        size: "SLURM_STEP_NUM_TASKS",
        local_size: "SLURM_STEP_TASKS_PER_NODE",
    },
];

/// Whether the processes of a launch should use Open MPI's library rather than MPICH's.
pub fn uses_open_mpi(launch: &Launch) -> bool {
    LAUNCHERS.iter().any(|launcher| launcher.open_mpi && launcher.name == launch.launcher)
}

/// The launch that this process belongs to, if it has other processes, too.
pub fn launch(variable: &dyn Fn(&str) -> Option<String>) -> Option<Launch> {
    let number = |name: &str| variable(name)?.parse::<usize>().ok();
    let launch = LAUNCHERS.iter().find_map(|launcher| {
        let (rank, size) = (number(launcher.rank)?, number(launcher.size)?);
        Some(Launch { launcher: launcher.name.into(), rank, size })
    });
    launch.filter(|launch| launch.size > 1 && launch.rank < launch.size)
}

/// The number of this launch's processes on this machine; 1 without a launcher, or if the launcher does not say.
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

    fn in_environment(variables: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
    }

    fn with(variables: &[(&str, &str)]) -> (Option<(usize, usize)>, usize) {
        let variable = in_environment(variables);
        (launch(&variable).map(|launch| (launch.rank, launch.size)), local_size_in(&variable))
    }

    #[test]
    fn launchers_are_known_by_their_variables() {
        assert_eq!(with(&[("PMI_RANK", "1"), ("PMI_SIZE", "4"), ("MPI_LOCALNRANKS", "2")]), (Some((1, 4)), 2));
        assert_eq!(with(&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")]), (Some((0, 2)), 1));
        let step = [("SLURM_PROCID", "3"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_STEP_TASKS_PER_NODE", "4(x2)")];
        assert_eq!(with(&step), (Some((3, 8)), 4));
    }

    /// What `srun` of SLURM 22.05 sets for the second of two tasks.
    #[test]
    fn the_library_is_the_one_that_srun_works_with() {
        let step = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_STEP_TASKS_PER_NODE", "2")];
        for (more, open_mpi) in [
            (&[("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("SLURM_MPI_TYPE", "pmi2")][..], false),
            (&[("PMIX_RANK", "1"), ("PMIX_NAMESPACE", "slurm.pmix.7.0")], true),
            (&[], false),
        ] {
            let variables = [&step[..], more].concat();
            assert_eq!(with(&variables), (Some((1, 2)), 2));
            assert_eq!(launch(&in_environment(&variables)).map(|launch| uses_open_mpi(&launch)), Some(open_mpi));
        }
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
