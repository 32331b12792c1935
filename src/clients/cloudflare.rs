//! Cloudflare: the gateway's two KV namespaces, the audit table in D1, and the listing of objects.
//!
//! Every success and failure comes in one envelope whose `success` flag is the verdict; the HTTP
//! status is only the class of retry. The base URL is one setting, so that the same code speaks
//! to production and to the API of a local Workers runtime.

mod audit_table;
mod d1;
mod envelope;
mod inspect;
mod kv;
mod objects;
mod pace;

use std::sync::Arc;

use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, Url};

pub use self::d1::INSERT_AUDIT_SQL;
use self::envelope::Envelope;
pub use self::objects::{ObjectId, ObjectNamespace};
use self::pace::KeyPace;
use super::http::{Http, Request, join, judged, segment};
use super::{CloudflareEndpoint, SetupError, key_header};
use crate::ports::{Api, ApiResult, Namespace};

/// One account's KV, D1 and Durable Objects.
pub struct CloudflareClient {
    http: Arc<Http>,
    base: Url,
    token: HeaderValue,
    /// Ids, encoded as path segments.
    kv_source: String,
    kv_target: String,
    d1: String,
    pace: KeyPace,
}

impl CloudflareClient {
    pub(super) fn new(http: Arc<Http>, endpoint: CloudflareEndpoint) -> Result<Self, SetupError> {
        let id = |what, text: &str| segment(text).map_err(|_| SetupError::Id { api: Api::Cloudflare, what });
        Ok(Self {
            http,
            token: key_header(Api::Cloudflare, "token", "Bearer ", &endpoint.token)?,
            kv_source: id("source namespace id", &endpoint.kv_source)?,
            kv_target: id("target namespace id", &endpoint.kv_target)?,
            d1: id("database id", &endpoint.d1)?,
            base: endpoint.base,
            pace: KeyPace::default(),
        })
    }

    /// `path` goes behind the namespace and is encoded already.
    fn kv_request(&self, method: Method, template: &'static str, namespace: Namespace, path: &str) -> Request {
        let id = match namespace {
            Namespace::Source => &self.kv_source,
            Namespace::Target => &self.kv_target,
        };
        self.kv_request_to(method, template, id, path)
    }

    /// As [`Self::kv_request`], to the namespace with this id, which is a path segment already.
    fn kv_request_to(&self, method: Method, template: &'static str, id: &str, path: &str) -> Request {
        self.request(method, template, &format!("/storage/kv/namespaces/{id}{path}"))
    }

    fn request(&self, method: Method, template: &'static str, path: &str) -> Request {
        Request::new(Api::Cloudflare, method, template, join(&self.base, path))
            .header(AUTHORIZATION, self.token.clone())
    }

    async fn call(&self, request: Request) -> ApiResult<Envelope> {
        let line = request.line();
        let reply = self.http.send(request).await?;
        judged(&line, envelope::judge(&reply))
    }
}
