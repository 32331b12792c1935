//! cloudflare.md, section by section.

use super::*;

fn verify(client: &mut Client, call: Call) -> (u16, Value) {
    let reply = client.ask(Api::Cloudflare, &call);
    (reply.status, reply.value())
}

/// §1.2, §1.4: envelope, bad and missing keys, wrong account.
#[test]
fn bad_keys_get_the_envelope_with_their_codes() {
    let mut client = Client::new(hubspot());
    let target = "/client/v4/accounts/x/storage/kv/namespaces";
    let (status, body) = verify(&mut client, Call::new("GET", target));
    assert_eq!((status, &body["errors"][0]["code"]), (400, &json!(6003)));
    let (status, body) = verify(&mut client, Call::new("GET", target).with_header("authorization", "Bearer x"));
    assert_eq!((status, &body["errors"][0]["code"], &body["success"]), (403, &json!(10000), &json!(false)));
    assert_eq!(client.call(Api::Cloudflare, "GET", target).status, 403);
    let ok = client.call(Api::Cloudflare, "GET", "/client/v4/user/tokens/verify");
    assert_eq!(ok.value()["result"]["status"], "active");
    assert!(ok.header("ratelimit").unwrap().starts_with("\"default\";r="));
}

/// §1.3: over the budget, all calls get 429 for five minutes.
#[test]
fn the_five_minute_limit_blocks_everything_for_five_minutes() {
    let options = WorldOptions { cloudflare_per_5_minutes: Some(2), ..WorldOptions::default() };
    let mut client = Client::new(World::with_options(config(vec![]), options));
    let status = |client: &mut Client| client.call(Api::Cloudflare, "GET", "/user/tokens/verify").status;
    assert_eq!([status(&mut client), status(&mut client), status(&mut client)], [200, 200, 429]);
    client.advance(4 * MINUTE_MS);
    assert_eq!(status(&mut client), 429);
    client.advance(MINUTE_MS + 1);
    assert_eq!(status(&mut client), 200);
}

/// §2.2: a page may be empty and not be the last.
#[test]
fn a_listing_may_have_pages_without_keys() {
    let options = WorldOptions { kv_empty_pages: 2, ..WorldOptions::default() };
    let mut client = Client::new(World::with_options(config(vec![]), options));
    let puts: Vec<Value> = (0..15).map(|n| json!({"key": format!("k{n:02}"), "value": "v"})).collect();
    client.kv("PUT", "target", "/bulk", &puts.into());
    let (mut sizes, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/keys?limit=10&prefix=k&cursor={cursor}");
        let page = client.kv("GET", "target", &path, &json!({})).value();
        sizes.push(page["result"].as_array().unwrap().len());
        cursor = page["result_info"]["cursor"].as_str().unwrap().replace('=', "%3D").replace('+', "%2B");
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(sizes, [0, 0, 10, 0, 0, 5]);
}

/// §2.2: UTF-8 order, prefix, metadata, and an end that is an empty cursor.
#[test]
fn listings_are_in_utf8_order_and_end_with_an_empty_cursor() {
    let mut client = Client::new(World::new(config(vec![])));
    let names = ["b", "a", "\u{ff61}", "\u{1f600}", "tokens:x"];
    let puts: Vec<Value> = names
        .into_iter()
        .map(str::to_owned)
        .chain((0..20).map(|n| format!("k{n:02}")))
        .map(|key| json!({"key": key, "value": "v", "metadata": {"n": key}}))
        .collect();
    assert_eq!(client.kv("PUT", "target", "/bulk", &puts.into()).value()["result"]["successful_key_count"], 25);
    let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = client.kv("GET", "target", &format!("/keys?limit=10&cursor={cursor}"), &json!({})).value();
        seen.extend(page["result"].as_array().unwrap().iter().map(|k| k["name"].as_str().unwrap().to_owned()));
        pages += 1;
        cursor = page["result_info"]["cursor"].as_str().unwrap().replace('=', "%3D").replace('+', "%2B");
        if cursor.is_empty() {
            break;
        }
    }
    let mut sorted = seen.clone();
    sorted.sort();
    assert_eq!((seen.len(), pages, &seen), (25, 3, &sorted));
    let some = client.kv("GET", "target", "/keys?prefix=tokens%3A", &json!({})).value();
    assert_eq!(some["result"], json!([{"name": "tokens:x", "metadata": {"n": "tokens:x"}}]));
    assert_eq!(client.kv("GET", "target", "/keys?limit=9", &json!({})).status, 400);
}

