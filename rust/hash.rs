//! One hash for what is written to files: fast, and the same for ever. Not against malice.

/// The hash of `bytes`. It must never change: saved sessions and pickled models hold it.
pub fn hash(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(bytes.len() as u64, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let hash = rest.iter().fold(hash, |hash, &byte| mix(hash, u64::from(byte)));
    mix(mix(hash, 0), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_the_same_for_ever_and_feels_every_bit() {
        let bytes: Vec<u8> = (0..=20).collect();
        assert_eq!([hash(b""), hash(b"llama_rs"), hash(&bytes)], EXPECTED);
        for bit in 0..8 * bytes.len() {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(hash(&other), hash(&bytes), "bit {bit}");
        }
        assert_ne!(hash(&[0; 8]), hash(&[0; 16]), "the length counts");
    }

    const EXPECTED: [u64; 3] = [0x0000_0000_0000_0000, 0xf112_4a86_f5ac_a273, 0xd3ac_693a_85fe_f996];
}
