//! Lua 5.1 as Redis offers it to scripts: `redis`, `cjson`, and globals that no script may add to.

mod cjson;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use mlua::{Function, Lua, LuaOptions, MultiValue, StdLib, Table, Value as LuaValue};

use crate::commands::{DENIED_WHEN_FULL, FULL, NOT_IN_SCRIPTS, Reply, Spec, WRITES, double, find};
use crate::db::{Bytes, Db};

/// A script's error, and the line where it happened.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) text: String,
    /// Where it happened, such as `@user_script:3`; `None` for an error that the script returned.
    pub(crate) place: Option<String>,
}

/// The rights of a script.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rights {
    /// It may not write.
    pub(crate) reads_only: bool,
    /// It may write while the memory is used up.
    pub(crate) allows_oom: bool,
}

/// An interpreter, and the keys on which its script works.
pub(crate) struct Interpreter {
    pub(crate) lua: Lua,
    db: Rc<RefCell<Db>>,
    rights: Rc<Cell<Rights>>,
    guarded: Function,
}

impl Interpreter {
    /// Starts an interpreter.
    ///
    /// # Panics
    /// Lua has no memory.
    pub(crate) fn new() -> Self {
        let libraries = StdLib::TABLE | StdLib::STRING | StdLib::MATH;
        let lua = Lua::new_with(libraries, LuaOptions::new().catch_rust_panics(false)).expect("Lua");
        let (db, rights) = (Rc::new(RefCell::new(Db::default())), Rc::default());
        let guarded = install(&lua, &db, &rights).expect("the functions of Redis");
        Self { lua, db, rights, guarded }
    }

    /// Compiles a script. `#!` lines are the caller's matter.
    pub(crate) fn compile(&self, source: &str, name: &str) -> Result<Function, String> {
        self.lua.load(source).set_name(name).into_function().map_err(|e| first_line(&e))
    }

    /// Runs a script on these keys.
    pub(crate) fn run<T: AsRef<[u8]>>(
        &self,
        db: &mut Db,
        script: &Function,
        (keys, args): (&[T], &[T]),
        rights: Rights,
    ) -> Result<Reply, Failure> {
        self.rights.set(rights);
        std::mem::swap(&mut *self.db.borrow_mut(), db);
        let reply = self.invoke(script, keys, args);
        std::mem::swap(&mut *self.db.borrow_mut(), db);
        reply
    }

    fn invoke<T: AsRef<[u8]>>(&self, script: &Function, keys: &[T], args: &[T]) -> Result<Reply, Failure> {
        let failure = |e: mlua::Error| Failure { text: format!("ERR {}", first_line(&e)), place: None };
        let list = |words: &[T]| -> mlua::Result<Table> {
            let table = self.lua.create_table_with_capacity(words.len(), 0)?;
            for word in words {
                table.raw_push(self.lua.create_string(word)?)?;
            }
            Ok(table)
        };
        let globals = self.lua.globals();
        globals.raw_set("KEYS", list(keys).map_err(failure)?).map_err(failure)?;
        globals.raw_set("ARGV", list(args).map_err(failure)?).map_err(failure)?;
        let (is_well, value): (bool, LuaValue) = self.guarded.call(script).map_err(failure)?;
        if is_well {
            return Ok(to_reply(&value));
        }
        let LuaValue::Table(error) = value else {
            return Err(Failure { text: "ERR unknown error".into(), place: None });
        };
        let text = error.raw_get::<Option<mlua::LuaString>>("err").ok().flatten();
        let text = text.map(|text| text.to_string_lossy()).unwrap_or_default();
        Err(Failure { text, place: error.raw_get::<Option<String>>("place").ok().flatten() })
    }
}

fn first_line(error: &mlua::Error) -> String {
    let text = match error {
        mlua::Error::SyntaxError { message, .. } => message.clone(),
        mlua::Error::CallbackError { cause, .. } => cause.to_string(),
        other => other.to_string(),
    };
    let text = text.strip_prefix("runtime error: ").unwrap_or(&text);
    text.lines().next().unwrap_or_default().to_owned()
}

