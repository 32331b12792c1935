//! Workers KV over REST (cloudflare.md §2).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::sandbox::http::{Call, Reply};
use crate::sandbox::world::World;

use super::Put;
use super::http::{failure, success};

const KEY_BYTES_MAX: usize = 512;
const METADATA_BYTES_MAX: usize = 1_024;
const VALUE_BYTES_MAX: usize = 25 * 1_024 * 1_024;
const BULK_PUT_MAX: usize = 10_000;
const BULK_GET_MAX: usize = 100;
const LIFE_S_MIN: i64 = 60;

/// Stands in a cursor for a page without keys.
const EMPTY_PAGE: char = '\0';

impl World {
    pub(super) fn kv_route(&mut self, call: &Call, namespace: usize, route: &[&str]) -> Reply {
        match (call.method.as_str(), route) {
            ("GET", []) => {
                let keys = self.keys_ref();
                let (id, title) =
                    if namespace == 0 { (&keys.kv_source, "TOKENS") } else { (&keys.kv_target, "TOKENS_NEXT") };
                success(json!({"id": id, "title": title, "supports_url_encoding": true}), None)
            }
            ("GET", ["keys"]) => self.kv_list(call, namespace),
            ("GET", ["values", key]) => match self.cloudflare.get(namespace, key, self.now()) {
                Some(entry) => {
                    let reply = Reply::raw(200, "application/octet-stream", entry.value.clone());
                    match entry.expiration {
                        Some(at) => reply.with_header("expiration", at),
                        None => reply,
                    }
                }
                None => failure(404, 10009, "get: 'key not found'"),
            },
            ("GET", ["metadata", key]) => match self.cloudflare.get(namespace, key, self.now()) {
                Some(entry) => success(entry.metadata.clone().unwrap_or(Value::Null), None),
                None => failure(404, 10009, "get: 'key not found'"),
            },
            ("PUT", ["values", key]) => self.kv_put_one(call, namespace, key),
            ("DELETE", ["values", key]) => {
                self.kv_delete(namespace, key);
                success(json!({}), None)
            }
            ("POST", ["bulk", "get"]) => self.kv_bulk_get(call, namespace),
            ("PUT", ["bulk"]) => self.kv_bulk_put(call, namespace),
            ("POST", ["bulk", "delete"]) | ("DELETE", ["bulk"]) => self.kv_bulk_delete(call, namespace),
            _ => failure(404, 7003, "Could not route to the requested path"),
        }
    }

