//! Grows an inventory with synthetic connections, to see how a cutover behaves at size.

use crate::domain::triplet::Part;
use crate::inventory::{Inventory, Row};

/// Repeats the given rows for synthetic tenants until there are `connections` rows. The rows
/// given stay as they are; fewer connections than rows keeps the first ones in canonical order.
pub fn grow(inventory: &Inventory, connections: usize) -> Inventory {
    let mut rows: Vec<Row> = inventory.rows.iter().take(connections).cloned().collect();
    if inventory.rows.is_empty() {
        return Inventory { rows };
    }
    // One template per integration key, so that every synthetic tenant is an ordinary one.
    let mut templates: Vec<&Row> = Vec::new();
    for row in &inventory.rows {
        if !templates.iter().any(|t| t.integration_key == row.integration_key) {
            templates.push(row);
        }
    }
    let taken: std::collections::BTreeSet<&Part> = inventory.rows.iter().map(|r| &r.tenant).collect();
    let mut n = 0;
    while rows.len() < connections {
        n += 1;
        let tenant = Part::new(&format!("tenant-{n:05}")).expect("letters, digits and a hyphen");
        if taken.contains(&tenant) {
            continue;
        }
        for template in templates.iter().take(connections - rows.len()) {
            let mut row = Row { tenant: tenant.clone(), ..(*template).clone() };
            row.connection_id = row.conventional_id();
            rows.push(row);
        }
    }
    rows.sort();
    Inventory { rows }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grown_inventories_have_the_asked_size_and_unique_triplets() {
        let text =
            "tenant,integration_key,providers,account\nkahuna,google,\"ga4,gsc\",default\nkahuna,slack,slack,default\n";
        let source = crate::inventory::Source { name: "t.csv", bytes: text.as_bytes(), format: None, tenants: &[] };
        let small = crate::inventory::read(&source).unwrap();
        for n in [1, 2, 3, 101] {
            let grown = grow(&small, n);
            assert_eq!(grown.rows.len(), n);
            let mut names: Vec<_> = grown.rows.iter().flat_map(|r| r.triplets().collect::<Vec<_>>()).collect();
            let all = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), all);
        }
    }
}