/// Adds what Redis has, and returns the function that runs a script and catches its error.
fn install(lua: &Lua, db: &Rc<RefCell<Db>>, rights: &Rc<Cell<Rights>>) -> mlua::Result<Function> {
    let redis = lua.create_table()?;
    for (name, raises) in [("call", true), ("pcall", false)] {
        let (db, rights) = (Rc::clone(db), Rc::clone(rights));
        let run = move |lua: &Lua, args: MultiValue| match command(&mut db.borrow_mut(), &rights, &args)? {
            Reply::Error(text) if raises => Err(mlua::Error::external(Refusal(text))),
            reply => to_lua(lua, &reply),
        };
        redis.set(name, lua.create_function(run)?)?;
    }
    redis.set(
        "error_reply",
        lua.create_function(|lua, text: mlua::LuaString| error_table(lua, &text.to_string_lossy()))?,
    )?;
    redis.set(
        "status_reply",
        lua.create_function(|lua, text: mlua::LuaString| {
            let table = lua.create_table()?;
            table.raw_set("ok", text)?;
            Ok(table)
        })?,
    )?;
    redis.set("sha1hex", lua.create_function(|_, text: mlua::LuaString| Ok(sha1(&text.as_bytes())))?)?;
    redis.set("replicate_commands", lua.create_function(|_, ()| Ok(true))?)?;
    redis.set("log", lua.create_function(|_, _: MultiValue| Ok(()))?)?;
    for (name, level) in [("LOG_DEBUG", 0), ("LOG_VERBOSE", 1), ("LOG_NOTICE", 2), ("LOG_WARNING", 3)] {
        redis.set(name, level)?;
    }
    let globals = lua.globals();
    globals.set("redis", redis)?;
    globals.set("cjson", cjson::table(lua)?)?;
    protect(lua)?;
    let handler = lua.create_function(place)?;
    let guard: Function = lua
        .load("local handler, xpcall = ... return function(script) return xpcall(script, handler) end")
        .into_function()?;
    guard.call((handler, globals.get::<Function>("xpcall")?))
}

/// Makes globals that are not there errors, for reading and for writing.
fn protect(lua: &Lua) -> mlua::Result<()> {
    let meta = lua.create_table()?;
    let unknown = |_: &Lua, (_, name): (LuaValue, String)| -> mlua::Result<()> {
        Err(mlua::Error::RuntimeError(format!("Script attempted to access nonexistent global variable '{name}'")))
    };
    let readonly = |_: &Lua, _: MultiValue| -> mlua::Result<()> {
        Err(mlua::Error::RuntimeError("Attempt to modify a readonly table".into()))
    };
    meta.set("__index", lua.create_function(unknown)?)?;
    meta.set("__newindex", lua.create_function(readonly)?)?;
    lua.globals().set_metatable(Some(meta))
}

/// An error of a command.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Refusal {}

/// Returns the text of a command's error.
fn refusal(error: &mlua::Error) -> Option<String> {
    match error {
        mlua::Error::CallbackError { cause, .. } => refusal(cause),
        other => other.downcast_ref::<Refusal>().map(|refusal| refusal.0.clone()),
    }
}

/// Turns an error into a table with its text and place, as Redis's handler does.
fn place(lua: &Lua, error: LuaValue) -> mlua::Result<Table> {
    let at = (1..4).find_map(|level| {
        lua.inspect_stack(level, |debug| {
            let source = debug.source();
            let is_script = source.what != "C" && source.source.as_deref() == Some("@user_script");
            is_script.then(|| debug.current_line().map(|line| (format!("@user_script:{line}"), line)))
        })
        .flatten()
        .flatten()
    });
    let text = match &error {
        LuaValue::Table(_) => String::new(),
        LuaValue::Error(e) => match (refusal(e), &at) {
            (Some(refusal), _) => refusal,
            // Functions in Rust do not say where they were called.
            (None, Some((_, line))) => format!("ERR user_script:{line}: {}", first_line(e)),
            (None, None) => format!("ERR {}", first_line(e)),
        },
        LuaValue::String(text) => format!("ERR {}", text.to_string_lossy()),
        other => format!("ERR {}", other.to_string()?),
    };
    let table = match error {
        LuaValue::Table(table) => table,
        _ => {
            let table = lua.create_table()?;
            table.raw_set("err", text)?;
            table
        }
    };
    if let Some((place, _)) = at {
        table.raw_set("place", place)?;
    }
    Ok(table)
}

/// Returns an error as a table. Its first word is its code; one of a single word gets `ERR`.
fn error_table(lua: &Lua, text: &str) -> mlua::Result<Table> {
    let text = text.strip_prefix('-').unwrap_or(text);
    let text = if text.contains(' ') { text.to_owned() } else { format!("ERR {text}") };
    let table = lua.create_table()?;
    table.raw_set("err", text)?;
    Ok(table)
}

