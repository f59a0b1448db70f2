//! The scripts, as `src/` has them, with the preludes that their callers put before them.

/// A file of Lua.
#[derive(Clone, Copy, Debug)]
pub struct File {
    /// The path below `src/`.
    pub path: &'static str,
    /// The text.
    pub text: &'static str,
}

macro_rules! file {
    ($path:literal) => {
        File { path: $path, text: include_str!(concat!("../../src/", $path)) }
    };
}

const LEASE_RECORD: File = file!("protocol/lua/lease_record.lua");
pub(crate) const META: File = file!("store/lua/meta.lua");
const FENCE: File = file!("store/lua/fence.lua");
const LIMITS: File = file!("source/limits/lua/state.lua");
pub(crate) const SCORE: File = file!("agenda/lua/score.lua");
const GUARD: File = file!("store/lua/guard.lua");

macro_rules! scripts {
    ($($name:ident = [$($prelude:ident),*] $path:literal;)*) => {
        /// A script.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Script { $(#[doc = $path] $name),* }

        impl Script {
            /// All scripts.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns the files of a script, the preludes first.
            pub fn files(self) -> &'static [File] {
                match self {
                    $(Self::$name => const { &[$($prelude,)* file!($path)] },)*
                }
            }
        }
    };
}

scripts! {
    Lease = [LEASE_RECORD, META] "store/lua/lease.lua";
    Release = [LEASE_RECORD, META] "store/lua/release.lua";
    Commit = [LEASE_RECORD, META, FENCE] "store/lua/commit.lua";
    Extend = [LEASE_RECORD, META, FENCE] "store/lua/extend.lua";
    Gone = [LEASE_RECORD, META, FENCE] "store/lua/gone.lua";
    ExtendStale = [LEASE_RECORD, META] "store/lua/extend_stale.lua";
    Invalidate = [LEASE_RECORD, META] "store/lua/invalidate.lua";
    GuardRemoval = [GUARD] "store/lua/guard_removal.lua";
    GuardRecovery = [GUARD] "store/lua/guard_recovery.lua";
    GuardDecision = [GUARD] "store/lua/guard_decision.lua";
    Tag = [] "store/lua/tag.lua";
    Untag = [] "store/lua/untag.lua";
    Stamp = [] "store/lua/stamp.lua";
    StampUnknown = [] "store/lua/stamp_unknown.lua";
    ReadUnknown = [] "store/lua/read_unknown.lua";
    Mark = [] "store/lua/mark.lua";
    Sweep = [] "store/lua/sweep.lua";
    TakePermit = [LIMITS] "source/limits/lua/take_permit.lua";
    ReturnPermit = [LIMITS] "source/limits/lua/return_permit.lua";
    Inspect = [LIMITS] "source/limits/lua/inspect.lua";
    Due = [SCORE] "agenda/lua/due.lua";
    Claim = [SCORE] "agenda/lua/claim.lua";
    Take = [SCORE] "agenda/lua/take.lua";
    Cancel = [SCORE] "agenda/lua/cancel.lua";
    Finish = [SCORE] "agenda/lua/finish.lua";
    BeginLoad = [LEASE_RECORD] "cache/lua/begin_load.lua";
    CommitLoad = [LEASE_RECORD] "cache/lua/commit_load.lua";
    DropLease = [LEASE_RECORD] "cache/lua/drop_lease.lua";
    Set = [LEASE_RECORD] "cache/lua/set.lua";
    Delete = [LEASE_RECORD] "cache/lua/delete.lua";
    Increment = [LEASE_RECORD] "cache/lua/increment.lua";
    Track = [] "cache/lua/track.lua";
    AdmitWithin = [] "cache/lua/admit_within.lua";
    RollReads = [] "ops/lua/roll_reads.lua";
    ClaimAudits = [] "ops/lua/claim_audits.lua";
    WithdrawAudits = [] "ops/lua/withdraw_audits.lua";
    AddFigures = [] "telemetry/lua/add_figures.lua";
    Lock = [] "cache/lua/lock.lua";
    RenewLock = [] "cache/lua/renew_lock.lua";
    Tick = [] "trigger/lua/tick.lua";
    EndTick = [] "trigger/lua/end_tick.lua";
    HoldTick = [] "trigger/lua/hold_tick.lua";
    RetryTick = [] "trigger/lua/retry_tick.lua";
    Ensure = [] "trigger/lua/ensure.lua";
}

impl Script {
    /// Returns the path of the script's own file below `src/`.
    pub fn path(self) -> &'static str {
        self.files().last().map_or("", |file| file.path)
    }

    /// Returns the script's text as Redis gets it, with a mutation if there is one, and the file and line of each line.
    pub fn source(self, mutant: Option<&Mutant>) -> (String, Vec<(&'static str, usize)>) {
        let (mut text, mut lines) = (String::new(), Vec::new());
        for file in self.files() {
            let mutated = mutant.filter(|mutant| mutant.file == file.path).map(|mutant| mutant.apply(file.text));
            for (n, line) in mutated.as_deref().unwrap_or(file.text).lines().enumerate() {
                // Redis takes the flags away.
                text.push_str(if line.starts_with("#!") { "--" } else { line });
                text.push('\n');
                lines.push((file.path, n + 1));
            }
        }
        (text, lines)
    }

    /// Returns the text as its callers send it: flags, preludes, script (`src/redis/script.rs`).
    pub fn for_redis(self) -> String {
        let Some((own, preludes)) = self.files().split_last() else { return String::new() };
        let preludes: String = preludes.iter().map(|file| file.text).collect();
        match own.text.split_once('\n') {
            Some((flags, body)) if flags.starts_with("#!") => format!("{flags}\n{preludes}{body}"),
            _ => preludes + own.text,
        }
    }
}

/// A change of one place in one file.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// The path below `src/`.
    pub file: &'static str,
    /// The text that is replaced; the file has it once.
    pub from: &'static str,
    /// The text that replaces it.
    pub to: &'static str,
    /// The name of the scenario that is searched first.
    pub first: Option<&'static str>,
}

impl Mutant {
    /// Replaces one text of a file.
    #[must_use]
    pub const fn new(file: &'static str, from: &'static str, to: &'static str) -> Self {
        Self { file, from, to, first: None }
    }

    /// Has this scenario searched first.
    #[must_use]
    pub const fn first_in(self, scenario: &'static str) -> Self {
        Self { first: Some(scenario), ..self }
    }

    fn apply(&self, text: &str) -> String {
        text.replacen(self.from, self.to, 1)
    }

    /// Returns how often the text to replace is in the file; `None` where no script has such a file.
    pub fn places(&self) -> Option<usize> {
        let files = Script::ALL.iter().flat_map(|script| script.files());
        files.into_iter().find(|file| file.path == self.file).map(|file| file.text.matches(self.from).count())
    }
}
