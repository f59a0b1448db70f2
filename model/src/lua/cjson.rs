//! `cjson`, as Redis has it: JSON to tables and back.

use mlua::{Lua, Table, Value};

use crate::commands::number::general;

/// The depth beyond which nothing is read or written.
const DEEPEST: usize = 1_000;

/// Returns the table `cjson`.
pub(super) fn table(lua: &Lua) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    table.set("null", Value::NULL)?;
    table.set(
        "decode",
        lua.create_function(|lua, text: mlua::LuaString| {
            let bytes = text.as_bytes();
            let mut reader = Reader { lua, bytes: &bytes, at: 0 };
            let value = reader.value(0)?;
            reader.blank();
            if reader.at < bytes.len() { Err(reader.unexpected("the end")) } else { Ok(value) }
        })?,
    )?;
    table.set(
        "encode",
        lua.create_function(|lua, value: Value| {
            let mut out = Vec::new();
            write(&value, &mut out, 0)?;
            lua.create_string(out)
        })?,
    )?;
    Ok(table)
}

fn failed(text: String) -> mlua::Error {
    mlua::Error::RuntimeError(text)
}

struct Reader<'a> {
    lua: &'a Lua,
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn unexpected(&self, expected: &str) -> mlua::Error {
        failed(format!("Expected {expected} but found invalid token at character {}", self.at + 1))
    }

    fn blank(&mut self) {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    /// Goes beyond a byte, if it is the next one.
    fn skip(&mut self, byte: u8) -> bool {
        self.blank();
        let is_next = self.bytes.get(self.at) == Some(&byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn value(&mut self, depth: usize) -> mlua::Result<Value> {
        if depth > DEEPEST {
            return Err(failed("Found too many nested data structures (1001)".into()));
        }
        if self.skip(b'{') {
            return self.object(depth).map(Value::Table);
        }
        if self.skip(b'[') {
            return self.array(depth).map(Value::Table);
        }
        let rest = &self.bytes[self.at..];
        if rest.first() == Some(&b'"') {
            return self.text().and_then(|text| self.lua.create_string(text)).map(Value::String);
        }
        let words = [("true", Value::Boolean(true)), ("false", Value::Boolean(false)), ("null", Value::NULL)];
        for (word, value) in words {
            if rest.starts_with(word.as_bytes()) {
                self.at += word.len();
                return Ok(value);
            }
        }
        let length =
            rest.iter().take_while(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')).count();
        let number = str::from_utf8(&rest[..length]).ok().and_then(|text| text.parse().ok());
        self.at += length;
        number.map(Value::Number).ok_or_else(|| self.unexpected("value"))
    }

    fn object(&mut self, depth: usize) -> mlua::Result<Table> {
        let table = self.lua.create_table()?;
        if self.skip(b'}') {
            return Ok(table);
        }
        loop {
            self.blank();
            if self.bytes.get(self.at) != Some(&b'"') {
                return Err(self.unexpected("object key string"));
            }
            let name = self.text().and_then(|name| self.lua.create_string(name))?;
            if !self.skip(b':') {
                return Err(self.unexpected("colon"));
            }
            table.raw_set(name, self.value(depth + 1)?)?;
            if self.skip(b'}') {
                return Ok(table);
            }
            if !self.skip(b',') {
                return Err(self.unexpected("comma or object end"));
            }
        }
    }

    fn array(&mut self, depth: usize) -> mlua::Result<Table> {
        let table = self.lua.create_table()?;
        if self.skip(b']') {
            return Ok(table);
        }
        for n in 1.. {
            table.raw_set(n, self.value(depth + 1)?)?;
            if self.skip(b']') {
                break;
            }
            if !self.skip(b',') {
                return Err(self.unexpected("comma or array end"));
            }
        }
        Ok(table)
    }

    fn text(&mut self) -> mlua::Result<Vec<u8>> {
        self.at += 1;
        let mut text = Vec::new();
        loop {
            let byte = *self.bytes.get(self.at).ok_or_else(|| self.unexpected("string end"))?;
            self.at += 1;
            match byte {
                b'"' => return Ok(text),
                b'\\' => self.escape(&mut text)?,
                0..=31 => return Err(self.unexpected("string")),
                _ => text.push(byte),
            }
        }
    }

    fn escape(&mut self, text: &mut Vec<u8>) -> mlua::Result<()> {
        let byte = *self.bytes.get(self.at).ok_or_else(|| self.unexpected("escape"))?;
        self.at += 1;
        let plain = match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let mut code = self.hex()?;
                if (0xd800..0xdc00).contains(&code) && self.bytes[self.at..].starts_with(b"\\u") {
                    self.at += 2;
                    code = 0x1_0000 + ((code - 0xd800) << 10) + (self.hex()?.wrapping_sub(0xdc00) & 0x3ff);
                }
                let letter = char::from_u32(code).ok_or_else(|| self.unexpected("unicode escape"))?;
                text.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(self.unexpected("escape code")),
        };
        text.push(plain);
        Ok(())
    }

    fn hex(&mut self) -> mlua::Result<u32> {
        let digits = self.bytes.get(self.at..self.at + 4).and_then(|digits| str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        self.at += 4;
        code.ok_or_else(|| self.unexpected("unicode escape"))
    }
}

fn write(value: &Value, out: &mut Vec<u8>, depth: usize) -> mlua::Result<()> {
    if depth > DEEPEST {
        return Err(failed("Cannot serialise, excessive depth (1001)".into()));
    }
    match value {
        Value::Boolean(truth) => out.extend_from_slice(truth.to_string().as_bytes()),
        Value::Integer(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::Number(number) if number.is_finite() => out.extend_from_slice(general(*number, 14).as_bytes()),
        Value::Number(_) => return Err(failed("Cannot serialise number: must not be NaN or Inf".into())),
        Value::String(text) => write_text(&text.as_bytes(), out),
        Value::Table(table) => write_table(table, out, depth)?,
        value if value.is_null() || value.is_nil() => out.extend_from_slice(b"null"),
        other => return Err(failed(format!("Cannot serialise {}: type not supported", other.type_name()))),
    }
    Ok(())
}

fn write_text(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'/' => out.extend_from_slice(b"\\/"),
            8 => out.extend_from_slice(b"\\b"),
            12 => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..=31 | 127 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
}

fn write_table(table: &Table, out: &mut Vec<u8>, depth: usize) -> mlua::Result<()> {
    let length = table.raw_len();
    let mut pairs = Vec::new();
    for pair in table.pairs::<Value, Value>() {
        pairs.push(pair?);
    }
    if length > 0 && pairs.len() == length {
        out.push(b'[');
        for n in 1..=length {
            if n > 1 {
                out.push(b',');
            }
            write(&table.raw_get::<Value>(n)?, out, depth + 1)?;
        }
        out.push(b']');
        return Ok(());
    }
    out.push(b'{');
    for (n, (name, value)) in pairs.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        match name {
            Value::String(name) => write_text(&name.as_bytes(), out),
            Value::Number(number) => write_text(general(*number, 14).as_bytes(), out),
            Value::Integer(number) => write_text(number.to_string().as_bytes(), out),
            _ => return Err(failed("Cannot serialise table: table key must be a number or string".into())),
        }
        out.push(b':');
        write(value, out, depth + 1)?;
    }
    out.push(b'}');
    Ok(())
}
