//! The machine of a simulated process: its clocks and its randomness, which depend on the seed only.
//!
//! The program defines `clock_gettime`, `getrandom` and `gethostname` itself, and `std` and all crates call these
//! instead of the C library's. So `Instant::now`, `SystemTime::now`, the keys of hash maps and all random numbers are
//! simulated, without a change in the code that uses them. One thread of the process is simulated; others wait for it.
#![expect(unsafe_code, reason = "some functions of the C library are replaced")]

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The monotonic clock when the simulation begins (ns).
const BEGIN: i64 = 1_000_000 * SECOND;
const SECOND: i64 = 1_000_000_000;
/// The wall clock when the simulation begins (s): 2026-01-01.
pub(crate) const EPOCH: i64 = 1_767_225_600;

/// The name of the machine.
const HOST: &CStr = c"simulated";

/// Clocks and randomness are the operating system's.
const REAL: u8 = 0;
/// Each look at a clock takes a millisecond: what calibrates clocks ends soon.
const HASTY: u8 = 1;
/// Clocks stand still.
const FROZEN: u8 = 2;
/// Clocks are those of the runtime.
const PAUSED: u8 = 3;

static MODE: AtomicU8 = AtomicU8::new(REAL);
static RANDOM: AtomicU64 = AtomicU64::new(0);
static LAST: AtomicI64 = AtomicI64::new(0);
static BEGAN: OnceLock<Instant> = OnceLock::new();

thread_local! {
    static LOOKING: Cell<bool> = const { Cell::new(false) };
}

/// Seeds the randomness of this process. Nothing random may have happened before.
pub(crate) fn seed(seed: u64) {
    RANDOM.store(seed, Ordering::Relaxed);
    MODE.store(HASTY, Ordering::Relaxed);
}

/// Stops the clocks, until the runtime begins.
pub(crate) fn freeze() {
    MODE.store(FROZEN, Ordering::Relaxed);
}

/// Takes the clocks from the present runtime, whose clock is paused.
pub(crate) fn begin() {
    let _ = BEGAN.set(Instant::now());
    MODE.store(PAUSED, Ordering::Relaxed);
}

/// Returns the time since the simulation began.
pub(crate) fn elapsed() -> Duration {
    BEGAN.get().map_or(Duration::ZERO, Instant::elapsed)
}

/// Returns the time of the monotonic clock (ns).
fn monotonic() -> i64 {
    match MODE.load(Ordering::Relaxed) {
        HASTY => LAST.fetch_add(SECOND / 1_000, Ordering::Relaxed),
        // The runtime looks at its clock, and its clock at this one, where there is no runtime.
        PAUSED if !LOOKING.replace(true) => {
            let now = BEGIN + i64::try_from(elapsed().as_nanos()).unwrap_or(i64::MAX - BEGIN);
            LAST.store(now, Ordering::Relaxed);
            LOOKING.set(false);
            now
        }
        PAUSED => LAST.load(Ordering::Relaxed),
        _ => BEGIN,
    }
}

/// Returns the next number of a sequence that is determined by its state.
pub(crate) fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Stands in for the C library's function: fills a buffer with random bytes.
///
/// # Safety
/// `buffer` must have room for `length` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    if MODE.load(Ordering::Relaxed) == REAL {
        // SAFETY: the arguments are the caller's, and the call is the one that the C library makes.
        let result = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
        return isize::try_from(result).unwrap_or(-1);
    }
    let mut state = RANDOM.load(Ordering::Relaxed);
    for at in 0..length {
        let byte = next_random(&mut state).to_le_bytes()[0];
        // SAFETY: `at` is below `length`, for which the caller has made room.
        unsafe { buffer.cast::<u8>().add(at).write(byte) };
    }
    RANDOM.store(state, Ordering::Relaxed);
    isize::try_from(length).unwrap_or(isize::MAX)
}

/// Stands in for the C library's function: tells the time of a clock.
///
/// # Safety
/// `time` must point to room for a `timespec`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    if MODE.load(Ordering::Relaxed) == REAL {
        // SAFETY: the arguments are the caller's, and the call is the one that the C library makes.
        let result = unsafe { libc::syscall(libc::SYS_clock_gettime, c_long::from(clock), time) };
        return c_int::try_from(result).unwrap_or(-1);
    }
    let mut now = monotonic();
    if matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE) {
        now += EPOCH * SECOND - BEGIN;
    }
    let told = libc::timespec { tv_sec: now.div_euclid(SECOND), tv_nsec: now.rem_euclid(SECOND) };
    // SAFETY: the caller has made room for it.
    unsafe { time.write(told) };
    0
}

/// Stands in for the C library's function: tells the name of the machine.
///
/// # Safety
/// `name` must have room for `length` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn gethostname(name: *mut c_char, length: usize) -> c_int {
    for (at, byte) in HOST.to_bytes_with_nul().iter().take(length).enumerate() {
        // SAFETY: `at` is below `length`, for which the caller has made room.
        unsafe { name.cast::<u8>().add(at).write(*byte) };
    }
    0
}
