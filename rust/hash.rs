//! One hash for what is written to files: fast, and the same for ever. Not against malice.

/// The hash of `bytes`. It must never change: saved sessions and pickled models hold it.
pub fn hash(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(bytes.len() as u64, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let hash = rest.iter().fold(hash, |hash, &byte| mix(hash, u64::from(byte)));
    mix(mix(hash, 0), 0)
}

/// The hash of many bytes: eight chains side by side, as fast as memory is read. It must never change either.
pub fn checksum(bytes: &[u8]) -> u64 {
    let (chunks, rest) = bytes.as_chunks::<64>();
    let mut lanes: [u64; 8] = std::array::from_fn(|i| i as u64);
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *lane = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
    }
    let mut end: Vec<u8> = lanes.iter().flat_map(|lane| lane.to_le_bytes()).collect();
    end.extend(rest);
    end.extend((bytes.len() as u64).to_le_bytes());
    hash(&end)
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

    #[test]
    fn a_checksum_is_the_same_for_ever_and_feels_every_bit() {
        let mut bytes: Vec<u8> = (0..150).collect();
        assert_eq!([checksum(b""), checksum(&bytes)], [9214381241582032489, 7276638751282344271]);
        for len in [0, 1, 63, 64, 65, 150] {
            let sum = checksum(&bytes[..len]);
            for bit in 0..8 * len {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(checksum(&bytes[..len]), sum, "bit {bit} of {len} bytes");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            assert!(len == 150 || checksum(&bytes[..len + 1]) != sum);
        }
    }
}