/// §2.3, §2.4: bulk get of 100 with null for missing keys; a put replaces value, metadata and expiry.
#[test]
fn values_read_back_and_puts_replace_everything() {
    let mut client = Client::new(World::new(config(vec![])));
    let far = START.secs() + 3_600;
    let puts = json!([{"key": "a", "value": "{\"x\":1}", "metadata": {"v": 1}, "expiration": far}, {"key": "b", "value": "aGk=", "base64": true}]);
    client.kv("PUT", "target", "/bulk", &puts);
    let got = client.kv("POST", "target", "/bulk/get", &json!({"keys": ["a", "b", "c"], "withMetadata": true})).value();
    let values = &got["result"]["values"];
    assert_eq!(values["a"], json!({"value": "{\"x\":1}", "metadata": {"v": 1}, "expiration": far}));
    assert_eq!((&values["b"]["value"], &values["c"]), (&json!("hi"), &json!(null)));
    let raw = client.kv("GET", "target", "/values/a", &json!({}));
    assert_eq!(
        (raw.body.as_slice(), raw.header("expiration")),
        (br#"{"x":1}"#.as_slice(), Some(far.to_string().as_str()))
    );
    assert_eq!(client.kv("GET", "target", "/metadata/a", &json!({})).value()["result"], json!({"v": 1}));
    client.advance(1_000);
    client.kv("PUT", "target", "/bulk", &json!([{"key": "a", "value": "y"}]));
    assert_eq!(client.kv("GET", "target", "/metadata/a", &json!({})).value()["result"], json!(null));
    let missing = client.kv("GET", "target", "/values/none", &json!({}));
    assert_eq!((missing.status, &missing.value()["errors"][0]["code"]), (404, &json!(10009)));
    let keys: Vec<String> = (0..101).map(|n| n.to_string()).collect();
    assert_eq!(client.kv("POST", "target", "/bulk/get", &json!({"keys": keys})).status, 400);
    let deleted = client.kv("POST", "target", "/bulk/delete", &json!(["a", "none"])).value();
    assert_eq!(deleted["result"]["unsuccessful_keys"], json!([]));
    assert_eq!(client.kv("GET", "target", "/values/a", &json!({})).status, 404);
}

/// §2.4: an entry is gone once its expiration has passed; less than 60 s ahead is refused.
#[test]
fn entries_expire() {
    let mut client = Client::new(World::new(config(vec![])));
    let put = |ttl: i64| json!([{"key": "a", "value": "v", "expiration_ttl": ttl}]);
    assert_eq!(client.kv("PUT", "target", "/bulk", &put(59)).status, 400);
    assert_eq!(client.kv("PUT", "target", "/bulk", &put(60)).status, 200);
    client.advance(MINUTE_MS);
    assert_eq!(client.kv("GET", "target", "/values/a", &json!({})).status, 404);
    assert_eq!(client.kv("GET", "target", "/keys", &json!({})).value()["result"], json!([]));
}

/// §2.7: one write a second to one key; 429 alone, `unsuccessful_keys` in bulk.
#[test]
fn a_key_takes_one_write_a_second() {
    let mut client = Client::new(World::new(config(vec![])));
    let put = json!([{"key": "a", "value": "v"}, {"key": "b", "value": "v"}]);
    assert_eq!(client.kv("PUT", "target", "/bulk", &json!([{"key": "a", "value": "v"}])).status, 200);
    client.advance(999);
    assert_eq!(
        client.kv("PUT", "target", "/bulk", &put).value()["result"],
        json!({"successful_key_count": 1, "unsuccessful_keys": ["a"]})
    );
    let single = client.kv("PUT", "target", "/values/a", &json!({}));
    assert_eq!((single.status, single.header("retry-after")), (429, Some("1")));
    client.advance(1);
    assert_eq!(client.kv("PUT", "target", "/values/a", &json!({})).status, 200);
}

/// §2.4, §2.7: keys, metadata, bulk sizes.
#[test]
fn limits_are_enforced() {
    let mut client = Client::new(World::new(config(vec![])));
    let long = "k".repeat(513);
    for bad in [
        json!([{"key": long, "value": "v"}]),
        json!([{"key": "", "value": "v"}]),
        json!([{"key": "..", "value": "v"}]),
        json!([{"key": "a", "value": "v", "metadata": {"m": "x".repeat(1_024)}}]),
        json!([{"key": "a", "value": {"not": "text"}}]),
        json!({"key": "a"}),
    ] {
        let reply = client.kv("PUT", "target", "/bulk", &bad);
        assert!((400..500).contains(&reply.status) && reply.value()["success"] == false, "{}", reply.value());
    }
    let many: Vec<Value> = (0..10_001).map(|n| json!({"key": n.to_string(), "value": ""})).collect();
    assert_eq!(client.kv("PUT", "target", "/bulk", &many.into()).status, 400);
    assert_eq!(client.world.ledger().kv_writes, 0);
}

/// §3.1: results per statement in both forms; SQL errors in the envelope.
#[test]
fn d1_answers_in_both_forms() {
    let mut client = Client::new(World::new(config(vec![])));
    let keys = client.world.keys();
    let target = |form: &str| {
        format!("/client/v4/accounts/{}/d1/database/{}/{form}", keys.cloudflare_account_id, keys.d1_database)
    };
    let rows =
        json!([{"op_id": "1", "at": "t", "key": "k", "action": "put", "source": "s", "fingerprint": null}]).to_string();
    let insert = "INSERT INTO kv_audit (op_id, at, key, action, source, fingerprint) SELECT value ->> 'op_id', value ->> 'at', value ->> 'key', value ->> 'action', value ->> 'source', value ->> 'fingerprint' FROM json_each(?1) WHERE true ON CONFLICT (op_id) DO NOTHING";
    for changes in [1, 0] {
        let reply =
            client.send(Api::Cloudflare, "POST", &target("raw"), &json!({"sql": insert, "params": [rows]})).value();
        assert_eq!(
            (&reply["result"][0]["success"], &reply["result"][0]["meta"]["changes"]),
            (&json!(true), &json!(changes))
        );
    }
    let batch = json!({"batch": [{"sql": "SELECT COUNT(*) AS n FROM kv_audit"}, {"sql": "SELECT 1"}]});
    let reply = client.send(Api::Cloudflare, "POST", &target("query"), &batch).value();
    assert_eq!(
        (reply["result"][0]["results"][0]["n"].as_u64(), reply["result"].as_array().unwrap().len()),
        (Some(1), 2)
    );
    let bad = client.send(Api::Cloudflare, "POST", &target("query"), &json!({"sql": "SELECT nope FROM kv_audit"}));
    assert_eq!((bad.status, &bad.value()["errors"][0]["code"]), (400, &json!(7500)));
    assert_eq!(
        client.send(Api::Cloudflare, "POST", &target("query"), &json!({"sql": "SELECT 1", "params": [1]})).status,
        400
    );
    assert_eq!(client.world.ledger().audit_rows, 1);
}

/// §4.1: ids without names, in order, with the cursor in both places.
#[test]
fn objects_are_listed_without_names() {
    let rows: Vec<Row> = (0..25).map(|n| row(&format!("t{n}"), "hubspot", &["hubspot"])).collect();
    let mut client = Client::new(World::new(config(rows)));
    let keys = client.world.keys();
    let base = format!("/client/v4/accounts/{}/workers/durable_objects/namespaces", keys.cloudflare_account_id);
    assert_eq!(client.call(Api::Cloudflare, "GET", &base).value()["result"][0]["class"], "TokenManager");
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client
            .call(Api::Cloudflare, "GET", &format!("{base}/{}/objects?limit=10&cursor={cursor}", keys.do_namespace))
            .value();
        ids.extend(page["result"].as_array().unwrap().iter().map(|o| o["id"].as_str().unwrap().to_owned()));
        assert_eq!(page["result_info"]["cursor"], page["result_info"]["cursors"]["after"]);
        page["result_info"]["cursor"].as_str().unwrap().clone_into(&mut cursor);
        if cursor.is_empty() {
            break;
        }
    }
    assert!(ids.is_sorted() && ids.len() == 25 && ids.iter().all(|id| id.len() == 64));
}
