//! Runs the scripts in Lua 5.1 over the modelled Redis, as Redis does.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use mlua::{Function, HookTriggers, Lua, Table, VmState};

use crate::calls::Call;
use crate::commands::{Reply, execute};
use crate::db::{Bytes, Db};
use crate::lua::{Interpreter, Rights};
use crate::scripts::{META, Mutant, SCORE, Script};

/// The commands that Redis got, for a real server to get them as well.
#[derive(Clone, Debug)]
pub enum Asked {
    /// The clock was set to this (µs).
    Clock(i64),
    /// A script ran.
    Script(Call, Reply),
    /// A command.
    Command(Vec<String>, Reply),
}

type Lines = BTreeSet<(&'static str, usize)>;

/// Metadata, as `meta.lua` reads them, and what the note says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "src/store/meta.rs describes them")]
pub struct Meta {
    pub validated_at: i64,
    pub own_expiry: i64,
    pub invalidated: i64,
    pub stale_for: i64,
    pub hash: String,
    pub fetched_at: i64,
    pub trigger: u8,
    pub crashes: u32,
    pub version: Option<u32>,
    pub announced: Option<u32>,
    pub announced_at: i64,
    pub tagged: bool,
    pub failures: u32,
    pub held_until: i64,
    pub doubted: i64,
    pub rechecks: Option<(i64, u8)>,
}

/// A score, as `score.lua` reads it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "src/agenda/score.rs describes them")]
pub struct Due {
    pub at: i64,
    pub state: String,
    pub trigger: u8,
    pub priority: u8,
}

/// The scripts' own codecs, which a mutation does not change, and what they have read.
struct Codecs {
    meta: Function,
    score: Function,
    metas: RefCell<HashMap<String, Option<Meta>>>,
    dues: RefCell<HashMap<u64, Due>>,
}

impl Codecs {
    fn new(lua: &Lua) -> mlua::Result<Self> {
        let meta = format!(
            "{}\nreturn function(packed) local all = {{read_meta(packed)}} if not all[1] then return end \
             local trigger, crashes = read_attempt(all[6], all[9]) all[13], all[14] = trigger, crashes return all end",
            META.text
        );
        let score = format!("{}\nreturn function(score) return {{decode(score)}} end", SCORE.text);
        let (metas, dues) = Default::default();
        Ok(Self { meta: lua.load(meta).eval()?, score: lua.load(score).eval()?, metas, dues })
    }
}

/// The scripts, compiled.
pub struct Engine {
    codecs: Codecs,
    interpreter: Interpreter,
    functions: Vec<Function>,
    asked: RefCell<Option<Vec<Asked>>>,
    ran: Rc<RefCell<Lines>>,
}

impl Engine {
    /// Compiles the scripts, with a mutation if there is one.
    ///
    /// # Panics
    /// A script does not compile.
    pub fn new(mutant: Option<&Mutant>) -> Self {
        let interpreter = Interpreter::new();
        let compile = |script: &Script| {
            let (source, _) = script.source(mutant);
            let name = format!("={}", *script as usize);
            interpreter.compile(&source, &name).unwrap_or_else(|e| panic!("{}: {e}", script.path()))
        };
        let functions = Script::ALL.iter().map(compile).collect();
        let codecs = Codecs::new(&interpreter.lua).expect("the codecs");
        Self { codecs, interpreter, functions, asked: RefCell::default(), ran: Rc::default() }
    }

    /// Reads metadata.
    ///
    /// # Panics
    /// `meta.lua` fails.
    pub fn meta(&self, packed: &str) -> Option<Meta> {
        if let Some(known) = self.codecs.metas.borrow().get(packed) {
            return known.clone();
        }
        let all: Option<Vec<String>> = self.codecs.meta.call(packed).expect("meta.lua");
        let meta = all.map(|all| {
            let number = |n: usize| all[n].parse::<i64>().unwrap_or(0);
            let noted = |name: &str| {
                let rest = all[8].split_once(name).map_or("", |(_, rest)| rest);
                rest.split([',', '}']).next().and_then(|text| text.parse::<i64>().ok()).unwrap_or(0)
            };
            let rechecks = all[8].split_once(r#""k":["#).and_then(|(_, rest)| {
                let mut parts = rest.split_once(']')?.0.split(',');
                Some((parts.next()?.parse().ok()?, parts.next_back()?.parse().ok()?))
            });
            Meta {
                validated_at: number(0),
                own_expiry: number(1),
                invalidated: number(2),
                stale_for: number(3),
                hash: all[4].clone(),
                fetched_at: number(6),
                trigger: all[12].parse().unwrap_or(2),
                crashes: all[13].parse().unwrap_or(0),
                version: all[9].parse().ok(),
                announced: all[10].parse().ok(),
                announced_at: number(11),
                tagged: all[8].contains(r#""g":"#),
                failures: u32::try_from(noted(r#""n":"#)).unwrap_or(0),
                held_until: noted(r#""h":"#),
                doubted: noted(r#""u":"#),
                rechecks,
            }
        });
        self.codecs.metas.borrow_mut().insert(packed.to_owned(), meta.clone());
        meta
    }

    /// Reads a score.
    ///
    /// # Panics
    /// `score.lua` fails.
    pub fn due(&self, score: f64) -> Due {
        if let Some(known) = self.codecs.dues.borrow().get(&score.to_bits()) {
            return known.clone();
        }
        let (at, state, trigger, priority): (f64, String, f64, f64) = {
            let all: Table = self.codecs.score.call(score).expect("score.lua");
            let read = || -> mlua::Result<_> { Ok((all.get(1)?, all.get(2)?, all.get(3)?, all.get(4)?)) };
            read().expect("a decoded score")
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small numbers")]
        let due = Due { at: at as i64, state, trigger: trigger as u8, priority: priority as u8 };
        self.codecs.dues.borrow_mut().insert(score.to_bits(), due.clone());
        due
    }

    /// Runs a script.
    pub fn run(&self, db: &mut Db, call: &Call) -> Reply {
        let function = &self.functions[call.script as usize];
        let reply = self.interpreter.run(db, function, (&call.keys, &call.args), Rights::default());
        let reply = reply.unwrap_or_else(|failure| Reply::Error(failure.text));
        if let Some(asked) = &mut *self.asked.borrow_mut() {
            asked.push(Asked::Script(call.clone(), reply.clone()));
        }
        reply
    }

    /// Carries out a command of a caller.
    pub fn command(&self, db: &mut Db, words: &[&str]) -> Reply {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let reply = execute(db, &words.iter().map(|word| Bytes::from(word.as_str())).collect::<Vec<_>>());
        if let Some(asked) = &mut *self.asked.borrow_mut() {
            asked.push(Asked::Command(words, reply.clone()));
        }
        reply
    }

    /// Sets the clock (ms).
    pub fn set_clock(&self, db: &mut Db, now: i64) {
        self.set_clock_us(db, now * 1_000);
    }

    /// Sets the clock (µs).
    pub fn set_clock_us(&self, db: &mut Db, now_us: i64) {
        db.set_clock_us(now_us);
        if let Some(asked) = &mut *self.asked.borrow_mut() {
            asked.push(Asked::Clock(db.now_us));
        }
    }

    /// Keeps what is asked from now on.
    pub fn record(&self) {
        *self.asked.borrow_mut() = Some(Vec::new());
    }

    /// Returns what was asked since it was last taken.
    pub fn recorded(&self) -> Vec<Asked> {
        self.asked.borrow_mut().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Notes each line that runs from now on. It is slow.
    ///
    /// # Panics
    /// Lua refuses the hook.
    pub fn watch_lines(&self) {
        let lines: Vec<Vec<(&'static str, usize)>> = Script::ALL.iter().map(|script| script.source(None).1).collect();
        let ran = Rc::clone(&self.ran);
        let hook = move |_: &Lua, debug: &mlua::debug::Debug<'_>| {
            let source = debug.source();
            let script = source.source.as_deref().and_then(|name| name.strip_prefix('=')?.parse::<usize>().ok());
            let line = debug.current_line().and_then(|line| line.checked_sub(1));
            if let (Some(script), Some(line)) = (script, line)
                && let Some(at) = lines.get(script).and_then(|lines| lines.get(line))
            {
                ran.borrow_mut().insert(*at);
            }
            Ok(VmState::Continue)
        };
        self.interpreter.lua.set_hook(HookTriggers::EVERY_LINE, hook).expect("a hook");
    }

    /// Returns the lines of code that never ran while they were watched, and how many lines of code there are.
    ///
    /// # Panics
    /// Lua's bytecode is not of version 5.1.
    pub fn never_ran(&self) -> (BTreeMap<&'static str, Vec<usize>>, usize) {
        let mut all = Lines::new();
        for (script, function) in Script::ALL.iter().zip(&self.functions) {
            let (_, lines) = script.source(None);
            for line in crate::bytecode::lines(&function.dump(false)).expect("bytecode of Lua 5.1") {
                all.insert(lines[line - 1]);
            }
        }
        let mut never: BTreeMap<&'static str, Vec<usize>> = BTreeMap::new();
        for (file, line) in all.difference(&self.ran.borrow()) {
            never.entry(file).or_default().push(*line);
        }
        (never, all.len())
    }
}
