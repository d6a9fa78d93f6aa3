//! The binary: picks the role.

fn main() -> std::process::ExitCode {
    berth::cli::main()
}
