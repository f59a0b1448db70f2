//! Each fault of a job file, with its place and its remedy.

use super::*;

/// A difference of a file from [`GOOD`].
pub(super) enum Change {
    Whole(&'static str),
    Append(&'static str),
    Replace(&'static str, &'static str),
}
use Change::{Append, Replace, Whole};

impl Change {
    pub(super) fn text(&self) -> String {
        match self {
            Whole(text) => (*text).to_owned(),
            Append(text) => format!("{GOOD}{text}"),
            Replace(from, to) => {
                assert!(GOOD.contains(from), "{from}");
                GOOD.replace(from, to)
            }
        }
    }
}

/// Returns each change with the faults that it causes.
pub(super) fn cases() -> &'static [(Change, &'static [&'static str])] {
    &[
        (Whole("key = "), &["1:7: not TOML: string values must be quoted, expected literal string"]),
        (Whole("a = 1\na = 2\n[b\n"), &["2:1: not TOML: duplicate key", "3:3: not TOML: unclosed table, expected `]`"]),
        (
            Whole("ttl = \"1h\"\n"),
            &[
                r#"1:1: this file has no `key` | add one, such as key = "artwork_info:{artwork_name}""#,
                r#"1:1: this file has no `source` | add one, such as [source] with kind = "http", upstream and path"#,
            ],
        ),
        (
            Replace("art:{name}", "art:{na"),
            &["1:7: `{` in `art:{na` is never closed; write `{name}`, or `{{` for a literal brace"],
        ),
        (
            Replace("art:{name}", "{name}"),
            &["1:7: key pattern `{name}` must begin with literal text, such as `name:{name}`"],
        ),
        (
            Replace("art:{name}", "samovar:{name}"),
            &[
                "1:7: keys of `samovar:{name}` could be Samovar's own, which begin with `samovar:` | begin the key with something else",
            ],
        ),
        (Replace(r#""art:{name}""#, "7"), &["1:7: `key` must be a string, not an integer"]),
        (
            Append("[inputs]\nbrand = \"brand:{{ art.brand.slug }}\"\n"),
            &["7:9: `{{ art.brand.slug }}` is a template, and a key has placeholders: write one as `{name}`"],
        ),
        (
            Replace("ttl =", "tags = [\"in:{{ name | path }}\"]\nttl ="),
            &[
                "2:23: `in:{{ name | path }}`: the filter `path` is for URLs only | remove `| path`: text outside a URL is inserted as it is",
            ],
        ),
        (
            Append("headers = { X-Name = \"{{ name | path }}\" }\n"),
            &[
                "6:33: `{{ name | path }}`: the filter `path` is for URLs only | remove `| path`: text outside a URL is inserted as it is",
            ],
        ),
        (
            Append("[entries.feed]\nurl = \"http://x/\"\nitem = { name = \"{{ value.name | path }}\" }\n"),
            &[
                "8:34: `{{ value.name | path }}`: the filter `path` is for URLs only | remove `| path`: text outside a URL is inserted as it is",
            ],
        ),
        (
            Append("items = \"/data\"\nitem = { name = \"{{ value.id }}\" }\nabsent = \"gone\"\nwait = \"1s\"\n"),
            &[
                "6:1: `items` has no effect without `bulk` | add `bulk = 100`, the most entries in one request, or remove it",
                "7:1: `item` has no effect without `bulk` | add `bulk = 100`, the most entries in one request, or remove it",
                "8:1: `absent` has no effect without `bulk` | add `bulk = 100`, the most entries in one request, or remove it",
                "9:1: `wait` has no effect without `bulk` | add `bulk = 100`, the most entries in one request, or remove it",
            ],
        ),
        (
            Replace("{{ name }}\"", "{{ name }}\"\nbulk = 100"),
            &["5:30: `name` is not defined | one request asks for many entries: write \
                 `{{ entries | map(attribute='name') | join(',') }}`, or loop over `entries`; known here: entries and \
                 env.NAME"],
        ),
        (
            Replace("{{ name }}\"", "{{ entries | length }}\"\nbulk = 1\nabsent = \"maybe\"\nwait = \"6s\""),
            &[
                "6:8: `bulk` (1) must be from 2 to 1000",
                "7:10: `absent` is \"gone\" or \"failed\", not \"maybe\"",
                "8:8: `wait` (6s) must be at most 5s",
            ],
        ),
        (
            Replace("{{ name }}\"", "all\"\nbulk = 10\nitem = { id = \"{{ value.id }}\", name = \"x\" }"),
            &[
                "6:1: neither the URL nor `body` has `entries`, so that a request does not say which entries it asks for | \
                 write a list of them, such as \"/artworks?ids={{ entries | map(attribute='id') | join(',') }}\", or \
                 remove `bulk`",
                "7:10: `id` is no placeholder of the key `art:{name}` | the key has `name`",
                "7:40: `name` inserts nothing, so all items name the same: `x` | write a template over the item, such as \
                 \"{{ value.id }}\"",
            ],
        ),
        (
            Replace("{{ name }}", "{{ entries }}"),
            &[
                "5:30: `entries` is not defined | `entries` is the list of a source with `bulk`; known here: name and env.NAME",
            ],
        ),
        (
            Whole(
                "key = \"art\"\n[source]\nkind = \"http\"\nurl = \"http://x/\"\nbody = { ids = \"{{ entries }}\" }\nbulk = 2\n",
            ),
            &["6:1: `bulk` asks for many entries, and a key without placeholders has one | remove it, or add a \
                 placeholder to the key"],
        ),
        (
            Append("tags = [\"art\"]\n"),
            &["6:1: unknown field `tags` in [source] | `tags` belongs to the job itself: write it above the first \
                 line in brackets"],
        ),
        (Replace("ttl =", "tll ="), &["2:1: unknown field `tll` in this file | did you mean `ttl`?"]),
        (
            Replace("1h", "1 hour ago"),
            &[
                r#"2:7: `ttl` is no time that can be read: expected number at 7 | write a number and a unit, such as "90s", "30m", "2h" or "1h30m""#,
            ],
        ),
        (
            Replace(r#""1h""#, "3600"),
            &[r#"2:7: `ttl` has no unit | write "3600s" for seconds, or "3600m", "3600h", "3600d""#],
        ),
        (Replace("1h", "10ms"), &["2:7: `ttl` (10ms) must be at least 1s"]),
        (Replace("1h", "11 years"), &["2:7: `ttl` (11 years) must be at most 10y"]),
        (Replace(r#""1h""#, "true"), &[r#"2:7: `ttl` must be a time with its unit, such as "30m", not a boolean"#]),
        (
            Replace(r#""1h""#, r#""{{ env.NOPE }}""#),
            &["2:11: environment variable `NOPE` is not set | set NOPE in the environment or in `.env`"],
        ),
        (Replace(r#""1h""#, r#""{{ name }}""#), &["2:11: `name` is not defined | only `env.NAME` may be used here"]),
        (Replace(r#""1h""#, "\"1h\"\ntags = \"x\""), &["3:8: `tags` must be an array, not a string"]),
        (
            Replace(r#""1h""#, "\"1h\"\ntags = [\"a:{{ value.x \"]"),
            &["3:21: `a:{{ value.x`: syntax error: unexpected end of input, expected end of variable block"],
        ),
        (
            Replace(r#""1h""#, "\"1h\"\ntags = [\"a:{{ vale.x }}\"]"),
            &["3:15: `vale` is not defined | did you mean `value`? known here: name, value and env.NAME"],
        ),
        (
            Replace("{{ name }}", "{{ nam }}"),
            &["5:30: `nam` is not defined | did you mean `name`? known here: name and env.NAME"],
        ),
        (
            Replace("{{ name }}", "{{ name.first }}"),
            &["5:30: `name.first`: the placeholder `name` is text and has no `first` | write `{{ name }}`"],
        ),
        (
            Replace("{{ name }}", "{{ value }}"),
            &["5:30: `value` is not defined | there is no answer yet where this stands; known here: name and env.NAME"],
        ),
        (
            Replace("{{ name }}", "{{ env }}"),
            &["5:30: `env` must be followed by the name of one variable | write `{{ env.NAME }}`"],
        ),
        (
            Replace("{{ name }}", "{{ env['X'] }}"),
            &["5:30: `env` must be followed by the name of one variable | write `{{ env.NAME }}`"],
        ),
        (
            Replace("{{ name }}", "{{ name | safe }}"),
            &[
                "5:37: `http://museum.test/{{ name | safe }}`: unknown filter `safe`: templates do not escape HTML, so remove it",
            ],
        ),
        (
            Replace("{{ name }}", "{{ name | shout }}"),
            &["5:37: `http://museum.test/{{ name | shout }}`: unknown filter `shout`"],
        ),
        (
            Replace("{{ name }}", "{% include 'x' %}"),
            &[
                "5:30: `http://museum.test/{% include 'x' %}`: `{% include %}` needs other templates, which do not exist; write the text here",
            ],
        ),
        (
            Replace("{{ name }}", r"\u00e9{{ name "),
            &[
                "5:36: `http://museum.test/é{{ name`: syntax error: unexpected end of input, expected end of variable block",
            ],
        ),
        (
            Replace("{{ name }}", r"\u00e9{{ nome }}"),
            &["5:36: `nome` is not defined | did you mean `name`? known here: name and env.NAME"],
        ),
        (
            Replace("{{ name }}", "../{{ name }}#x"),
            &[
                "5:7: what follows `#` in a URL is never sent | write `%23` for the character itself",
                "5:7: URL parsers cut the path segment `..` out; write the path without it",
            ],
        ),
        (
            Replace("museum.test", "{{ name }}.test"),
            &[
                "5:15: the scheme and host of a URL must be known when the file is loaded | write them out, or as `{{ env.NAME }}`",
            ],
        ),
        (
            Replace("museum.test", "user:pw@museum.test"),
            &[
                r#"5:7: a URL must not hold a user or password, since URLs are logged; send them in `headers`, such as Authorization = "Basic …""#,
            ],
        ),
        (
            Replace("http://museum.test", "{{ env.NOPE }}"),
            &["5:8: environment variable `NOPE` is not set | set NOPE in the environment or in `.env`"],
        ),
        (Replace("http://museum.test", "ftp://museum.test"), &["5:7: only http and https are spoken, not ftp"]),
        (
            Replace("http://museum.test", "museum.test"),
            &["5:7: `museum.test/{{ name }}` is no absolute URL | begin it with http:// or https://"],
        ),
        (
            Replace(r#""http""#, r#""htpp""#),
            &[r#"4:8: there is no source of kind `htpp`; it is "http", "ai" or "compose" | did you mean `http`?"#],
        ),
        (
            Replace("kind = \"http\"", "kind = \"htpp\"\nvalu = 1"),
            &[
                r#"4:8: there is no source of kind `htpp`; it is "http", "ai" or "compose" | did you mean `http`?"#,
                "5:1: unknown field `valu` in [source] | did you mean `value`?",
            ],
        ),
        (
            Replace(r#""http""#, r#""graphql""#),
            &[r#"4:8: there is no source of kind `graphql`; it is "http", "ai" or "compose""#],
        ),
        (Replace("kind = \"http\"\n", ""), &[r#"3:1: [source] has no `kind` | add one, such as kind = "http""#]),
        (
            Replace("[source]\nkind", "source"),
            &[
                "3:10: `source` must be a table, not a string",
                "4:1: unknown field `url` in this file | known here: description, key, ttl, inputs, tags, version, source, entries, warm",
            ],
        ),
        (
            Replace(r#"url = "http://museum.test/{{ name }}""#, ""),
            &[
                "3:1: nothing says which server is asked | add `upstream`, a name from upstreams.toml, and `path`; or an absolute `url`",
            ],
        ),
        (
            Replace(r#"url = "http://museum.test/{{ name }}""#, "upstream = \"museun\"\npath = \"x\""),
            &[
                "5:12: there is no upstream `museun` | did you mean `museum`?",
                r#"6:8: `path` must begin with `/`: `x` | write "/x""#,
            ],
        ),
        (
            Replace(r#"url = "http://museum.test/{{ name }}""#, r#"upstream = "museum""#),
            &[r#"3:1: [source] has no `path` | add one, such as path = "/artworks/{{ artwork_name }}""#],
        ),
        (
            Replace("url =", "upstream = \"museum\"\nurl ="),
            &["5:1: `url` and `upstream` both say which server is asked | keep `url`, or `upstream` and `path`"],
        ),
        (
            Replace("url =", "path = \"/x\"\nurl ="),
            &[
                "5:1: `path` beside `url`: an absolute URL has its path already | write both into `url`, or give the `upstream` instead of the `url`",
            ],
        ),
        (
            Append("select = \"$.data.x\"\naccept = \"value.ok\"\nprompt = \"x\"\n"),
            &[
                r#"6:10: `$.data.x` is no JSON Pointer: it does not begin with `/` | write "/data/x""#,
                r#"7:10: `accept` inserts nothing, so that it says the same of every answer: `value.ok` | write an expression in braces, such as "{{ value.error is undefined }}""#,
                "8:1: unknown field `prompt` in [source] | known here: fallback, kind, bulk, url, upstream, path, headers, body, select, accept, value, items, item, absent, wait",
            ],
        ),
        (
            Append(
                "select = \"/a~b\"\nheaders = { \"A B\" = \"x\", a = \"1\", A = \"{{ x }}\", Connection = \"close\", b = \"1\\n2\" }\n",
            ),
            &[
                "6:10: `/a~b` is no JSON Pointer: `~` stands alone | write `~0` for `~` and `~1` for `/` in a name (RFC 6901)",
                "7:13: `A B` is no header name",
                "7:35: header `A` stands twice; upper and lower case are the same",
                "7:43: `x` is not defined | known here: name and env.NAME",
                "7:50: header `Connection` is set by the HTTP client and cannot be given",
                "7:76: header `b` has a line break or another control character in its value",
            ],
        ),
        (
            Append("body = { a = [\"{{ value }}\"] }\nvalue = { a = [\"{{ valu.x }}\", nan] }\n"),
            &[
                "6:19: `value` is not defined | there is no answer yet where this stands; known here: name and env.NAME",
                "7:20: `valu` is not defined | did you mean `value`? known here: name, value and env.NAME",
                "7:32: nan is not a JSON number",
            ],
        ),
        (
            Append("fallback = [{ kind = \"ai\" }, { kind = \"http\", url = \"http://x/\", fallback = [] }, 1]\n"),
            &[
                "6:13: nothing says which server is asked | add `upstream`, a name from upstreams.toml, and `path`; or an absolute `url`",
                r#"6:13: a fallback has no `model` | add one, such as model = "gpt-4o-mini""#,
                r#"6:13: a fallback has no `prompt` | add one, such as prompt = "…""#,
                "6:66: unknown field `fallback` in a fallback | known here: kind, bulk, url, upstream, path, headers, body, select, accept, value, items, item, absent, wait",
                "6:83: `fallback` must be a table, not an integer",
            ],
        ),
        (
            Replace(
                "kind = \"http\"\nurl = \"http://museum.test/{{ name }}\"",
                "kind = \"ai\"\nupstream = \"museum\"\nmodel = \"\"\nprompt = \" \"\ntemperature = 3\nmax_tokens = 0\nformat = \"xml\"\npompt = \"x\"",
            ),
            &[
                "6:9: `model` is empty",
                "7:10: `prompt` is empty",
                "8:15: `temperature` must be from 0 to 2",
                "9:14: `max_tokens` (0) must be from 1 to 1000000",
                r#"10:10: `format` is "text" or "json", not "xml""#,
                "11:1: unknown field `pompt` in [source] | did you mean `prompt`?",
            ],
        ),
        (
            Replace(
                "kind = \"http\"\nurl = \"http://museum.test/{{ name }}\"",
                "kind = \"ai\"\nupstream = \"museum\"\nmodel = \"m\"\nprompt = \"x\"\ntemperature = 1\nmax_tokens = 9\n\
                 options.model = \"x\"\noptions.messages = []\noptions.stream = true\noptions.n = 2\noptions.temperature = 1\n\
                 options.max_tokens = 9\noptions.max_completion_tokens = 0\noptions.a.b = [1979-05-27]\noptions.c = nan\n\
                 options.d = \"{{ name }}\"",
            ),
            &[
                "10:9: option `model` is a field of the source | write `model = …` beside `kind`",
                "11:9: option `messages` is made of `system` and `prompt` | write those instead",
                "12:9: option `stream` cannot be set: an answer is read as a whole | leave it out",
                "13:9: option `n` can only be 1: every answer is paid for, and one is stored | leave it out",
                "14:9: option `temperature` is set twice | keep it here or beside `kind`",
                "15:9: option `max_tokens` limits the answer, as does `max_tokens` of the source | keep the one that the model knows",
                "16:9: option `max_completion_tokens` limits the answer, as does option `max_tokens` | keep the one that the model knows",
                "16:33: `max_completion_tokens` (0) must be from 1 to 1000000",
                "17:16: `b` is a date, which JSON does not have | write it as a string: \"1979-05-27\"",
                "18:13: nan is not a JSON number",
                "19:17: `name` is not defined | only `env.NAME` may be used here",
            ],
        ),
        (
            Append(
                "[entries]\nlist = [\"a\", \"\", true, { nme = \"x\" }, {}, { name = \"\" }, \"a\"]\npopular = -1\nfeed = { url = \"http://x/{{ name }}\" }\nfed = 1\n",
            ),
            &[
                "7:14: an entry's name is empty",
                "7:18: an entry is a string or a number, or a table with one for each placeholder",
                "7:26: `nme` is no placeholder of the key `art:{name}` | the key has `name`",
                "7:39: the entry has no `name`",
                "7:52: `name` is empty",
                "8:11: `popular` (-1) must be from 0 to 1000000",
                "9:29: `name` is not defined | only `env.NAME` may be used here",
                "10:1: unknown field `fed` in [entries] | did you mean `feed`?",
            ],
        ),
        (
            Append(
                "[entries.feed]\nurl = \"http://x/\"\nitem = { nme = \"{{ value.id }}\", name = \"x\" }\nnext_param = \"after\"\nempty = \"yes\"\nnxt = \"/next\"\n",
            ),
            &[
                "8:10: `nme` is no placeholder of the key `art:{name}` | the key has `name`",
                r#"8:41: `name` inserts nothing, so all items name the same: `x` | write a template over the item, such as "{{ value.id }}"; constants belong in `with`"#,
                r#"9:1: `next_param` has no effect without `next` | add `next`, a JSON Pointer to the cursor in an answer, such as "/next""#,
                r#"10:9: `empty` can only be "ok", not "yes" | remove it: an answer without entries is then refused if there were many"#,
                "11:1: unknown field `nxt` in `feed` | did you mean `next`?",
            ],
        ),
        (
            Append(
                "[entries.feed]\nurl = \"http://x/\"\nitem = { id = 1, name = \"{{ name }}\" }\nnext = \"next\"\nwith = { lang = [], name = [\"\", true], size = \"m\" }\n",
            ),
            &[
                "8:10: `id` is no placeholder of the key `art:{name}` | the key has `name`",
                "8:15: `id` must be a string, not an integer",
                "8:18: `name` is in both `item` and `with` | keep one of them",
                "8:29: `name` is not defined | known here: value and env.NAME",
                "9:8: `next` is no JSON Pointer: it does not begin with `/` | write \"/next\"",
                "10:1: `with` gives all placeholders of the key, and leaves none to the feed | write these entries into `list`, or leave a placeholder to the items",
                "10:10: `lang` is no placeholder of the key `art:{name}` | the key has `name`",
                "10:17: `lang` lists nothing, so the feed would name no entry | write at least one constant, or leave the placeholder to the items",
                "10:29: a constant of `name` is empty",
                "10:33: `name` must be a string or a number, not a boolean",
                "10:40: `size` is no placeholder of the key `art:{name}` | the key has `name`",
                "10:47: `size` must be an array, not a string",
            ],
        ),
        (
            Replace(
                r#"art:{name}""#,
                "art:{size}:{name}\"\nentries = { feed = { url = \"http://x/\", \
                 item = { name = \"{{ value }}\" }, with = { size = \"m\" } } }",
            ),
            &["2:90: `size` must be an array, not a string"],
        ),
        (
            Replace(
                r#"art:{name}""#,
                "art:{size}:{name}\"\nentries = { feed = { url = \"http://x/\", item = { name = \"{{ value }}\" }, next = \"\" } }",
            ),
            &[
                r#"2:41: `item` has no `size` | add size = "{{ value.size }}", or constants for it in `with`"#,
                "2:81: `next` points to the whole answer | write where the next page stands: \"/next\"",
            ],
        ),
        (
            Replace(
                r#"art:{name}""#,
                "art:{size}:{name}\"\nentries = { list = [\"x\", { size = \"a:b\", name = \"c\" }, { size = \"a\" }] }",
            ),
            &[
                r#"2:21: `x`: the key `art:{size}:{name}` has 2 placeholders | write a table, such as { size = "…", name = "…" }"#,
                r#"2:26: {"name": "c", "size": "a:b"} has no key: in `art:{size}:{name}` it would be too long, or be read back as something else | a key has 2048 bytes at most; a placeholder but the last ends where the text after it first occurs"#,
                "2:56: the entry has no `name`",
            ],
        ),
        (
            Replace(r#"art:{name}""#, "art\"\nentries = { list = [\"x\"], popular = 5 }"),
            &[
                "2:13: `list`: the key `art` has no placeholder, so there is only one entry | remove it; the one entry is always kept warm",
                "2:27: `popular`: the key `art` has no placeholder, so there is only one entry | remove it; the one entry is always kept warm",
                "6:30: `name` is not defined | only `env.NAME` may be used here",
            ],
        ),
        (
            Append(
                "[warm]\nschedule = \"61 * * * *\"\ntimezone = \"Europe/Instanbul\"\nahead = \"90m\"\nattempts = 0\nrefetch = \"yes\"\nrecheck = [\"2 days\"]\nstale_if_error = \"x\"\n",
            ),
            &[
                "7:12: `61` is no minute; it goes from 0 to 59",
                r#"8:12: there is no time zone `Europe/Instanbul` | did you mean "Europe/Istanbul"?"#,
                "9:9: `ahead` (1h30m) must be shorter than `ttl` (1h) | a tenth of the TTL is usual: 6m",
                "10:12: `attempts` (0) must be from 1 to 1000",
                "11:11: `refetch` must be true or false, not a string",
                "12:12: `recheck` (2 days) must be at most 1d",
                r#"13:18: `stale_if_error` is no time that can be read: expected number at 0 | write a number and a unit, such as "90s", "30m", "2h" or "1h30m""#,
            ],
        ),
        (
            Append("[warm]\nrecheck = [\"5s\", \"1s\"]\nsettle = \"3s\"\n"),
            &[
                "7:18: `recheck`: 1s must come before 5s; each is a time after the invalidation",
                r#"8:1: `settle` is now `recheck`, a list of times | write recheck = ["1s", "3s", "10s", "30s"], or recheck = [] for none"#,
            ],
        ),
        (Append("[warm]\nrecheck = \"5s\"\n"), &["7:11: `recheck` must be an array, not a string"]),
        (
            Append("[warm]\ngone_guard = 10\n"),
            &[
                r#"7:14: `gone_guard` (10) is neither a share from 1% to 100% nor "off" | write gone_guard = "10%", or gone_guard = "off" to remove at once what the upstream says is gone"#,
            ],
        ),
        (Append("[warm]\ngone_guard = true\n"), &["7:14: `gone_guard` must be a string or a number, not a boolean"]),
        (
            Append("[warm]\nschedule = \"* * * * *\"\nevery = \"5m\"\n"),
            &["8:1: `schedule` and `every` both say when warmups run | keep one of them"],
        ),
        (
            Append("[warm]\nevery = \"5ms\"\ntimezone = \"UTC\"\n"),
            &[
                "7:9: an interval of 5ms is too short; the least is 1s",
                r#"8:1: `timezone` has no effect without a `schedule` | add a `schedule` such as "0 3 * * *", or remove it"#,
            ],
        ),
        (
            Append("[warm]\nschedule = \"0 0 30 2 *\"\n"),
            &["7:12: `0 0 30 2 *` never comes: no month it names has such a day"],
        ),
        (
            Append("[warm]\nevery = \"1h\"\nrefetch = true\n[[warm.schedules]]\nevery = \"5m\"\n"),
            &[
                "7:1: `every` beside `schedules`: each table of the list says when its warmups run | move it into a table of `schedules`, or remove it",
                "8:1: `refetch` beside `schedules`: each table of the list has its own | write it into the tables whose warmups fetch everything",
            ],
        ),
        (
            Append("[warm]\nschedule = \"@daily\"\ntimezone = \"UTC\"\n[[warm.schedules]]\nevery = \"5m\"\n"),
            &[
                "7:1: `schedule` beside `schedules`: each table of the list says when its warmups run | move it into a table of `schedules`, or remove it",
                "8:1: `timezone` beside `schedules`: each table of the list says when its warmups run | move it into a table of `schedules`, or remove it",
            ],
        ),
        (
            Append(
                "[[warm.schedules]]\nevery = \"5m\"\n[[warm.schedules]]\nrefetch = true\n[[warm.schedules]]\nschedule = \"61 * * * *\"\nevry = \"5m\"\n[[warm.schedules]]\nevery = \"300s\"\nrefetch = 1\n",
            ),
            &[
                r#"8:1: a schedule needs `schedule` or `every` | add one, such as schedule = "0 4 * * *" or every = "15m""#,
                "11:12: `61` is no minute; it goes from 0 to 59",
                "12:1: unknown field `evry` in [[warm.schedules]] | did you mean `every`?",
                "13:1: two of `schedules` have the same times: `every 5m` | remove one of them; keep the one with `refetch = true` if all is to be fetched then",
                "15:11: `refetch` must be true or false, not an integer",
            ],
        ),
        (
            Append(
                "[warm]\nschedules = [\n{ schedule = \"@daily\" },\n{ schedule = \"0 0 * * *\", timezone = \"Asia/Tokyo\" },\n{ schedule = \"0 0 0 * * *\", refetch = true },\n\"@hourly\",\n{}]\n",
            ),
            &[
                "10:1: two of `schedules` have the same times: `0 0 0 * * *` | remove one of them; keep the one with `refetch = true` if all is to be fetched then",
                "11:1: `schedules` must be a table, not a string",
                r#"12:1: a schedule needs `schedule` or `every` | add one, such as schedule = "0 4 * * *" or every = "15m""#,
            ],
        ),
        (Append("[warm]\nschedules = []\n"), &["7:13: `schedules` lists nothing | write at least one, or remove it"]),
        (
            Append("[warm.schedules]\nevery = \"5m\"\n"),
            &[
                "6:1: `schedules` must be a list of tables, not a table | write [[warm.schedules]] with double brackets above each of them",
            ],
        ),
        (Append("[warm]\nschedules = \"@daily\"\n"), &["7:13: `schedules` must be an array, not a string"]),
        (
            Append(
                "[warm]\nschedules = [{ every = \"1m\" }, { every = \"2m\" }, { every = \"3m\" }, { every = \"4m\" }, { every = \"5m\" }, { every = \"6m\" }, { every = \"7m\" }, { every = \"8m\" }, { every = \"9m\" }, { every = \"10m\" }, { every = \"11m\" }]\n",
            ),
            &["7:13: 11 schedules are too many; the most is 10"],
        ),
        (
            Append(
                "[inputs]\nname = \"art:{name}\"\nother = \"art:{nam}\"\nenv = \"x{name}\"\nlost = \"lost:{name}\"\nbad = \"{x}\"\n\
                 table = { key = \"lost:{nam}\", optional = \"no\", more = 1 }\nempty = {}\n",
            ),
            &[
                "7:1: input `name` has the name of a placeholder in `key` | rename the input; in templates, {{ name }} is the placeholder's value",
                "7:8: jobs wait for each other: a → a | remove one of these inputs",
                "8:9: `{nam}` is no placeholder of the key `art:{name}` | did you mean `{name}`?",
                "9:1: the name `env` means something else in templates; choose another",
                "9:7: no job warms `x{name}`, which the input `env` asks for | write a job file with that key, or correct the input",
                "10:8: no job warms `lost:{name}`, which the input `lost` asks for | write a job file with that key, or correct the input",
                "11:7: key pattern `{x}` must begin with literal text, such as `x:{x}`",
                "12:9: no job warms `lost:{nam}`, which the input `table` asks for | write a job file with that key, or correct the input",
                "12:17: `{nam}` is no placeholder of the key `art:{name}` | did you mean `{name}`?",
                "12:42: `optional` must be true or false, not a string",
                "12:48: unknown field `more` in input `table` | known here: key, optional",
                "13:9: input `empty` has no `key` | add one, such as key = \"artist:{id}\"",
            ],
        ),
        (
            Whole("key = \"a:{x}\"\n[source]\nkind = \"compose\"\nvalue = \"{{ x }}\"\n"),
            &[concat!(
                "2:1: a source of kind `compose` makes its value from the job's inputs, and the job has none",
                r#" | add [inputs], such as artwork = "artwork_info:{artwork_name}""#
            )],
        ),
        (
            Append("[inputs]\nme = \"art:{name}\"\n"),
            &["7:6: jobs wait for each other: a → a | remove one of these inputs"],
        ),
    ]
}

#[test]
fn every_fault_has_its_place_and_its_remedy() {
    for (change, expected) in cases() {
        let text = change.text();
        let found = faults(&[("jobs/a.toml", &text), ("jobs/upstreams.toml", UPSTREAM)]);
        let expected: Vec<String> = expected.iter().map(|line| format!("jobs/a.toml:{line}")).collect();
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn a_feed_makes_at_most_a_thousand_entries_of_an_item() {
    let numbers: Vec<String> = (0..1_001).map(|number| number.to_string()).collect();
    let job = |numbers: &[String]| {
        let numbers = numbers.join(", ");
        GOOD.replace("art:{name}", "art:{page}:{name}")
            + &format!("[entries.feed]\nurl = \"http://x/\"\nwith = {{ page = [{numbers}] }}\n")
    };
    assert_eq!(faults(&[("a.toml", &job(&numbers[..1_000]))]), [] as [&str; 0]);
    assert_eq!(
        faults(&[("a.toml", &job(&numbers))]),
        [concat!(
            "a.toml:8:1: `with` makes 1001 entries of each item; the most is 1000 | ",
            "list fewer constants, or let the feed name the combinations that are needed"
        )]
    );
}
