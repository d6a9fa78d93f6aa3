//! What a command prints.

use std::fmt;
use std::io::{self, ErrorKind, Write};

/// Prints a line of a command's output, as `println!` does.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::output::line(format_args!($($text)*))
    };
}

/// Prints a line. Whoever reads may have enough (`| head`): that is no error.
/// What cannot be printed otherwise, a secret that is shown once perhaps, ends
/// the command as a failure.
pub(super) fn line(text: fmt::Arguments<'_>) {
    if let Err(error) = write(&mut io::stdout().lock(), text) {
        tracing::error!(%error, "cannot print to standard output");
        std::process::exit(1);
    }
}

fn write(out: &mut impl Write, text: fmt::Arguments<'_>) -> io::Result<()> {
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails(ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_enough_is_no_error_and_a_full_disk_is() {
        assert!(write(&mut Fails(ErrorKind::BrokenPipe), format_args!("a")).is_ok());
        assert!(write(&mut Fails(ErrorKind::StorageFull), format_args!("a")).is_err());
        let mut out = Vec::new();
        write(&mut out, format_args!("{} {}", 1, 2)).expect("memory takes it");
        assert_eq!(out, b"1 2\n");
    }
}
