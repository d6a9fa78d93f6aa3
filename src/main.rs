//! The binary: picks the role.

/// Many small things live from one thread to another here: from a connection
/// to the log, from the log to the readers. The C library's allocator is slow
/// at that (`docs/measurements.md`).
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    berth::cli::main()
}
