//! Every script of `src/` and of apalis-redis, by its digest, at both servers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use samovar_model::commands::Reply;
use samovar_model::scripts::Script;
use samovar_model::server::Server;

use super::pair::{Dice, EPOCH, Pair};

/// Scripts with keys and arguments. Commas separate alternatives, `~` is a space, `now` the time in ms, which `now+5`
/// and `now-5` change, and `nows` the time in s. Those of one folder work on the same keys. A row without a path is a
/// command.
const ROWS: &[&str] = &[
    "ops/lua/begin_files.lua | files | a d1,d2 b d1,d3",
    "ops/lua/end_change.lua | files | a,b d1,d1~d2,d2 d2,d3",
    "ops/lua/describe_jobs.lua | jobs | now-5,now,7 a,b {\"since_ms\":now-9,\"digest\":\"x\"},{\"since_ms\":7},no~json,\
     [1,{} *,x~y,",
    "ops/lua/digest_descriptions.lua | one-job |",
    " | HSET one-job a b |",
    "redis/lua/lead.lua | leader | one,two 5,1000,0",
    "queue/lua/push.lua | q:active q:data | q:meta: 3,9 0,1 signal go id1,id2,id3 p1,p2 id4,id5 p3",
    "queue/lua/pull.lua | q:active q:data q:inflight:one,q:inflight:two q:workers | q:meta: one,two 1,3",
    "queue/lua/ack.lua | q:inflight:one,q:inflight:two q:data | q:meta: id1,id4 id2,id5",
    "queue/lua/beat.lua | q:workers | q:inflight: one,two, 0,2,60 0,1",
    "queue/lua/forget.lua | q:workers q:inflight:one,q:inflight:two q:data | q:meta: one,two 0,60 id1,id2 id3",
    " | ZADD q:workers nows,9 one,two |",
    " | HDEL q:data id1,id2,id4 |",
    "source/limits/lua/take_permit.lua | {u} {u}:p {u}:w {u}:h | p1,p2,p3,p4 20,1000 0,1,2 0,1000,50000 0,9000 0,20 \
     0,100 g1,g2 0,600 0,10 0,50",
    "source/limits/lua/take_permit.lua | {u} {u}:p {u}:w {u}:h | p5 1000 3 0 0 0 1000 g1,g2 0,600 10,90 \
     0,500 p1,p2 p3",
    "source/limits/lua/return_permit.lua | {u} {u}:p {u}:w {u}:h | p1,p2,p3 \
     answered,failed,busy,dropped,refused:~broke 5,100 w1,w2 0,10,900 0,5 1000 0,1000 1,2 20 100 signal news 0,30",
    "source/limits/lua/return_permit.lua | {u} {u}:p {u}:w {u}:h | p4,p5 answered,failed 0 w1,w2 10 0 1000 1000 2 20 \
     100 signal news 0 p1 p2",
    "source/limits/lua/inspect.lua | {u} {u}:p {u}:w {u}:h | 0,1000 1000 w1,w3 0,400 0,10 signal news p1,p5 \
     p2",
    "source/limits/lua/count_requests.lua | {u}:r | 1,3 100,2500",
    "popularity/lua/fold.lua | popular clock | 1000,60000 3,9 add,report,least a,b,c 1,2.5 d,e 3",
    "popularity/lua/fold.lua | popular clock | 1000,60000 2,100 add f,g,h 1,1000",
    "popularity/lua/top.lua | popular clock | 1000,60000 0,1 0,2,1000",
    "popularity/lua/claim_sample.lua | samples | 5,1000",
    " | HSET samples last now,now-9 next now,now+5 every 10 |",
    "protocol/lua/publish.lua | inbox | one,two, 0,2,5 1,2",
    "trigger/invalidation/lua/read.lua | inbox | g one,two 1,3 0,100 2,100 ,0,5 0-0",
    "trigger/invalidation/lua/read.lua | inbox | g one,two 3 100 100 0,5 0-0,5-0",
    "trigger/invalidation/lua/leave.lua | inbox | g one,two",
    "trigger/invalidation/lua/last.lua | inbox,none |",
    "trigger/invalidation/lua/clock.lua | gap times | ,0,1 now,now-20,now+20 5 9 signal gap",
    "trigger/invalidation/lua/canary.lua | heard | one,two 0,now-9 now now-5 a,b 0~0,5~1 signal canary~x",
    " | XGROUP CREATE inbox g 0 MKSTREAM |",
    " | XADD inbox * message three |",
    " | XACK inbox g 0-1 |",
    "worker/maintenance/lua/close_gap.lua | gap lock done clock | now~1,now-5~2,5~1 one,two 1,0 job~1 job~2",
    "worker/maintenance/lua/close_gap.lua | gap lock done clock | now~1,5~1 one 2 job~1 job~2",
    "worker/maintenance/lua/find_loss.lua | loss | now,now+5 1,2000",
    "worker/maintenance/lua/leave_mark.lua | mark | ,one,two one,two",
    "worker/maintenance/lua/drop_job.lua | rounds kept1 kept2 | 1,3 1,0",
    " | SET gap now~1,5~1 |",
    " | SET lock one,two |",
    " | SET rounds 0,x |",
    " | HSET clock revalidated 3,now+5000 |",
    "trigger/lua/hasten.lua | schedules ticks | a,b",
    " | ZADD schedules now+50,now-50 a,b |",
    " | HSET ticks a,b now a/state waits,again |",
    "store/lua/suspect.lua | gap done | now,now-9,now+9,5 1,2 signal gap job,other",
    "store/lua/restore_expiry.lua | value | now+5,now+2000 now+5,now+2000",
    " | SET value x PXAT now+5,now+2000 |",
    "store/lua/guard_removal.lua | guard agenda | 10,50 1,3 60000 1000 5000 0,now-5,now+5 1,2 a,b",
    "store/lua/guard_recovery.lua | guard | a,b 60000 ,now,5",
    "store/lua/guard_decision.lua | guard | accept,hold 1000 5000",
    " | ZADD agenda 1 a,b,c,d |",
    "cache/lua/admit_within.lua | log | 1,3 1000,20000",
    "apalis/register_worker.lua | aq:workers aq:one | nows one,two 0,60 redis layers",
    "apalis/keep_alive.lua | aq:workers | nows one,two",
    "apalis/batch_push.lua | aq:data aq:active aq:signal aq:meta aq:scheduled aq:once | 10,1 0,1 t1,t2,t3 payload 0 3 \
     {\"a\":1},,nonsense 0,nows k1,k2,",
    "apalis/fetch_next.lua | aq:workers aq:active aq:inflight:one aq:data aq:signal aq:meta aq:scheduled | \
     nows 1,3 one",
    "apalis/fetch_by_id.lua | aq:data aq:meta | t1,t9",
    "apalis/acquire_leases.lua | aq:inflight:one aq:workers aq:meta aq:active | one nows 1 t1,t2",
    "apalis/renew_leases.lua | aq:inflight:one aq:workers aq:meta aq:active | one nows 1 t1,t2",
    "apalis/release_leases.lua | aq:inflight:one aq:active aq:signal aq:workers aq:meta | one 1 t1,t2",
    "apalis/handle_results.lua | aq:inflight:one aq:done aq:dead aq:scheduled aq:meta | 1 t1,t2 nows result \
     Done,Failed,Killed 1,25",
    "apalis/reenqueue_orphaned.lua | aq:workers aq:active aq:signal aq:inflight | nows one",
    "apalis/list_tasks.lua | aq:data aq:meta aq:active | Pending, 1 10",
    "apalis/list_all_tasks.lua | aq:data aq:meta | Pending, 1 10",
    "apalis/list_workers.lua | aq:workers aq:one |",
    "apalis/list_all_workers.lua | |",
    "apalis/overview.lua | | nows aq",
    "apalis/overview_by_queue.lua | aq:active aq:zdone aq:zdead aq:inflight:one | nows",
    "apalis/stats.lua | aq:active aq:workers aq:dead aq:failed aq:done |",
    "apalis/vacuum.lua | aq:data aq:meta |",
    "apalis/vacuum_before.lua | aq:data aq:meta | 0",
];