    /// §2.2: UTF-8 order; the end is an empty cursor; 10 to 1000 keys a page; a page may be empty and
    /// not be the last. A cursor is the last key, behind a byte for each empty page since.
    fn kv_list(&self, call: &Call, namespace: usize) -> Reply {
        let limit = match call.param("limit").map(str::parse::<usize>) {
            None => 1_000,
            Some(Ok(n)) if (10..=1_000).contains(&n) => n,
            Some(_) => return failure(400, 10001, "limit must be between 10 and 1000"),
        };
        let after = match call.param("cursor").filter(|c| !c.is_empty()) {
            None => None,
            Some(cursor) => match STANDARD.decode(cursor).ok().and_then(|b| String::from_utf8(b).ok()) {
                Some(key) => Some(key),
                None => return failure(400, 10001, "cursor is not valid"),
            },
        };
        let prefix = call.param("prefix").unwrap_or_default();
        let key = after.as_deref().map(|after| after.trim_start_matches(EMPTY_PAGE));
        let empty = after.as_ref().zip(key).map_or(0, |(after, key)| after.len() - key.len());
        if empty < self.options().kv_empty_pages {
            let cursor = format!("{}{}", EMPTY_PAGE.to_string().repeat(empty + 1), key.unwrap_or_default());
            return success(json!([]), Some(json!({"count": 0, "cursor": STANDARD.encode(cursor)})));
        }
        let from = match key {
            Some(key) if key >= prefix && !key.is_empty() => std::ops::Bound::Excluded(key),
            _ => std::ops::Bound::Included(prefix),
        };
        let now = self.now();
        let mut found = self.cloudflare.namespaces[namespace]
            .range::<str, _>((from, std::ops::Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(_, e)| e.expiration.is_none_or(|s| s > now.secs()));
        let mut shown = Vec::new();
        let mut last = "";
        for (key, entry) in found.by_ref().take(limit) {
            let mut row = Map::new();
            row.insert("name".into(), key.as_str().into());
            if let Some(at) = entry.expiration {
                row.insert("expiration".into(), at.into());
            }
            if let Some(metadata) = &entry.metadata {
                row.insert("metadata".into(), metadata.clone());
            }
            shown.push(Value::Object(row));
            last = key;
        }
        let cursor = if found.next().is_some() { STANDARD.encode(last) } else { String::new() };
        let info = json!({"count": shown.len(), "cursor": cursor});
        success(shown.into(), Some(info))
    }

    fn kv_put_one(&mut self, call: &Call, namespace: usize, key: &str) -> Reply {
        let put = match self.kv_read_put(call, key) {
            Ok(put) => put,
            Err(reply) => return reply,
        };
        match self.kv_put(namespace, put) {
            Ok(()) => success(json!({}), None),
            Err(super::TooSoon) => {
                failure(429, 10048, "KV PUT failed: 429 Too Many Requests").with_header("retry-after", 1)
            }
        }
    }

    /// What a put of one value asks for, or why it is refused.
    fn kv_read_put(&self, call: &Call, key: &str) -> Result<Put, Reply> {
        let kind = call.header("content-type").unwrap_or_default();
        let (value, metadata) = if let Some(boundary) = boundary(kind) {
            let parts = multipart(&call.body, boundary);
            let part = |name: &str| parts.iter().find(|(n, _)| n == name).map(|(_, body)| body.clone());
            let value = part("value").ok_or_else(|| failure(400, 10001, "part `value` is missing"))?;
            let metadata = match part("metadata").map(|text| serde_json::from_slice::<Value>(&text)) {
                None => None,
                Some(Ok(metadata)) => Some(metadata),
                Some(Err(_)) => return Err(failure(400, 10001, "metadata must be JSON")),
            };
            (value, metadata)
        } else {
            (call.body.clone(), None)
        };
        let number = |name: &str| call.param(name).map(str::parse::<i64>);
        let (Ok(expiration), Ok(ttl)) = (number("expiration").transpose(), number("expiration_ttl").transpose()) else {
            return Err(failure(400, 10001, "expiration must be whole seconds"));
        };
        self.kv_check(key, value, metadata, expiration, ttl)
    }

    /// Limits of §2.4 and §2.7.
    fn kv_check(
        &self,
        key: &str,
        value: Vec<u8>,
        metadata: Option<Value>,
        expiration: Option<i64>,
        ttl: Option<i64>,
    ) -> Result<Put, Reply> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX || key == "." || key == ".." {
            return Err(failure(414, 10030, "key must have 1 to 512 bytes and not be `.` or `..`"));
        }
        if value.len() > VALUE_BYTES_MAX {
            return Err(failure(413, 10024, "value must not exceed 25 MiB"));
        }
        let metadata = metadata.filter(|m| !m.is_null());
        if metadata.as_ref().is_some_and(|m| m.to_string().len() > METADATA_BYTES_MAX) {
            return Err(failure(413, 10022, "metadata must not exceed 1024 bytes"));
        }
        let now = self.now().secs();
        let at = ttl.map(|s| now.saturating_add(s)).or(expiration);
        if at.is_some_and(|at| at < now + LIFE_S_MIN) {
            return Err(failure(400, 10001, "expiration must be at least 60 seconds ahead"));
        }
        Ok(Put { key: key.to_owned(), value, metadata, expiration: at })
    }

    fn kv_bulk_get(&self, call: &Call, namespace: usize) -> Reply {
        let body = call.json().unwrap_or(Value::Null);
        let Some(keys) = body["keys"].as_array() else { return failure(400, 10001, "keys must be an array") };
        if keys.len() > BULK_GET_MAX {
            return failure(400, 10001, "at most 100 keys");
        }
        let (as_json, with_metadata) = (body["type"] == "json", body["withMetadata"] == true);
        let now = self.now();
        let mut values = Map::new();
        for key in keys.iter().filter_map(Value::as_str) {
            let shown = match self.cloudflare.get(namespace, key, now) {
                None => Value::Null,
                Some(entry) => {
                    let Ok(text) = std::str::from_utf8(&entry.value) else {
                        return failure(400, 10001, "binary values cannot be read in bulk");
                    };
                    let value = if as_json {
                        match serde_json::from_str(text) {
                            Ok(value) => value,
                            Err(_) => return failure(400, 10001, "a value is not JSON"),
                        }
                    } else {
                        Value::from(text)
                    };
                    if with_metadata {
                        let mut shown = json!({"value": value, "metadata": entry.metadata});
                        if let Some(at) = entry.expiration {
                            shown["expiration"] = at.into();
                        }
                        shown
                    } else {
                        value
                    }
                }
            };
            values.insert(key.to_owned(), shown);
        }
        success(json!({"values": values}), None)
    }

    /// §2.4: partial answers; a key written less than a second ago is among the unsuccessful.
    fn kv_bulk_put(&mut self, call: &Call, namespace: usize) -> Reply {
        let puts = match self.kv_read_bulk_put(call) {
            Ok(puts) => puts,
            Err(reply) => return reply,
        };
        let total = puts.len();
        let mut refused = Vec::new();
        for put in puts {
            let key = put.key.clone();
            if self.kv_put(namespace, put).is_err() {
                refused.push(key);
            }
        }
        success(json!({"successful_key_count": total - refused.len(), "unsuccessful_keys": refused}), None)
    }

