//! Share of users in a rollout: the same users each time, on each server.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Parts of a whole, the unit of shares.
pub const PARTS: u64 = 10_000;

/// Share of users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Share {
    /// This number of [`PARTS`], by a hash of user id and protocol name: see [`part`].
    Parts(u16),
    /// Users whose `user_id % 100` is below this number.
    /// For an id that is not a whole number, the hash is used.
    UserIdBelow(u8),
}

impl Share {
    pub const ALL: Share = Share::Parts(PARTS as u16);

    /// Check for a user in the share; one without identity is only in a full share.
    pub fn includes(self, protocol: &str, user: Option<&str>) -> bool {
        if self == Share::ALL {
            return true;
        }
        let Some(user) = user else { return false };
        match self {
            Share::Parts(parts) => part(protocol, user) < u64::from(parts),
            Share::UserIdBelow(bound) => remainder(protocol, user) < u64::from(bound),
        }
    }
}

/// Return a user's part, from 0 and below [`PARTS`].
///
/// It is the first 8 bytes of SHA-256 over the protocol's name, a zero byte and the user's id, as a
/// big-endian number, modulo [`PARTS`]. The name is included so that not every rollout begins with
/// the same users; and a larger share of a protocol always holds all users of a smaller one.
pub fn part(protocol: &str, user: &str) -> u64 {
    hash(protocol, user) % PARTS
}

fn hash(protocol: &str, user: &str) -> u64 {
    let digest = Sha256::new().chain_update(protocol).chain_update([0]).chain_update(user);
    let digest: [u8; 32] = digest.finalize().into();
    digest.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// Return `user_id % 100`: the last two digits of a decimal number.
fn remainder(protocol: &str, user: &str) -> u64 {
    let decimal = !user.is_empty() && user.bytes().all(|byte| byte.is_ascii_digit());
    let last = user.get(user.len().saturating_sub(2)..).filter(|_| decimal);
    last.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| hash(protocol, user) % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Membership can be computed: `printf 'v3+encryption\0alice' | sha256sum`.
    #[test]
    fn the_hash_is_what_the_documentation_says() {
        assert_eq!(hash("v3+encryption", "alice"), 0xD60C_ABBF_C6AE_B2D3);
        assert_eq!(part("v3+encryption", "alice"), 0xD60C_ABBF_C6AE_B2D3 % 10_000);
    }

    #[test]
    fn remainders_are_of_the_number_itself() {
        for (user, expected) in [("0", 0), ("7", 7), ("101", 1), ("90071992547409931234567", 67)] {
            assert_eq!(remainder("v4+streaming", user), expected, "{user}");
        }
        assert_eq!(remainder("v4+streaming", "u-1"), hash("v4+streaming", "u-1") % 100);
    }

    #[test]
    fn a_larger_share_holds_the_smaller_one_and_names_differ() {
        let users: Vec<String> = (0..10_000).map(|n| format!("user-{n}")).collect();
        let in_share = |protocol, parts| {
            let share = Share::Parts(parts);
            let among = users.iter().filter(|user| share.includes(protocol, Some(user)));
            among.collect::<Vec<_>>()
        };
        let (few, more) = (in_share("a", 500), in_share("a", 1500));
        assert!(!few.is_empty() && few.iter().all(|user| more.contains(user)));
        assert_ne!(few, in_share("b", 500));
        assert!(!Share::Parts(9_999).includes("a", None) && Share::ALL.includes("a", None));
        assert!(in_share("a", 0).is_empty());
    }
}
