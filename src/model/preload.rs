//! Models loaded once, by the postmaster: every backend inherits them copy-on-write.
//!
//! A process that forks must have one thread, or its children inherit locks that no thread will release
//! (onnxruntime#31961; versions 1.30 and 1.32 of the library start a thread, and the server then never starts).
//! Preloading is therefore rehearsed in a forked child first. If the child finds anything unsafe, nothing is preloaded:
//! each connection loads its models, and the log gives the reason.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::guc;
use crate::model::loaded;

/// The time limit for the rehearsal, after which its process is killed. A rehearsal takes as long as loading: a few
/// seconds for the largest models.
const PATIENCE: Duration = Duration::from_secs(120);

/// Called when the library is loaded. It does nothing except in a postmaster with models to preload.
pub fn run() {
    let specs = guc::preload();
    // SAFETY: a flag that only this thread writes.
    if specs.is_empty() || !unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        return;
    }
    let start = Instant::now();
    let outcome = rehearse(&specs).and_then(|()| loaded::preload(&specs));
    match outcome {
        Ok(remarks) => {
            remarks.iter().for_each(|remark| pgrx::log!("clip_search: {remark}"));
            pgrx::log!("clip_search: preloaded {} in {} ms", specs.join(", "), start.elapsed().as_millis());
        }
        Err(reason) => {
            pgrx::log!("clip_search: nothing is preloaded, and connections load their models themselves: {reason}")
        }
    }
}

/// Loads the models in a child process; a child of that process uses them and exits as a backend does.
fn rehearse(specs: &[String]) -> Result<(), String> {
    in_child(|| {
        let mask = signal_mask();
        loaded::preload(specs)?;
        if signal_mask() != mask {
            return Err("loading them changes the signal mask".to_owned());
        }
        match threads() {
            Some(1) => {}
            Some(count) => {
                return Err(format!(
                    "the process has {count} threads afterwards, and a process that forks must have one"
                ));
            }
            None => return Err("the number of threads can't be told on this system".to_owned()),
        }
        in_child(|| loaded::try_preloaded(specs))
    })
}

/// Runs `f` in a forked child and returns its result.
fn in_child(f: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for the two descriptors.
    if unsafe { libc::pipe(ends.as_mut_ptr()) } != 0 {
        return Err(format!("no pipe: {}", std::io::Error::last_os_error()));
    }
    // SAFETY: this process has one thread, so the child may run ordinary code.
    match unsafe { libc::fork() } {
        -1 => Err(format!("no child process: {}", std::io::Error::last_os_error())),
        0 => {
            // SAFETY: PostgreSQL's own children do the same first: this process must not run the parent's exit
            // callbacks, which remove its lock files. The descriptors are this process's copies.
            let mut pipe = unsafe {
                pg_sys::on_exit_reset();
                libc::close(ends[0]);
                File::from_raw_fd(ends[1])
            };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
            let said = match result {
                Ok(Ok(())) => "ok".to_owned(),
                Ok(Err(reason)) => reason,
                Err(_) => "loading them failed by a panic".to_owned(),
            };
            let _ = pipe.write_all(said.as_bytes());
            drop(pipe);
            // This runs the library's exit handlers, where a hang would occur. SAFETY: ends the process.
            unsafe { libc::exit(0) }
        }
        child => {
            // SAFETY: the write end is closed so that reading ends with the child; the read end is owned from here on.
            let mut pipe = unsafe {
                libc::close(ends[1]);
                File::from_raw_fd(ends[0])
            };
            let exited = wait(child);
            let mut said = String::new();
            if exited {
                let _ = pipe.read_to_string(&mut said);
            }
            match (exited, said.as_str()) {
                (false, _) => Err(format!("a child that has them doesn't exit within {} s", PATIENCE.as_secs())),
                (true, "ok") => Ok(()),
                (true, "") => Err("a child that loads them dies".to_owned()),
                (true, reason) => Err(reason.to_owned()),
            }
        }
    }
}

/// Waits for a child, and kills it if that takes too long. Returns whether it ended normally.
fn wait(child: libc::pid_t) -> bool {
    let start = Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: the child belongs to this process, and the status pointer is valid.
        let found = unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) };
        if found == child || found == -1 {
            return found == child && libc::WIFEXITED(status);
        }
        if start.elapsed() > PATIENCE {
            // SAFETY: as above; a killed child is reaped immediately.
            unsafe {
                libc::kill(child, libc::SIGKILL);
                libc::waitpid(child, &mut status, 0);
            }
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The numbers of the blocked signals.
fn signal_mask() -> Vec<bool> {
    // SAFETY: with a null set the call only fills `mask`, which is plain data.
    unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut mask);
        (1..=64).map(|signal| libc::sigismember(&mask, signal) == 1).collect()
    }
}

/// The number of threads of this process, if the system reports it.
fn threads() -> Option<usize> {
    std::fs::read_dir("/proc/self/task").ok().map(Iterator::count)
}
