//! Which source grants move together.
//!
//! The assignment must not depend on the order of the input, and one more connection must not
//! reshuffle the others. So each grant has a rank and an endless list of preferred waves, both
//! hashed from its name alone; in order of rank, each takes its first preference that still has
//! room. A newcomer can only push aside grants of lower rank, and only out of full waves. The
//! preferences use a jump hash: when the number of waves grows, they change only towards the new one.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::policy::WavePolicy;

/// How full a wave is meant to be. Room to spare keeps the chains short that a newcomer starts.
const FILL: f64 = 0.8;

/// A source grant that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MovingUnit<'a> {
    pub tenant: &'a str,
    pub integration_key: &'a str,
    pub connection_id: &'a str,
    /// The sum of its hazards' weights.
    pub risk: u32,
}

impl MovingUnit<'_> {
    fn rank(&self) -> u64 {
        let mut hash = Sha256::new();
        for part in [self.tenant, self.integration_key, self.connection_id] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        u64::from_be_bytes(hash.finalize()[..8].try_into().expect("a SHA-256 has 32 bytes"))
    }
}

/// The wave of each unit, from 1; wave 1 holds the canaries when the policy wants any. `units`
/// are distinct, in any order.
pub(crate) fn assign(units: &[MovingUnit<'_>], policy: &WavePolicy) -> Vec<u32> {
    let ranks: Vec<u64> = units.iter().map(MovingUnit::rank).collect();
    let mut order: Vec<usize> = (0..units.len()).collect();
    order.sort_by_key(|&i| (ranks[i], units[i].tenant, units[i].integration_key, units[i].connection_id));
    let mut waves = vec![0; units.len()];
    let canaries = choose_canaries(units, &order, policy.canary_size as usize);
    for &i in &canaries {
        waves[i] = 1;
    }
    let first = u32::from(!canaries.is_empty());
    let rest: Vec<usize> = order.into_iter().filter(|&i| waves[i] == 0).collect();
    let capacity = policy.size_max.max(1) as usize;
    let tenants = rest.iter().map(|&i| (units[i].tenant, ())).collect::<BTreeMap<_, _>>().len().max(1);
    let share = policy.tenant_share_max.max(1.0 / tenants as f64);
    let per_tenant = ((capacity as f64 * share).ceil() as usize).clamp(1, capacity);
    let mut count =
        if rest.len() <= capacity { 1 } else { (rest.len() as f64 / (capacity as f64 * FILL)).ceil() as usize };
    let placed = loop {
        if let Some(placed) = place(units, &ranks, &rest, count, capacity, per_tenant) {
            break placed;
        }
        // One tenant has more than its share of all waves: it needs more of them.
        count += count.div_ceil(8);
    };
    let mut used = vec![false; count];
    placed.iter().for_each(|&w| used[w] = true);
    let mut number = vec![0; count];
    let mut next = first;
    for (w, used) in used.into_iter().enumerate() {
        if used {
            next += 1;
            number[w] = next;
        }
    }
    for (&i, w) in rest.iter().zip(placed) {
        waves[i] = number[w];
    }
    waves
}

/// The least risky unit of each tenant, then the second of each, until there are enough; among
/// tenants the least risky first.
fn choose_canaries(units: &[MovingUnit<'_>], order: &[usize], wanted: usize) -> Vec<usize> {
    if wanted == 0 {
        return Vec::new();
    }
    let mut by_tenant: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for &i in order {
        by_tenant.entry(units[i].tenant).or_default().push(i);
    }
    let mut candidates = Vec::new();
    for list in by_tenant.values_mut() {
        // Stable: equal risk stays in order of rank.
        list.sort_by_key(|&i| units[i].risk);
        candidates.extend(list.iter().take(wanted).enumerate().map(|(round, &i)| (round, units[i].risk, i)));
    }
    let mut place = vec![0; units.len()];
    order.iter().enumerate().for_each(|(rank, &i)| place[i] = rank);
    candidates.sort_by_key(|&(round, risk, i)| (round, risk, place[i]));
    candidates.into_iter().take(wanted).map(|(_, _, i)| i).collect()
}

/// The wave of each of `rest`, from 0, or `None` when one finds no room.
fn place(
    units: &[MovingUnit<'_>],
    ranks: &[u64],
    rest: &[usize],
    count: usize,
    capacity: usize,
    per_tenant: usize,
) -> Option<Vec<usize>> {
    let mut total = vec![0; count];
    let mut of_tenant: BTreeMap<(&str, usize), usize> = BTreeMap::new();
    rest.iter()
        .map(|&i| {
            let tenant = units[i].tenant;
            let wave = preferences(ranks[i], count)
                .find(|&w| total[w] < capacity && of_tenant.get(&(tenant, w)).copied().unwrap_or(0) < per_tenant)?;
            total[wave] += 1;
            *of_tenant.entry((tenant, wave)).or_default() += 1;
            Some(wave)
        })
        .collect()
}

/// Every wave at least once, the hashed preferences first.
fn preferences(rank: u64, count: usize) -> impl Iterator<Item = usize> {
    let hashed = (0..64).map(move |i| jump_hash(mix(rank.wrapping_add(i)), count));
    let start = jump_hash(mix(!rank), count);
    hashed.chain((0..count).map(move |i| (start + i) % count))
}

/// SplitMix64's finaliser.
const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Lamping and Veach's jump consistent hash: a bucket of 0 to `count` - 1.
fn jump_hash(mut key: u64, count: usize) -> usize {
    let (mut bucket, mut next) = (0, 0);
    while next < count as i64 {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        next = ((bucket + 1) as f64 * ((1u64 << 31) as f64 / ((key >> 33) + 1) as f64)) as i64;
    }
    bucket as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unit<'a>(tenant: &'a str, id: &'a str, risk: u32) -> MovingUnit<'a> {
        MovingUnit { tenant, integration_key: "google", connection_id: id, risk }
    }

    fn policy(canary_size: u32, size_max: u32, tenant_share_max: f64) -> WavePolicy {
        WavePolicy { canary_size, size_max, tenant_share_max, ..WavePolicy::default() }
    }

    #[test]
    fn canaries_are_the_least_risky_and_of_different_tenants() {
        let units = [unit("a", "1", 0), unit("a", "2", 1), unit("b", "3", 9), unit("b", "4", 5)];
        assert_eq!(assign(&units, &policy(2, 50, 1.0)), [1, 2, 2, 1]);
    }

    #[test]
    fn nothing_to_move_makes_no_wave() {
        assert!(assign(&[], &policy(2, 50, 0.5)).is_empty());
    }

    #[test]
    fn preferences_move_only_towards_a_new_wave() {
        for rank in 0..200 {
            let before: Vec<_> = preferences(rank, 9).take(64).collect();
            let after: Vec<_> = preferences(rank, 10).take(64).collect();
            assert!(before.iter().zip(&after).all(|(b, a)| a == b || *a == 9));
        }
    }

    proptest! {
        #[test]
        fn limits_hold_and_order_does_not_matter(
            sizes in prop::collection::vec(0usize..60, 1..5),
            canary in 0u32..4, size in 1u32..12, share in 0.1f64..=1.0, rotate in 0usize..50,
        ) {
            let names: Vec<(String, String)> = sizes.iter().enumerate()
                .flat_map(|(t, n)| (0..*n).map(move |i| (format!("t{t}"), format!("c{i}")))).collect();
            let mut units: Vec<_> = names.iter().map(|(t, c)| unit(t, c, c.len() as u32)).collect();
            let policy = policy(canary, size, share);
            let waves = assign(&units, &policy);
            let by_name: BTreeMap<_, _> = units.iter().map(|u| (u.tenant, u.connection_id)).zip(waves.clone()).collect();
            let shift = rotate % units.len().max(1);
            units.rotate_left(shift);
            for (u, w) in units.iter().zip(assign(&units, &policy)) {
                prop_assert_eq!(by_name[&(u.tenant, u.connection_id)], w);
            }
            let last = waves.iter().max().copied().unwrap_or(0);
            for n in 1..=last {
                let members = waves.iter().filter(|w| **w == n).count();
                prop_assert!(members > 0);
                prop_assert!(members <= size.max(canary) as usize);
            }
        }

        /// With room in every wave a newcomer moves nobody.
        #[test]
        fn a_newcomer_moves_nobody_out_of_waves_with_room(n in 1usize..40) {
            let names: Vec<String> = (0..=n).map(|i| format!("c{i}")).collect();
            let units: Vec<_> = names.iter().map(|c| unit("t", c, 0)).collect();
            let policy = policy(0, 50, 1.0);
            prop_assert_eq!(&assign(&units[..n], &policy)[..], &assign(&units, &policy)[..n]);
        }

        /// Many waves: a newcomer that adds no wave moves a few at most.
        #[test]
        fn a_newcomer_moves_few_out_of_full_waves(n in 200usize..400) {
            let names: Vec<String> = (0..=n).map(|i| format!("c{i}")).collect();
            let units: Vec<_> = names.iter().map(|c| unit("t", c, 0)).collect();
            let policy = policy(0, 10, 1.0);
            let (before, after) = (assign(&units[..n], &policy), assign(&units, &policy));
            if before.iter().max() == after.iter().max() {
                let moved = before.iter().zip(&after).filter(|(b, a)| b != a).count();
                prop_assert!(moved <= 10, "{} of {} moved", moved, n);
            }
        }
    }
}
