//! One inventory in three formats is one value, and what is written can be read back.

use cutover::inventory::{Inventory, Source, read};

fn fixture(name: &str) -> Inventory {
    let path = format!("{}/fixtures/inventories/{name}", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).unwrap();
    read(&Source { name, bytes: &bytes, format: None, tenants: &[] }).unwrap_or_else(|e| panic!("error: {e}"))
}

#[test]
fn adr_038_reads_equal_from_markdown_csv_and_json() {
    let markdown = fixture("adr-038.md");
    assert_eq!((markdown.rows.len(), markdown.triplet_count()), (20, 28));
    assert_eq!(markdown, fixture("adr-038.csv"));
    assert_eq!(markdown, fixture("adr-038.json"));
    assert_eq!(markdown.rows[2].connection_id, "kahuna__gong-oauth__default");
}
