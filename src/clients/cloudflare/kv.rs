//! Workers KV. A listing carries metadata, so the verifier reads no secret; values come and go
//! in bulk where they can, because one token shares 1,200 requests per 5 minutes.

use std::collections::{BTreeMap, HashSet};

use reqwest::Method;
use reqwest::multipart::Form;
use serde::Deserialize;
use serde_json::{Value, json};

use super::CloudflareClient;
use crate::clients::http::{BULK_BODY_BYTES_MAX, Payload, Request, judged, segment};
use crate::clients::reply::{contract, refused};
use crate::domain::time::Timestamp;
use crate::domain::token::{KvEntry, KvEntryError, KvMetadata};
use crate::ports::{ApiErrorKind, ApiResult, KvKey, KvPage, KvPut, KvRead, KvWrite, Namespace};

/// Keys in one page of a listing, the most there is.
const LIST_ROWS: usize = 1_000;

/// Keys in one bulk read.
pub(super) const BULK_GET_MAX: usize = 100;

/// Entries in one bulk write.
const BULK_PUT_MAX: usize = 10_000;

/// Bytes in one bulk write: Cloudflare takes 100 MB.
const BULK_PUT_BYTES_MAX: usize = 100 * 1_000 * 1_000;

const KEY_BYTES_MAX: usize = 512;
const METADATA_BYTES_MAX: usize = 1_024;
const VALUE_BYTES_MAX: usize = 25 * 1024 * 1024;

pub(super) const KEYS: &str = "/storage/kv/namespaces/{id}/keys";
const VALUE: &str = "/storage/kv/namespaces/{id}/values/{key}";
const BULK: &str = "/storage/kv/namespaces/{id}/bulk";
pub(super) const BULK_GET: &str = "/storage/kv/namespaces/{id}/bulk/get";

impl CloudflareClient {
    /// One page of a listing, with the cursor of the next one.
    pub(super) async fn list(
        &self,
        mut request: Request,
        prefix: &str,
        cursor: Option<&str>,
    ) -> ApiResult<(Vec<WireKey>, Option<String>)> {
        request = request.query("limit", &LIST_ROWS.to_string());
        if !prefix.is_empty() {
            request = request.query("prefix", prefix);
        }
        if let Some(cursor) = cursor {
            request = request.query("cursor", cursor);
        }
        let line = request.line();
        let envelope = self.call(request).await?;
        let next = envelope.cursor();
        if next.is_some() && next.as_deref() == cursor {
            return Err(line.error(contract("a cursor that points to itself")));
        }
        let rows: Vec<WireKey> = judged(&line, envelope.result())?;
        if rows.iter().any(|row| !row.name.starts_with(prefix)) {
            return Err(line.error(contract("keys outside the prefix asked for")));
        }
        Ok((rows, next))
    }

    fn value_request(&self, method: Method, namespace: Namespace, key: &str) -> ApiResult<Request> {
        let line = self.kv_request(method.clone(), VALUE, namespace, "").line();
        let path = judged(&line, check_key(key).and_then(|()| segment(key)))?;
        Ok(self.kv_request(method, VALUE, namespace, &format!("/values/{path}")))
    }

    async fn put_with(&self, request: Request, namespace: Namespace, put: &KvPut) -> ApiResult<()> {
        let line = request.line();
        judged(&line, check_put(put).and_then(|()| self.pace.check(namespace, &put.key, self.http.now())))?;
        // Metadata can travel only in a form; a put without it clears what was there.
        let mut form = Form::new().text("value", put.value.expose().to_owned());
        if let Some(metadata) = &put.metadata {
            form = form.text("metadata", metadata.to_string());
        }
        self.call(Request { payload: Payload::Multipart(form), ..request }).await?;
        self.pace.wrote(namespace, [put.key.as_str()], self.http.now());
        Ok(())
    }
}

impl KvRead for CloudflareClient {
    async fn list_keys(&self, namespace: Namespace, prefix: &str, cursor: Option<&str>) -> ApiResult<KvPage> {
        let request = self.kv_request(Method::GET, KEYS, namespace, "/keys");
        let (rows, cursor) = self.list(request, prefix, cursor).await?;
        Ok(KvPage { keys: rows.into_iter().map(WireKey::into_key).collect(), cursor })
    }