/// The files that stand before others.
const PRELUDES: [&str; 7] = [
    "agenda/lua/score.lua",
    "popularity/lua/half_lives.lua",
    "protocol/lua/lease_record.lua",
    "source/limits/lua/state.lua",
    "store/lua/fence.lua",
    "store/lua/guard.lua",
    "store/lua/meta.lua",
];

fn prelude(path: &str) -> Option<&'static str> {
    match path {
        "popularity/lua/fold.lua" | "popularity/lua/top.lua" => Some("popularity/lua/half_lives.lua"),
        "source/limits/lua/count_requests.lua" => None,
        path if path.starts_with("source/limits/") => Some("source/limits/lua/state.lua"),
        path if path.starts_with("store/lua/guard_") => Some("store/lua/guard.lua"),
        _ => None,
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../src")
}

/// Returns the folder of apalis-redis's scripts, if Cargo has its sources.
fn apalis() -> Option<PathBuf> {
    let home = std::env::var("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|_| std::env::var("HOME").map(|home| Path::new(&home).join(".cargo"))).ok()?;
    let registries = std::fs::read_dir(home.join("registry/src")).ok()?.flatten();
    registries.map(|registry| registry.path().join("apalis-redis-1.0.0/lua")).find(|folder| folder.is_dir())
}

/// Returns a script's text; `None` for one of a crate whose sources are not there.
fn text(path: &str) -> Option<String> {
    if let Some(name) = path.strip_prefix("apalis/") {
        return Some(std::fs::read_to_string(apalis()?.join(name)).unwrap());
    }
    let read = |path: &str| std::fs::read_to_string(sources().join(path)).unwrap();
    Some(prelude(path).map(read).unwrap_or_default() + &read(path))
}

/// Returns the words of a column.
fn words(dice: &mut Dice, column: &str, now_us: i64) -> Vec<String> {
    let time = |word: &str| {
        let (before, after) = word.split_once("now").unwrap();
        let (unit, after) = if let Some(after) = after.strip_prefix('s') { (1_000_000, after) } else { (1_000, after) };
        let digits = after.len() - after.trim_start_matches(|c: char| "+-0123456789".contains(c)).len();
        let (step, after) = after.split_at(digits);
        format!("{before}{}{after}", now_us / unit + step.parse::<i64>().unwrap_or(0))
    };
    let word = |column: &str, dice: &mut Dice| {
        let is_json = column.contains('{') && column.contains(':');
        let choices: Vec<&str> = if is_json { json(column) } else { column.split(',').collect() };
        let chosen = dice.of(&choices).replace('~', " ");
        if chosen.contains("now") && chosen != "no json" { time(&chosen) } else { chosen }
    };
    column.split(' ').filter(|word| !word.is_empty()).map(|column| word(column, dice)).collect()
}

/// Splits at the commas that stand outside of braces.
fn json(column: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0, 0, Vec::new());
    for (at, letter) in column.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&column[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&column[from..]);
    parts
}

