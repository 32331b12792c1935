//! What a process that holds tokens in memory gives up before it takes the first one.

/// No core dump and no debugger of the same user shows the memory; nothing that is started from
/// here gains privileges; files that are made are for their owner alone. Best effort: a system
/// that knows none of this runs the shim all the same.
#[cfg(target_os = "linux")]
pub(super) fn harden() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, setrlimit, umask};
    let results = [
        ("core dumps", setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })),
        ("dumping", rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)),
        ("new privileges", rustix::thread::set_no_new_privs(true)),
    ];
    for (what, result) in results {
        if let Err(error) = result {
            tracing::warn!("{what} could not be ruled out: {error}");
        }
    }
    umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

#[cfg(not(target_os = "linux"))]
pub(super) fn harden() {}