/// Returns the digest by which scripts are called.
pub(crate) fn sha1(bytes: &[u8]) -> String {
    sha1_smol::Sha1::from(bytes).digest().to_string()
}

fn command(db: &mut Db, rights: &Cell<Rights>, args: &MultiValue) -> mlua::Result<Reply> {
    let error = |text: &str| Ok(Reply::Error(text.into()));
    let mut words = Vec::with_capacity(args.len());
    for arg in args {
        match word(arg) {
            Some(word) => words.push(word),
            None => return error("ERR Lua redis lib command arguments must be strings or integers"),
        }
    }
    let Some((name, rest)) = words.split_first() else {
        return error("ERR Please specify at least one argument for this redis lib call");
    };
    let Some(spec) = find(name) else {
        return error("ERR Unknown Redis command called from script");
    };
    if !spec.takes(words.len()) {
        return error("ERR Wrong number of args calling Redis command from script");
    }
    if let Some(refusal) = denial(db, rights, spec) {
        return error(refusal);
    }
    Ok(spec.run(db, rest))
}

fn denial(db: &Db, rights: &Cell<Rights>, spec: &Spec) -> Option<&'static str> {
    if spec.is(NOT_IN_SCRIPTS) {
        return Some("ERR This Redis command is not allowed from script");
    }
    let mut right = rights.get();
    if right.reads_only && spec.is(WRITES) {
        return Some("ERR Write commands are not allowed from read-only scripts.");
    }
    let is_full = db.live.as_ref().is_some_and(|live| live.is_full);
    if is_full && !right.allows_oom && spec.is(DENIED_WHEN_FULL) {
        return Some(FULL);
    }
    // A script that has written may go on, so that it does not end halfway.
    if spec.is(WRITES) && !right.allows_oom {
        right.allows_oom = true;
        rights.set(right);
    }
    None
}

fn word(value: &LuaValue) -> Option<Bytes> {
    match value {
        LuaValue::String(text) => Some(Bytes::from(&*text.as_bytes())),
        LuaValue::Integer(number) => Some(number.to_string().into()),
        LuaValue::Number(number) => Some(double(*number).into()),
        _ => None,
    }
}

fn to_lua(lua: &Lua, reply: &Reply) -> mlua::Result<LuaValue> {
    let table = |name: &str, text: &str| -> mlua::Result<LuaValue> {
        let table = lua.create_table()?;
        table.raw_set(name, text)?;
        Ok(LuaValue::Table(table))
    };
    Ok(match reply {
        Reply::Nil => LuaValue::Boolean(false),
        #[expect(clippy::cast_precision_loss, reason = "Redis loses it as well")]
        Reply::Int(number) => LuaValue::Number(*number as f64),
        Reply::Bulk(text) => LuaValue::String(lua.create_string(text)?),
        Reply::Status(text) => table("ok", text)?,
        Reply::Error(text) => table("err", text)?,
        Reply::Array(parts) => {
            let table = lua.create_table_with_capacity(parts.len(), 0)?;
            for part in parts {
                table.raw_push(to_lua(lua, part)?)?;
            }
            LuaValue::Table(table)
        }
    })
}

fn to_reply(value: &LuaValue) -> Reply {
    match value {
        LuaValue::Boolean(true) => Reply::Int(1),
        LuaValue::Integer(number) => Reply::Int(*number),
        #[expect(clippy::cast_possible_truncation, reason = "Redis truncates as well")]
        LuaValue::Number(number) => Reply::Int(*number as i64),
        LuaValue::String(text) => Reply::Bulk(Bytes::from(&*text.as_bytes())),
        LuaValue::Table(table) => table_reply(table),
        _ => Reply::Nil,
    }
}

fn table_reply(table: &Table) -> Reply {
    let text = |name: &str| table.raw_get::<Option<mlua::LuaString>>(name).ok().flatten();
    if let Some(text) = text("err") {
        return Reply::Error(text.to_string_lossy());
    }
    if let Some(text) = text("ok") {
        return Reply::Status(text.to_string_lossy().into());
    }
    let mut parts = Vec::with_capacity(table.raw_len());
    for n in 1.. {
        match table.raw_get::<LuaValue>(n) {
            Ok(LuaValue::Nil) | Err(_) => break,
            Ok(part) => parts.push(to_reply(&part)),
        }
    }
    Reply::Array(parts)
}