fn columns(row: &str) -> [&str; 3] {
    let mut columns = row.split('|').map(str::trim);
    [(); 3].map(|()| columns.next().unwrap_or_default())
}

/// Returns the files below a folder, by their paths below `src/`.
fn files(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "lua") {
            found.insert(path.strip_prefix(sources()).unwrap().to_str().unwrap().to_owned());
        }
    }
}

#[test]
fn each_script_of_the_sources_is_compared() {
    let mut missing = BTreeSet::new();
    files(&sources(), &mut missing);
    let compared = ROWS.iter().map(|row| columns(row)[0]).chain(Script::ALL.iter().map(|script| script.path()));
    for path in compared.chain(PRELUDES) {
        missing.remove(path);
    }
    assert!(missing.is_empty(), "add rows for {missing:?}");
}

/// Returns the words that stand between two texts in the files below a folder.
fn between(folder: &Path, extension: &str, begin: &str, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            between(&path, extension, begin, found);
        } else if path.extension().is_some_and(|of| of == extension) {
            let text = std::fs::read_to_string(&path).unwrap();
            for rest in text.split(begin).skip(1) {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
                found.insert(rest[..end].to_owned());
            }
        }
    }
}

#[test]
fn the_server_has_each_command_of_the_sources() {
    let mut names = BTreeSet::new();
    between(&sources(), "rs", "cmd(\"", &mut names);
    for begin in ["redis.call('", "redis.pcall('"] {
        between(&sources(), "lua", begin, &mut names);
    }
    // The commands whose rights a worker needs.
    let rights = std::fs::read_to_string(sources().join("redis/requirements.rs")).unwrap();
    let lists = rights.split_once("const NEEDED").unwrap().1.split_once("/// The missing rights").unwrap().0;
    let words = lists.split('"').filter_map(|text| text.split(['|', ' ']).next());
    names.extend(words.filter(|name| is_name(name)).map(str::to_owned));
    assert!(names.len() > 60, "{names:?}");
    // To Sentinels, to servers that the demo sets up with them, and to the masters of a Cluster.
    for other in ["SENTINEL", "REPLICAOF", "CLUSTER", "ASKING"] {
        names.remove(other);
    }
    let mut server = Server::new(1, EPOCH);
    let is_unknown = |name: &&String| match server.execute(1, &[name.as_str()]) {
        Some(Reply::Error(text)) => text.contains("unknown command"),
        _ => false,
    };
    let missing: Vec<&String> = names.iter().filter(is_unknown).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn is_name(word: &str) -> bool {
    word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase())
}

