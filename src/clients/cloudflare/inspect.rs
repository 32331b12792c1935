//! Workers KV for the verifier: listings and values as they are.

use std::collections::BTreeMap;

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::CloudflareClient;
use super::kv::{BULK_GET, BULK_GET_MAX, KEYS, WireKey};
use crate::clients::http::{BULK_BODY_BYTES_MAX, Request, judged, segment};
use crate::clients::reply::{contract, refused};
use crate::domain::secret::Secret;
use crate::ports::{ApiErrorKind, ApiResult, KeyListing, KvInspect, KvPlace, ListedKey, Namespace, StoredValue};

impl CloudflareClient {
    fn place_request(&self, method: Method, template: &'static str, place: &KvPlace, path: &str) -> ApiResult<Request> {
        match place {
            KvPlace::Gateway(namespace) => Ok(self.kv_request(method, template, *namespace, path)),
            KvPlace::Id(id) => {
                let line = self.kv_request(method.clone(), template, Namespace::Source, path).line();
                Ok(self.kv_request_to(method, template, &judged(&line, segment(id))?, path))
            }
        }
    }
}

impl KvInspect for CloudflareClient {
    async fn list_page(&self, place: &KvPlace, prefix: &str, cursor: Option<&str>) -> ApiResult<KeyListing> {
        let request = self.place_request(Method::GET, KEYS, place, "/keys")?;
        let (rows, cursor) = self.list(request, prefix, cursor).await?;
        let keys = rows.into_iter().map(|WireKey { name, expiration, metadata }| ListedKey {
            name,
            expiration,
            metadata: metadata.filter(|metadata| !metadata.is_null()),
        });
        Ok(KeyListing { keys: keys.collect(), cursor })
    }

    async fn read_values(&self, place: &KvPlace, keys: &[String]) -> ApiResult<BTreeMap<String, Option<StoredValue>>> {
        let request = self.place_request(Method::POST, BULK_GET, place, "/bulk/get")?;
        let line = request.line();
        if keys.is_empty() {
            return Ok(BTreeMap::new());
        }
        if keys.len() > BULK_GET_MAX {
            return Err(line.error(refused("too_many_keys")));
        }
        let mut request = request.json(&json!({"keys": keys, "type": "text", "withMetadata": true}));
        request.body_bytes_max = BULK_BODY_BYTES_MAX;
        let WireStored { mut values } = judged(&line, self.call(request).await?.result())?;
        let read = |key: &String| match values.remove(key) {
            None | Some(None) => Ok((key.clone(), None)),
            Some(Some(WireValue { value: Value::String(text), metadata, expiration })) => {
                let metadata = metadata.filter(|metadata| !metadata.is_null());
                Ok((key.clone(), Some(StoredValue { value: Secret::new(text), metadata, expiration })))
            }
            Some(Some(_)) => Err(contract("a value that is not a text")),
        };
        judged(&line, keys.iter().map(read).collect::<Result<_, ApiErrorKind>>())
    }
}

#[derive(Deserialize)]
struct WireStored {
    values: BTreeMap<String, Option<WireValue>>,
}

#[derive(Deserialize)]
struct WireValue {
    value: Value,
    #[serde(default)]
    metadata: Option<Value>,
    #[serde(default)]
    expiration: Option<i64>,
}
