//! Clusters of users: the same at the edge, on the command line and in servers.

use std::{num::NonZeroU32, str::FromStr};

use sha1::{Digest, Sha1};

/// Return the cluster of a user, from 0.
///
/// It is the jump consistent hash (Lamping and Veach, 2014) of the first 8 bytes of SHA-1 over the
/// name, as a big-endian number. An additional cluster gets an even share from each of the others,
/// and nothing else moves.
pub fn cluster_of(user: &str, clusters: NonZeroU32) -> u32 {
    let digest = Sha1::digest(user.as_bytes());
    let mut key = digest.iter().take(8).fold(0_u64, |key, byte| key << 8 | u64::from(*byte));
    let (mut last, mut next) = (0_i64, 0_i64);
    while next < i64::from(clusters.get()) {
        last = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        let step = (1_u64 << 31) as f64 / ((key >> 33) + 1) as f64;
        next = ((last + 1) as f64 * step) as i64;
    }
    last as u32
}

/// Cluster out of several, as `3/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub cluster: u32,
    pub of: NonZeroU32,
}

impl Share {
    /// Check whether a user is of this cluster.
    pub fn has(&self, user: &str) -> bool {
        cluster_of(user, self.of) == self.cluster
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Share, String> {
        let parsed = text.split_once('/').and_then(|(cluster, of)| {
            let share = Share { cluster: cluster.parse().ok()?, of: of.parse().ok()? };
            (share.cluster < share.of.get()).then_some(share)
        });
        parsed.ok_or_else(|| format!("{text:?}: write it as 3/16, from 0/16 to 15/16"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clusters(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    #[test]
    fn one_more_cluster_moves_an_even_share_and_only_to_it() {
        const USERS: u32 = 100_000;
        let (mut moved, mut counts) = (0, [0_u32; 16]);
        for user in 0..USERS {
            let user = format!("user-{user}");
            let (before, after) =
                (cluster_of(&user, clusters(16)), cluster_of(&user, clusters(17)));
            counts[before as usize] += 1;
            assert!(after == before || after == 16, "{user}: from {before} to {after}");
            moved += u32::from(after != before);
        }
        println!("{moved} of {USERS} moved; the clusters have {counts:?}");
        // The mean is 5,882, and five standard deviations are 372.
        assert!((5510..=6255).contains(&moved), "{moved} moved");
        assert!(counts.iter().all(|count| (5870..=6630).contains(count)), "{counts:?}");
    }

    #[test]
    fn shares_are_written_as_such() {
        let share: Share = "3/16".parse().unwrap();
        assert_eq!(share, Share { cluster: 3, of: clusters(16) });
        for wrong in ["16/16", "3", "-1/16", "0/0", "a/b"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
        let of = cluster_of("u-1", clusters(16));
        assert!(Share { cluster: of, of: clusters(16) }.has("u-1"));
    }
}