#[test]
fn all_scripts_give_the_replies_of_a_real_server() {
    let mut pair = Pair::new("scripts");
    let (mut compared, mut failed) = (0, BTreeSet::new());
    let mut ran = BTreeSet::new();
    for seed in 1..=walks() {
        pair.same(&["FLUSHALL"]);
        pair.told.clear();
        let mut dice = Dice(seed * 0x9e37_79b9);
        let mut now = EPOCH;
        for _ in 0..ROWS.len() * 4 {
            if dice.below(3) == 0 {
                now += [0, 999, 4_000, 30_000, 2_000_000, -2_000, 3_700_000_000][dice.below(7)];
                pair.set_clock(now);
            }
            let [path, keys, args] = columns(ROWS[dice.below(ROWS.len())]);
            if path.is_empty() {
                let command = words(&mut dice, keys, now);
                pair.same(&command);
                continue;
            }
            let Some(text) = text(path) else { continue };
            let digest = pair.same(&["SCRIPT", "LOAD", &text]).text();
            let (keys, args) = (words(&mut dice, keys, now), words(&mut dice, args, now));
            if dice.below(60) == 0 && !keys.is_empty() {
                // Somebody else's key.
                pair.same(&["SET", &keys[dice.below(keys.len())], "x", "PX", "3"]);
            }
            let mut call = vec!["EVALSHA".to_owned(), digest, keys.len().to_string()];
            call.extend(keys.into_iter().chain(args));
            // Those of apalis tell fields of hashes, which have no order.
            let is_apalis = path.starts_with("apalis/");
            let reply = if is_apalis { pair.same_members(&call) } else { pair.same(&call) };
            compared += 1;
            match reply {
                Reply::Error(_) => failed.insert(path),
                _ => ran.insert(path),
            };
        }
    }
    let never: Vec<&&str> = failed.difference(&ran).collect();
    assert!(never.is_empty(), "these only failed: {never:?}");
    println!("{compared} calls of {} scripts gave the same replies", ran.len());
}

fn walks() -> u64 {
    super::walks() * 2
}

/// The ways in which scripts return and fail.
#[test]
fn errors_of_scripts_are_those_of_a_real_server() {
    let mut pair = Pair::new("errors");
    pair.same(&["SET", "text", "x"]);
    for script in [
        "return 1",
        "return {1, 2.9, 'a', false, 5}",
        "return {1, nil, 3}",
        "return nil",
        "return true",
        "return 'a\\0b'",
        "return {ok = 'fine'}",
        "return {err = 'My error'}",
        "return redis.error_reply('My error')",
        "return redis.error_reply('-CODE text')",
        "return redis.error_reply('alone')",
        "return redis.status_reply('ok')",
        "return redis.call('HGET', 'text', 'a')",
        "return redis.pcall('HGET', 'text', 'a')",
        "\nreturn redis.call('HGET', 'text', 'a')",
        "local ok = pcall(redis.call, 'HGET', 'text', 'a') return tostring(ok)",
        "return redis.call('NOSUCH')",
        "return redis.call('GET')",
        "return redis.call()",
        "return redis.call({})",
        "return redis.call('SUBSCRIBE', 'a')",
        "error('mine')",
        "error({err = 'MINE text'})",
        "return nosuch",
        "mine = 1",
        "local a = nil; return a.b",
        "return {",
        "return 1 +",
        "return cjson.encode({1, 2, 'a'})",
        "return cjson.encode({a = 1.5})",
        "return cjson.encode({})",
        "return cjson.encode('a/b\"\\n')",
        "return cjson.decode('[1,2.5,\"x\",null,true]')",
        "return cjson.decode('{\"a\":[1,{\"b\":\"\\\\u00f6\"}]}').a[2].b",
        "return tostring(cjson.decode('null') == cjson.null)",
        "return redis.sha1hex('')",
        "return redis.sha1hex('abc')",
        "#!lua\nreturn 1",
        "#!lua flags=no-writes\nreturn redis.call('SET', 'a', 1)",
        "#!lua flags=allow-oom,no-writes\nreturn redis.call('GET', 'text')",
        "#!lua flags=nosuch\nreturn 1",
        "#!js\nreturn 1",
        "#!lua name=x\nreturn 1",
        "#!lua flags=allow-oom\n\nreturn redis.call('HGET', 'text', 'a')",
        "return redis.call('SET', 'n', 1700000000123.5) and redis.call('GET', 'n')",
        "return redis.call('ECHO', 2 ^ 53)",
        "return redis.call('ECHO', 0.1)",
        "return redis.call('ECHO', -1e300)",
        "return tostring(redis.call('TIME')[1])",
        "return #redis.call('TIME')",
        "return type(redis.call('GET', 'none'))",
        "return redis.call('SET', 'text', 'y')",
        "return #ARGV .. KEYS[1]",
        "return redis.LOG_WARNING",
        "return math.floor(3.7)",
        "return string.format('%.17g', 0.1)",
        "return {{1}, {{2}}}",
        "return redis.call('SCAN', 0, 'COUNT', 100)[1]",
        "redis.call('SET', 'z', 1) error('late')",
        "return tonumber('0x10')",
        "return redis.call('XADD', 's', '5-1', 'a', 'b')",
        "return redis.call('XRANGE', 's', '-', '+')",
    ] {
        pair.same(&["EVAL", script, "1", "text", "arg"]);
    }
}