    /// What a bulk put asks for, or why it is refused as a whole.
    fn kv_read_bulk_put(&self, call: &Call) -> Result<Vec<Put>, Reply> {
        let Some(Value::Array(items)) = call.json() else {
            return Err(failure(400, 10001, "the body must be an array"));
        };
        if items.len() > BULK_PUT_MAX {
            return Err(failure(400, 10001, "at most 10000 entries"));
        }
        let mut puts = Vec::with_capacity(items.len());
        for item in &items {
            let (Some(key), Some(text)) = (item["key"].as_str(), item["value"].as_str()) else {
                return Err(failure(400, 10001, "each entry needs a key and a text value"));
            };
            let value = if item["base64"] == true {
                STANDARD.decode(text).map_err(|_| failure(400, 10001, "a value is not base64"))?
            } else {
                text.as_bytes().to_vec()
            };
            let metadata = item.get("metadata").cloned();
            puts.push(self.kv_check(
                key,
                value,
                metadata,
                item["expiration"].as_i64(),
                item["expiration_ttl"].as_i64(),
            )?);
        }
        Ok(puts)
    }

    /// Books what another runtime answered to a call on KV: the same call there and here leaves
    /// the same entries behind.
    pub(super) fn kv_follow(&mut self, call: &Call, namespace: usize, route: &[&str], reply: &Reply) {
        match (call.method.as_str(), route) {
            ("PUT", ["values", key]) => {
                if let Ok(put) = self.kv_read_put(call, key) {
                    self.kv_book(namespace, put);
                }
            }
            ("PUT", ["bulk"]) => {
                let answer = reply.value();
                let unwritten = answer["result"]["unsuccessful_keys"].as_array().cloned().unwrap_or_default();
                for put in self.kv_read_bulk_put(call).unwrap_or_default() {
                    if !unwritten.iter().any(|key| key == put.key.as_str()) {
                        self.kv_book(namespace, put);
                    }
                }
            }
            ("DELETE", ["values", key]) => self.kv_delete(namespace, key),
            ("POST", ["bulk", "delete"]) | ("DELETE", ["bulk"]) => {
                self.kv_bulk_delete(call, namespace);
            }
            _ => {}
        }
    }

    fn kv_bulk_delete(&mut self, call: &Call, namespace: usize) -> Reply {
        let Some(Value::Array(keys)) = call.json() else { return failure(400, 10001, "the body must be an array") };
        if keys.len() > BULK_PUT_MAX {
            return failure(400, 10001, "at most 10000 keys");
        }
        for key in keys.iter().filter_map(Value::as_str) {
            self.kv_delete(namespace, key);
        }
        success(json!({"successful_key_count": keys.len(), "unsuccessful_keys": []}), None)
    }
}

/// The boundary of a `multipart/form-data` content type.
fn boundary(content_type: &str) -> Option<&str> {
    let rest = content_type.strip_prefix("multipart/form-data")?;
    let text = rest.split(';').find_map(|p| p.trim().strip_prefix("boundary="))?;
    Some(text.trim_matches('"')).filter(|b| !b.is_empty())
}

/// Names and bodies of the parts of a form. Parts without a name are left out.
fn multipart(body: &[u8], boundary: &str) -> Vec<(String, Vec<u8>)> {
    let delimiter = format!("--{boundary}").into_bytes();
    let mut parts = Vec::new();
    let mut rest = body;
    while let Some(at) = find(rest, &delimiter) {
        rest = &rest[at + delimiter.len()..];
        let Some(end) = find(rest, &delimiter) else { break };
        let part = &rest[..end];
        if let Some(split) = find(part, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&part[..split]).into_owned();
            let name = head.split("name=\"").nth(1).and_then(|r| r.split('"').next());
            let content = &part[split + 4..];
            let content = content.strip_suffix(b"\r\n").unwrap_or(content);
            if let Some(name) = name {
                parts.push((name.to_owned(), content.to_vec()));
            }
        }
    }
    parts
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len().max(1)).position(|w| w == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_parts_are_read_to_the_byte() {
        let body = b"--x\r\nContent-Disposition: form-data; name=\"value\"\r\n\r\na\r\nb\r\n--x\r\nContent-Disposition: form-data; name=\"metadata\"\r\n\r\n{}\r\n--x--\r\n";
        let parts = multipart(body, boundary("multipart/form-data; boundary=\"x\"").unwrap());
        assert_eq!(parts, [("value".to_owned(), b"a\r\nb".to_vec()), ("metadata".to_owned(), b"{}".to_vec())]);
        assert_eq!(multipart(b"--x", "x"), []);
        assert_eq!(boundary("application/json"), None);
    }
}
