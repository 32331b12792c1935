//! What a process that holds tokens in memory gives up before it takes the first one.

/// No core dump and no debugger of the same user shows the memory; nothing that is started from
/// here gains privileges; no capability is left, to root either; files that are made are for their
/// owner alone. Best effort: a system that knows none of this runs the shim all the same.
///
/// Capabilities belong to threads: this comes before the first other thread, and after a socket was
/// bound that only a capability can bind.
#[cfg(target_os = "linux")]
pub(super) fn harden() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, setrlimit, umask};
    use rustix::thread::{CapabilitySet, CapabilitySets};
    // Last: what is given up is needed to make the bounding set smaller.
    let nothing = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    let results = [
        ("core dumps", setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })),
        ("dumping", rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)),
        ("new privileges", rustix::thread::set_no_new_privs(true)),
        ("capabilities of children", bound_nothing()),
        ("capabilities", rustix::thread::set_capabilities(None, nothing)),
    ];
    for (what, result) in results {
        if let Err(error) = result {
            tracing::warn!("{what} could not be ruled out: {error}");
        }
    }
    umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

/// Empties the set of capabilities that a program started from here could have. Who may not change
/// it has none to lose: then nothing is to be done.
#[cfg(target_os = "linux")]
fn bound_nothing() -> rustix::io::Result<()> {
    use rustix::thread::{
        CapabilitySet, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
        remove_capability_from_bounding_set,
    };
    clear_ambient_capability_set()?;
    if !capabilities(None)?.effective.contains(CapabilitySet::SETPCAP) {
        return Ok(());
    }
    // The kernel knows more of them than we have names for, or fewer.
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match capability_is_in_bounding_set(capability) {
            Ok(true) => remove_capability_from_bounding_set(capability)?,
            Ok(false) => {}
            Err(_) => break,
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn harden() {}
