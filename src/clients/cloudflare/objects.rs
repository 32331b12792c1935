//! Durable Objects as Cloudflare lists them: namespaces and ids. It knows no names and no alarms,
//! so this serves to find objects that no triplet accounts for, and nothing more.

use reqwest::Method;
use serde::Deserialize;

use super::CloudflareClient;
use crate::clients::http::{judged, segment};
use crate::clients::reply::contract;
use crate::ports::ApiResult;

/// Namespaces in one page, the most there is. An account has 500 classes at most.
const NAMESPACES_MAX: usize = 1_000;

/// Objects in one page, the most there is.
const OBJECTS_PAGE: usize = 10_000;

/// Pages after which a listing is given up: 10 million objects.
const PAGES_MAX: usize = 1_000;

const NAMESPACES: &str = "/workers/durable_objects/namespaces";
const OBJECTS: &str = "/workers/durable_objects/namespaces/{id}/objects";

/// A class of objects.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ObjectNamespace {
    pub id: String,
    /// The Worker that exports the class.
    #[serde(default)]
    pub script: Option<String>,
    #[serde(default)]
    pub class: Option<String>,
}

/// One object, by its 64 hex digits; its name cannot be had from them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct ObjectId {
    pub id: String,
    /// An armed alarm counts as data; the converse does not hold.
    #[serde(rename = "hasStoredData", default)]
    pub has_stored_data: bool,
}

impl CloudflareClient {
    /// The classes of Durable Objects in the account.
    ///
    /// # Errors
    /// When Cloudflare does not answer or refuses the token (`Workers Scripts Read` is needed).
    pub async fn list_object_namespaces(&self) -> ApiResult<Vec<ObjectNamespace>> {
        let request = self.request(Method::GET, NAMESPACES, NAMESPACES).query("per_page", &NAMESPACES_MAX.to_string());
        let line = request.line();
        judged(&line, self.call(request).await?.result())
    }

    /// All objects of a class, in the order of their ids, each once.
    ///
    /// # Errors
    /// As [`Self::list_object_namespaces`], and when the listing has no end.
    pub async fn list_objects(&self, namespace_id: &str) -> ApiResult<Vec<ObjectId>> {
        let line = self.request(Method::GET, OBJECTS, "").line();
        let id = judged(&line, segment(namespace_id))?;
        let path = format!("{NAMESPACES}/{id}/objects");
        let mut objects = std::collections::BTreeSet::new();
        let mut cursor: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let mut request = self.request(Method::GET, OBJECTS, &path).query("limit", &OBJECTS_PAGE.to_string());
            if let Some(cursor) = &cursor {
                request = request.query("cursor", cursor);
            }
            let envelope = self.call(request).await?;
            let next = envelope.cursor();
            objects.extend(judged(&line, envelope.result::<Vec<ObjectId>>())?);
            if next.is_none() {
                return Ok(objects.into_iter().collect());
            }
            if next == cursor {
                return Err(line.error(contract("a cursor that points to itself")));
            }
            cursor = next;
        }
        Err(line.error(contract("a listing without an end")))
    }
}
