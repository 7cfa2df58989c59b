//! The functions and constants of MPI that are used, for each of its ABIs.

use libloading::Library;
use sparta_plugin::Error;
use std::ffi::{c_char, c_int, c_void};

/// A handle of the standard ABI and of Open MPI: a pointer that only MPI dereferences.
#[derive(Clone, Copy, PartialEq)]
#[repr(transparent)]
pub struct Pointer(pub *mut c_void);

// SAFETY: it is never dereferenced here.
unsafe impl Send for Pointer {}
// SAFETY: as above.
unsafe impl Sync for Pointer {}

/// The constants of an ABI. `H` is its handle type: a [`Pointer`], or an integer in MPICH.
#[derive(Clone, Copy)]
pub struct Names<H> {
    pub world: H,
    pub byte: H,
    pub float: H,
    pub sum: H,
    pub errors_return: H,
    /// Stands for a status that nobody reads.
    pub no_status: usize,
    /// MPI_THREAD_SERIALIZED: several threads call functions, one at a time.
    pub serialized: c_int,
}

impl Names<Pointer> {
    /// Those of the standard ABI of MPI 5.0: `mpi_abi.h`.
    pub fn standard() -> Self {
        let handle = |n: usize| Pointer(n as *mut c_void);
        Names {
            world: handle(0x101),
            byte: handle(0x247),
            float: handle(0x210),
            sum: handle(0x21),
            errors_return: handle(0x143),
            no_status: 0,
            serialized: SERIALIZED_OF_STANDARD,
        }
    }

    /// Those of Open MPI, whose handles are addresses of its variables. `None` if it is another library.
    pub fn open_mpi(library: &Library) -> Option<Self> {
        let handle = |name: &str| {
            // SAFETY: only the address of the variable is taken, of a library that stays open.
            unsafe { library.get::<*mut c_void>(name.as_bytes()).ok()?.try_as_raw_ptr() }.map(Pointer)
        };
        Some(Names {
            world: handle("ompi_mpi_comm_world")?,
            byte: handle("ompi_mpi_byte")?,
            float: handle("ompi_mpi_float")?,
            sum: handle("ompi_mpi_op_sum")?,
            errors_return: handle("ompi_mpi_errors_return")?,
            no_status: 0,
            serialized: 2,
        })
    }
}

/// `MPI_THREAD_SERIALIZED` of `mpi_abi.h`.
const SERIALIZED_OF_STANDARD: c_int = 2048;

impl Names<c_int> {
    /// Those of MPICH and its derivatives: `mpi.h`.
    pub fn mpich() -> Self {
        Names {
            world: 0x4400_0000,
            byte: 0x4c00_010d,
            float: 0x4c00_040a,
            sum: 0x5800_0003,
            errors_return: 0x5400_0001,
            no_status: 1,
            serialized: 2,
        }
    }
}

/// Declares the functions of MPI with their types, and looks them up.
macro_rules! functions {
    ($($field:ident $symbol:literal: fn($($arg:ty),*);)*) => {
        /// The functions of a library whose handles are `H`. Each returns 0 or an error code.
        pub struct Functions<H> {
            $(pub $field: unsafe extern "C" fn($($arg),*) -> c_int,)*
        }

        impl<H> Functions<H> {
            /// Errors: a missing function.
            ///
            /// # Safety
            /// The library is an MPI whose handles are `H`, and stays open.
            pub unsafe fn of(library: &Library) -> Result<Self, Error> {
                Ok(Functions {
                    $($field: {
                        // SAFETY: the caller vouches for the library, and the MPI standard for the function's type.
                        let found = unsafe { library.get($symbol.as_bytes()) };
                        *found.map_err(|_| Error(format!("it has no {}, so it is not MPI 3 or later", $symbol)))?
                    },)*
                })
            }
        }
    };
}

functions! {
    init_thread "MPI_Init_thread": fn(*mut c_int, *mut c_void, c_int, *mut c_int);
    comm_rank "MPI_Comm_rank": fn(H, *mut c_int);
    comm_size "MPI_Comm_size": fn(H, *mut c_int);
    comm_dup "MPI_Comm_dup": fn(H, *mut H);
    set_errhandler "MPI_Comm_set_errhandler": fn(H, H);
    ibarrier "MPI_Ibarrier": fn(H, *mut H);
    ibcast "MPI_Ibcast": fn(*mut c_void, c_int, H, c_int, H, *mut H);
    iallgather "MPI_Iallgather": fn(*const c_void, c_int, H, *mut c_void, c_int, H, H, *mut H);
    iallreduce "MPI_Iallreduce": fn(*const c_void, *mut c_void, c_int, H, H, H, *mut H);
    isend "MPI_Isend": fn(*const c_void, c_int, H, c_int, c_int, H, *mut H);
    irecv "MPI_Irecv": fn(*mut c_void, c_int, H, c_int, c_int, H, *mut H);
    test "MPI_Test": fn(*mut H, *mut c_int, *mut c_void);
    abort "MPI_Abort": fn(H, c_int);
    finalize "MPI_Finalize": fn();
    error_string "MPI_Error_string": fn(c_int, *mut c_char, *mut c_int);
    library_version "MPI_Get_library_version": fn(*mut c_char, *mut c_int);
}
