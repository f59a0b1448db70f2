//! Measures the server in memory: commands and scripts a second, with few keys and with many.

use std::time::Instant;

use samovar_model::calls::{self, Call};
use samovar_model::server::Server;

const EPOCH: i64 = 1_700_000_000_000_000;

fn script(server: &mut Server, call: &Call) -> Vec<String> {
    let digest = server.execute(1, &["SCRIPT", "LOAD", &call.script.for_redis()]).unwrap_or_else(|| unreachable!());
    let mut words = vec!["EVALSHA".to_owned(), digest.text(), call.keys.len().to_string()];
    words.extend(call.keys.iter().chain(&call.args).cloned());
    words
}

/// Returns the time on a core in seconds, which other programs do not lengthen; elsewhere than on Linux, the clock.
fn spent(began: Instant) -> f64 {
    let told = std::fs::read_to_string("/proc/self/schedstat").ok();
    let on_core = told.and_then(|told| told.split(' ').next()?.parse::<f64>().ok());
    on_core.map_or_else(|| began.elapsed().as_secs_f64(), |ns| ns / 1e9)
}

fn measure(server: &mut Server, name: &str, words: &[String]) {
    let began = Instant::now();
    let (start, mut count) = (spent(began), 0_u32);
    while began.elapsed().as_millis() < 300 {
        for _ in 0..50 {
            server.execute(1, words);
        }
        server.advance(1);
        count += 50;
    }
    println!("  {name:<28}{:>12.0} a second", f64::from(count) / (spent(began) - start));
}

fn main() {
    for keys in [10, 1_000, 20_000] {
        println!("{keys} entries");
        let mut server = Server::new(1, EPOCH);
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for n in 0..keys {
            server.execute(1, &words(&format!("SET entry:{n} value PX 600000")));
            server.execute(1, &words(&format!("SET meta:{n} value PX 900000")));
            server.execute(1, &words(&format!("ZADD agenda {} entry:{n}", 6_800_000_000_000_000_i64 + n * 4_000)));
            server.execute(1, &words(&format!("HSET stats field:{n} 1")));
        }
        server.execute(1, &words("XGROUP CREATE inbox g 0 MKSTREAM"));
        for line in [
            "GET entry:7",
            "SET entry:7 value PX 600000",
            "HSET stats field:7 2",
            "ZADD agenda 6800000000020001 entry:7",
            "ZSCORE agenda entry:7",
            "TIME",
            "XREADGROUP GROUP g c COUNT 10 STREAMS inbox >",
            "PUBLISH signal news",
        ] {
            measure(&mut server, line.split(' ').next().unwrap_or_default(), &words(line));
        }
        measure(&mut server, "SCAN, 500 keys a step", &words("SCAN 0 MATCH entry:* COUNT 500"));
        measure(&mut server, "INFO", &words("INFO"));
        let began = 1_700_000_000_000;
        for (name, call) in [
            ("claim.lua", calls::claim(0, 10, 1, 0)),
            ("lease.lua", calls::lease("entry:7", "token", calls::Fresh::default())),
            ("commit.lua", calls::commit("entry:7", "t", "v", &Default::default(), began, Default::default())),
            ("invalidate.lua", calls::invalidate("entry:7", began, false, calls::PAUSE, (calls::REMEMBERED, 0), "")),
            ("due.lua", calls::due("soon", 2, began, &["entry:7", "entry:8"])),
            ("set.lua", calls::set("entry:7", "value", "600000")),
        ] {
            let words = script(&mut server, &call);
            measure(&mut server, name, &words);
        }
    }
}