    async fn bulk_get(
        &self,
        namespace: Namespace,
        keys: &[String],
    ) -> ApiResult<BTreeMap<String, Option<Result<KvEntry, KvEntryError>>>> {
        let request = self.kv_request(Method::POST, BULK_GET, namespace, "/bulk/get");
        let line = request.line();
        if keys.is_empty() {
            return Ok(BTreeMap::new());
        }
        if keys.len() > BULK_GET_MAX {
            return Err(line.error(refused("too_many_keys")));
        }
        let mut request = request.json(&json!({"keys": keys, "type": "text", "withMetadata": false}));
        request.body_bytes_max = BULK_BODY_BYTES_MAX;
        let wire: WireValues = judged(&line, self.call(request).await?.result())?;
        let read = |key: &String| {
            let entry = match wire.values.get(key) {
                None | Some(Value::Null) => None,
                Some(Value::String(text)) => Some(KvEntry::from_json(text.as_bytes())),
                Some(_) => return Err(contract("a value that is not a text")),
            };
            Ok((key.clone(), entry))
        };
        judged(&line, keys.iter().map(read).collect::<Result<_, ApiErrorKind>>())
    }
}

impl KvWrite for CloudflareClient {
    async fn bulk_put(&self, namespace: Namespace, puts: &[KvPut]) -> ApiResult<Vec<String>> {
        let request = self.kv_request(Method::PUT, BULK, namespace, "/bulk").urgent();
        let line = request.line();
        if puts.is_empty() {
            return Ok(Vec::new());
        }
        judged(&line, check_unique(puts))?;
        let now = self.http.now();
        let (sent, held_back): (Vec<&KvPut>, Vec<&KvPut>) =
            puts.iter().partition(|put| self.pace.wait_ms(namespace, &put.key, now).is_none());
        let mut unwritten: Vec<String> = held_back.into_iter().map(|put| put.key.clone()).collect();
        if sent.is_empty() {
            return Ok(unwritten);
        }
        let body = judged(&line, bulk_body(&sent))?;
        let envelope = self.call(Request { payload: Payload::Json(body), ..request }).await?;
        let refused = match envelope.has_result() {
            false => Vec::new(),
            true => judged(&line, envelope.result::<WireBulkPut>().and_then(|wire| wire.unwritten(&sent)))?,
        };
        let written = sent.iter().map(|put| put.key.as_str()).filter(|key| !refused.iter().any(|r| r == key));
        self.pace.wrote(namespace, written, self.http.now());
        unwritten.extend(refused);
        Ok(unwritten)
    }

    async fn put(&self, namespace: Namespace, put: &KvPut) -> ApiResult<()> {
        let request = self.value_request(Method::PUT, namespace, &put.key)?.urgent();
        self.put_with(request, namespace, put).await
    }

    async fn put_until(&self, namespace: Namespace, put: &KvPut, expires_at: Timestamp) -> ApiResult<()> {
        let request = self.value_request(Method::PUT, namespace, &put.key)?.urgent();
        let expiration = expires_at.secs().to_string();
        self.put_with(request.query("expiration", &expiration), namespace, put).await
    }
    async fn delete(&self, namespace: Namespace, key: &str) -> ApiResult<()> {
        let request = self.value_request(Method::DELETE, namespace, key)?;
        judged(&request.line(), self.pace.check(namespace, key, self.http.now()))?;
        match self.call(request).await {
            // 10009 is the key that is already gone; an absent namespace (10013) is an error.
            Err(error) if error.kind == (ApiErrorKind::NotFound { code: "10009".to_owned() }) => {}
            other => drop(other?),
        }
        self.pace.wrote(namespace, [key], self.http.now());
        Ok(())
    }
}

fn check_key(key: &str) -> Result<(), ApiErrorKind> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX { Err(refused("unusable_key")) } else { Ok(()) }
}

fn check_put(put: &KvPut) -> Result<(), ApiErrorKind> {
    check_key(&put.key)?;
    segment(&put.key)?;
    if put.value.expose().len() > VALUE_BYTES_MAX {
        return Err(refused("value_too_large"));
    }
    if put.metadata.as_ref().is_some_and(|metadata| metadata.to_string().len() > METADATA_BYTES_MAX) {
        return Err(refused("metadata_too_large"));
    }
    Ok(())
}

/// Two values for one key in one write would leave the order to chance.
fn check_unique(puts: &[KvPut]) -> Result<(), ApiErrorKind> {
    let mut seen = HashSet::with_capacity(puts.len());
    if puts.iter().all(|put| seen.insert(put.key.as_str())) { Ok(()) } else { Err(refused("repeated_key")) }
}

fn bulk_body(puts: &[&KvPut]) -> Result<Vec<u8>, ApiErrorKind> {
    if puts.len() > BULK_PUT_MAX {
        return Err(refused("too_many_entries"));
    }
    let mut items = Vec::with_capacity(puts.len());
    for put in puts {
        check_put(put)?;
        let mut item = json!({"key": put.key, "value": put.value.expose()});
        if let Some(metadata) = &put.metadata {
            item["metadata"] = metadata.clone();
        }
        items.push(item);
    }
    let body = Value::Array(items).to_string().into_bytes();
    if body.len() > BULK_PUT_BYTES_MAX { Err(refused("body_too_large")) } else { Ok(body) }
}

