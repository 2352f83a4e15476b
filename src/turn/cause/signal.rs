//! The names of signals.

/// The numbers of SIGBUS and SIGSYS, which differ between Linux and the BSDs (macOS).
const BUS: i32 = if cfg!(target_os = "linux") { 7 } else { 10 };
const SYS: i32 = if cfg!(target_os = "linux") { 31 } else { 12 };

/// The name of a signal that ends programs; `None` for the others.
pub(super) fn name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        BUS => "SIGBUS",
        8 => "SIGFPE",
        KILL => "SIGKILL",
        11 => "SIGSEGV",
        SYS => "SIGSYS",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        _ => return None,
    })
}

/// SIGKILL, which no process can catch. The kernel sends it to free memory.
pub(super) const KILL: i32 = 9;
