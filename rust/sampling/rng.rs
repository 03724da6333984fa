//! The random numbers behind a seed: xoshiro256++, started by SplitMix64.
//!
//! Written out here, and pinned by tests, because a seed is a promise: the same seed gives the same
//! numbers in every version. (The generators of the `rand` crate make no such promise.)
//!
//! Blackman and Vigna, "Scrambled linear pseudorandom number generators", 2021;
//! Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub struct Rng {
    seed: u64,
    state: [u64; 4],
}

impl Rng {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        let mut x = seed;
        Self { seed, state: std::array::from_fn(|_| split_mix(&mut x)) }
    }

    /// The seed it started from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The seed and the state: all that there is to save.
    pub fn words(&self) -> [u64; 5] {
        let [a, b, c, d] = self.state;
        [self.seed, a, b, c, d]
    }

    /// The stream that [`Rng::words`] were those of, at the same place.
    pub fn from_words([seed, state @ ..]: [u64; 5]) -> Self {
        Self { seed, state }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number from 0 up to, but not including, 1: a multiple of 2^-53.
    pub fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (-53f64).exp2()
    }
}

fn split_mix(x: &mut u64) -> u64 {
    *x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *x;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_published_numbers() {
        // The test vectors that go around with the authors' C code.
        let mut x = 1_234_567;
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(expected.map(|_| split_mix(&mut x)), expected);

        let mut rng = Rng { seed: 0, state: [1, 2, 3, 4] };
        let expected = [
            41_943_041,
            58_720_359,
            3_588_806_011_781_223,
            3_591_011_842_654_386,
            9_228_616_714_210_784_205,
            9_973_669_472_204_895_162,
        ];
        assert_eq!(expected.map(|_| rng.next_u64()), expected);
    }

    #[test]
    fn a_seed_is_a_promise() {
        let mut rng = Rng::new(7);
        assert_eq!([rng.next_u64(), rng.next_u64()], [1_021_219_803_524_665_661, 3_174_977_118_032_272_916]);
        assert!((0..1000).map(|_| rng.next_f64()).all(|x| (0.0..1.0).contains(&x)));
        let mut saved = Rng::from_words(rng.words());
        assert_eq!((saved.seed(), saved.next_u64()), (7, rng.next_u64()));
    }
}