#[derive(Deserialize)]
pub(super) struct WireKey {
    pub name: String,
    #[serde(default)]
    pub expiration: Option<i64>,
    #[serde(default)]
    pub metadata: Option<Value>,
}

impl WireKey {
    /// Metadata that is not ours makes the entry foreign, not the listing broken.
    fn into_key(self) -> KvKey {
        let metadata = self.metadata.and_then(|value| serde_json::from_value::<KvMetadata>(value).ok());
        KvKey { name: self.name, metadata }
    }
}

#[derive(Deserialize)]
struct WireValues {
    values: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct WireBulkPut {
    #[serde(default)]
    successful_key_count: Option<usize>,
    #[serde(default)]
    unsuccessful_keys: Option<Vec<String>>,
}

impl WireBulkPut {
    /// The keys to send again.
    ///
    /// # Errors
    /// When the counts do not add up: then nobody knows which keys are written.
    fn unwritten(self, puts: &[&KvPut]) -> Result<Vec<String>, ApiErrorKind> {
        let unwritten = self.unsuccessful_keys.unwrap_or_default();
        let keys: std::collections::BTreeSet<&str> = puts.iter().map(|put| put.key.as_str()).collect();
        if unwritten.iter().any(|key| !keys.contains(key.as_str())) {
            return Err(contract("unwritten keys that were not sent"));
        }
        // A key sent twice may be counted once.
        if self.successful_key_count.is_some_and(|written| written + unwritten.len() < keys.len()) {
            return Err(contract("fewer keys written and unwritten than sent"));
        }
        Ok(unwritten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::secret::{FingerprintKey, Secret};
    use crate::domain::token::Writer;

    fn put(key: &str, metadata: Option<Value>) -> KvPut {
        KvPut { key: key.into(), value: Secret::new("canary"), metadata }
    }

    #[test]
    fn metadata_that_is_not_ours_is_foreign() {
        let fp = FingerprintKey::new([1; 32]).fingerprint(&Secret::new("x"));
        let ours = json!({"v": 3, "fp": fp, "ep": 1, "src": "nango", "exp": 1_790_000_000});
        let key = |metadata: Value| {
            let row: WireKey = serde_json::from_value(json!({"name": "k", "metadata": metadata})).unwrap();
            row.into_key().metadata
        };
        assert_eq!(key(ours).map(|m| (m.v, m.src)), Some((3, Writer::Nango)));
        for foreign in [
            json!(null),
            json!("text"),
            json!({"v": 1}),
            json!([1]),
            json!({"v": -1, "fp": fp, "ep": 1, "src": "nango"}),
        ] {
            assert_eq!(key(foreign), None);
        }
        assert_eq!(serde_json::from_value::<WireKey>(json!({"name": "k"})).unwrap().into_key().metadata, None);
    }

    #[test]
    fn puts_beyond_the_limits_are_refused_before_sending() {
        for (bad, code) in [
            (put("", None), "unusable_key"),
            (put(&"k".repeat(513), None), "unusable_key"),
            (put("..", None), "unusable_id"),
            (put("k", Some(json!("m".repeat(1_024)))), "metadata_too_large"),
        ] {
            assert_eq!(bulk_body(&[&bad]).unwrap_err(), refused(code));
        }
        assert_eq!(bulk_body(&vec![&put("k", None); BULK_PUT_MAX + 1]).unwrap_err(), refused("too_many_entries"));
        let body: Value = serde_json::from_slice(&bulk_body(&[&put("k", Some(json!({"v": 1})))]).unwrap()).unwrap();
        assert_eq!(body, json!([{"key": "k", "value": "canary", "metadata": {"v": 1}}]));
    }

    #[test]
    fn a_partial_bulk_put_names_what_to_send_again() {
        let (a, b) = (put("a", None), put("b", None));
        let puts = [&a, &b];
        assert_eq!(check_unique(&[put("a", None), put("a", None)]), Err(refused("repeated_key")));
        let answer = |value: Value| serde_json::from_value::<WireBulkPut>(value).unwrap().unwritten(&puts);
        assert_eq!(answer(json!({"successful_key_count": 1, "unsuccessful_keys": ["b"]})), Ok(vec!["b".to_owned()]));
        assert_eq!(answer(json!({})), Ok(vec![]));
        assert!(answer(json!({"successful_key_count": 1, "unsuccessful_keys": []})).is_err());
        assert!(answer(json!({"unsuccessful_keys": ["other"]})).is_err());
    }
}
